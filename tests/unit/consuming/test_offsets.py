"""The frontier never passes an offset whose handling has not ended."""

from __future__ import annotations

import random

import pytest

from deimos_async.consuming.offsets import OffsetFrontier


@pytest.mark.parametrize(
    ("started", "finished", "position"),
    [
        ([5], [], None),
        ([5], [5], 6),
        ([5, 6, 7], [6], None),
        ([5, 6, 7], [6, 7], None),
        ([5, 6, 7], [6, 5], 7),  # 5 and 6 have ended, 7 has not
        ([5, 6, 7], [7, 6, 5], 8),
        ([5, 9, 20], [5], 6),  # a gap (compacted away): 6 is where reading goes on, whatever is there
        ([5, 9, 20], [9, 5], 10),
    ],
)
def test_position_is_the_end_of_the_finished_prefix(
    started: list[int], finished: list[int], position: int | None
) -> None:
    frontier = OffsetFrontier()
    frontier.started(started)
    for offset in finished:
        frontier.finished(offset)
    assert frontier.position == position
    assert frontier.unfinished == len(started) - len(finished)


@pytest.mark.parametrize("seed", range(20))
def test_any_order_of_ends_never_passes_an_unfinished_offset(seed: int) -> None:
    draw = random.Random(seed)
    offsets = sorted(draw.sample(range(1000), 200))
    frontier = OffsetFrontier()
    waiting: list[int] = []
    remaining = list(offsets)
    while remaining or waiting:
        if remaining and (not waiting or draw.random() < 0.5):
            count = draw.randint(1, min(10, len(remaining)))
            frontier.started(remaining[:count])
            waiting += remaining[:count]
            del remaining[:count]
        else:
            offset = waiting.pop(draw.randrange(len(waiting)))
            frontier.finished(offset)
            unfinished = waiting + remaining
            expected = [done + 1 for done in offsets if not any(left <= done for left in unfinished)]
            assert frontier.position == (expected[-1] if expected else None)
    assert frontier.position == offsets[-1] + 1
