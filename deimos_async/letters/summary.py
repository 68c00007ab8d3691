"""What a dead-letter topic holds, added up letter by letter."""

from __future__ import annotations

import heapq
from collections import Counter
from datetime import UTC, datetime

from deimos_async.letters.letter import Letter

__all__ = ["LetterSummary", "NewestLetters"]

_NEVER = datetime.min.replace(tzinfo=UTC)


class LetterSummary:
    """Counts and times of the letters of one topic.

    Attributes:
        count: Letters that fitted.
        replayed: Those of them that a replay has sent back.
        oldest, newest: Times of failure, where letters say one.
        by_error, by_group: How many of each class and group; None stands for letters that do not say.
    """

    __slots__ = ("by_error", "by_group", "count", "newest", "oldest", "replayed")

    def __init__(self) -> None:
        self.count = 0
        self.replayed = 0
        self.oldest: datetime | None = None
        self.newest: datetime | None = None
        self.by_error: Counter[str | None] = Counter()
        self.by_group: Counter[str | None] = Counter()

    def add(self, letter: Letter, *, replayed: bool) -> None:
        """One more."""
        self.count += 1
        self.replayed += replayed
        self.by_error[letter.error_class] += 1
        self.by_group[letter.group] += 1
        moment = letter.failed_at
        if moment is not None:
            self.oldest = moment if self.oldest is None else min(self.oldest, moment)
            self.newest = moment if self.newest is None else max(self.newest, moment)


class NewestLetters:
    """The letters that failed last, at most `limit`; memory does not grow with what passes through."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._heap: list[tuple[datetime, int, Letter]] = []
        self._turn = 0

    def add(self, letter: Letter) -> None:
        """One more."""
        self._turn += 1
        entry = (letter.failed_at or _NEVER, self._turn, letter)
        if len(self._heap) < self._limit:
            heapq.heappush(self._heap, entry)
        elif self._limit:
            heapq.heappushpop(self._heap, entry)

    def letters(self) -> list[Letter]:
        """The last one first."""
        return [letter for _, _, letter in sorted(self._heap, key=lambda entry: entry[:2], reverse=True)]
