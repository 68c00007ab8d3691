"""Which messages of a batch are written, and in which steps. Pure."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from typing import Any, Protocol, TypeVar

from deimos_async.schemas.coercion import as_list, as_mapping

__all__ = ["compact", "groups", "slices"]


class Keyed(Protocol):
    """What has a message's key; None: it has none."""

    @property
    def key(self) -> Any: ...


M = TypeVar("M", bound=Keyed)
T = TypeVar("T")


def compact(messages: Sequence[M]) -> list[M]:
    """The last message of each key, in the order of these; messages without a key are all kept.

    Keys are compared by their values. Source: Deimos 2.6, compacted batches; differs by keeping messages without a key.
    """
    seen: set[Hashable] = set()
    kept = []
    for message in reversed(messages):
        key = message.key
        if key is not None:
            identity = _identity(key)
            if identity in seen:
                continue
            seen.add(identity)
        kept.append(message)
    kept.reverse()
    return kept


def slices(messages: Sequence[M], rows: Sequence[Hashable | None]) -> list[list[M]]:
    """Messages cut so that each slice has a row once, in order: A1 A2 B1 C1 C2 C3 -> [A1 B1 C1], [A2 C2], [C3].

    Messages without a key share the first slice: nothing comes before or after another of them.

    Args:
        rows: Which row each message's key leads to, as different keys may lead to one; None: the key itself tells.
    """
    found: list[list[M]] = []
    counts: dict[Hashable, int] = {}
    for message, row in zip(messages, rows, strict=True):
        key = message.key
        if key is None:
            number = 0
        else:
            identity = (False, _identity(key)) if row is None else (True, row)
            number = counts.get(identity, 0)
            counts[identity] = number + 1
        if number == len(found):
            found.append([])
        found[number].append(message)
    return found


def groups(items: Sequence[T], size: int | None) -> Iterator[Sequence[T]]:
    """Items in groups of at most `size`; None: all at once. No items: no group."""
    if not items:
        return
    if size is None:
        yield items
        return
    for start in range(0, len(items), size):
        yield items[start : start + size]


def _identity(key: Any) -> Hashable:
    """The key, or something that is equal where keys are that cannot be hashed."""
    try:
        hash(key)
    except TypeError:
        if (fields := as_mapping(key)) is not None:
            return frozenset((name, _identity(value)) for name, value in fields.items())
        if (items := as_list(key)) is not None:
            return tuple(_identity(item) for item in items)
        raise
    return key  # type: ignore[no-any-return]
