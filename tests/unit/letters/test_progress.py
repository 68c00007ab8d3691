"""What was replayed, remembered beside an offset."""

from __future__ import annotations

import random

import pytest

from deimos_async.letters.progress import Progress


def done(progress: Progress, below: int = 40) -> set[int]:
    return {offset for offset in range(below) if offset in progress}


@pytest.mark.parametrize(
    ("position", "marks", "then_at", "stretches"),
    [
        (0, [(0, 1)], 1, []),
        (0, [(1, 2)], 0, [(1, 2)]),
        (0, [(1, 2), (0, 1)], 2, []),
        (5, [(7, 9), (9, 10)], 5, [(7, 10)]),
        (5, [(9, 10), (7, 9)], 5, [(7, 10)]),
        (5, [(7, 8), (9, 10), (8, 9)], 5, [(7, 10)]),
        (5, [(7, 8), (12, 14), (6, 20)], 5, [(6, 20)]),
        (5, [(7, 8), (0, 6)], 6, [(7, 8)]),
        (5, [(7, 8), (0, 7)], 8, []),
        (5, [(1, 3)], 5, []),
        (5, [(8, 8)], 5, []),
        (5, [(7, 8), (5, 7)], 8, []),
    ],
)
def test_marks_join_what_they_touch(
    position: int, marks: list[tuple[int, int]], then_at: int, stretches: list[tuple[int, int]]
) -> None:
    progress = Progress(position)
    for mark in marks:
        progress.mark(*mark)
    assert progress.position == then_at
    assert list(progress.stretches()) == stretches


@pytest.mark.parametrize("seed", range(20))
def test_what_was_marked_is_done_and_nothing_else_and_survives_being_stored(seed: int) -> None:
    chance = random.Random(seed)
    position = chance.randrange(10)
    progress, expected = Progress(position), set(range(position))
    for _ in range(chance.randrange(1, 30)):
        start = chance.randrange(40)
        stop = start + chance.randrange(4)
        progress.mark(start, stop)
        expected |= set(range(start, stop))
        assert done(progress, 50) == expected
        assert progress.missing(3, 30) == len(set(range(3, 30)) - expected)
    assert progress.position not in progress
    text = progress.encoded()
    assert text is not None
    read = Progress.decode(progress.position, text)
    assert (read.position, list(read.stretches())) == (progress.position, list(progress.stretches()))


def test_copy_is_marked_apart() -> None:
    progress = Progress(1)
    progress.mark(5, 6)
    other = progress.copy()
    other.mark(1, 5)
    assert (progress.position, other.position) == (1, 6)
    assert list(progress.stretches()) == [(5, 6)]


def test_thousands_of_letters_passed_over_at_random_fit() -> None:
    chance = random.Random(1)
    progress = Progress(0)
    for offset in range(1, 8000):
        if chance.random() < 0.5:
            progress.mark(offset, offset + 1)
    text = progress.encoded()
    assert text is not None
    assert len(text) <= 4096


def test_more_than_kafka_keeps_is_told() -> None:
    chance = random.Random(1)
    progress = Progress(0)
    for _ in range(5000):
        offset = chance.randrange(1 << 40)
        progress.mark(offset, offset + 1)
    assert progress.encoded() is None


@pytest.mark.parametrize("text", ["2:AAAA", "nonsense", "1:???", "1:AAAA", "1:eJwDAAAAAAE"])
def test_text_that_cannot_be_read_is_an_error(text: str) -> None:
    with pytest.raises(ValueError, match=r"damaged|format"):
        Progress.decode(0, text)
