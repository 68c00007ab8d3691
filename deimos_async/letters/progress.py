"""What of a partition was replayed already: everything below a position, and some stretches above it.

A replay with filters passes letters over, which a later one may want; so one offset cannot say what was done. Kafka
keeps a text beside each committed offset: the stretches go there, as pairs of gap and length (variable-length
integers), compressed, in base64, after the number of this format. Source of the idea: offset maps in the commit
metadata of Confluent's Parallel Consumer; the format is our own.
"""

from __future__ import annotations

import base64
import binascii
import zlib
from bisect import bisect_right
from collections.abc import Iterator

__all__ = ["Progress"]

_FORMAT = "1:"
_TEXT_LIMIT = 4096
"""Bytes that Kafka keeps beside an offset (default of `offset.metadata.max.bytes`)."""
_UNPACKED_LIMIT = 1 << 20


class Progress:
    """Offsets of one partition that are done. Stretches are half-open and never touch each other.

    Args:
        position: Everything below is done.
    """

    __slots__ = ("_starts", "_stops", "position")

    def __init__(self, position: int = 0) -> None:
        self.position = position
        self._starts: list[int] = []
        self._stops: list[int] = []

    def __contains__(self, offset: int) -> bool:
        if offset < self.position:
            return True
        index = bisect_right(self._starts, offset) - 1
        return index >= 0 and offset < self._stops[index]

    def missing(self, start: int, stop: int) -> int:
        """How many offsets from `start` (included) to `stop` (excluded) are not done."""
        begin = max(start, self.position)
        done = sum(max(0, min(stop, last) - max(begin, first)) for first, last in self.stretches())
        return max(0, stop - begin) - done

    def stretches(self) -> Iterator[tuple[int, int]]:
        """What is done above the position, ascending."""
        return zip(self._starts, self._stops, strict=True)

    def mark(self, start: int, stop: int) -> None:
        """From `start` (included) to `stop` (excluded) everything is done."""
        if start >= stop:
            return
        starts, stops = self._starts, self._stops
        first = bisect_right(stops, start - 1)  # the first one that reaches or passes the new stretch's beginning
        last = bisect_right(starts, stop)
        if first < last:
            start, stop = min(start, starts[first]), max(stop, stops[last - 1])
        starts[first:last], stops[first:last] = [start], [stop]
        if starts[0] <= self.position:
            self.position = max(self.position, stops[0])
            del starts[0], stops[0]

    def copy(self) -> Progress:
        """The same, to be marked apart."""
        other = Progress(self.position)
        other._starts, other._stops = self._starts.copy(), self._stops.copy()
        return other

    def encoded(self) -> str | None:
        """The stretches as a text; None if Kafka would not keep one that long."""
        if not self._starts:
            return ""
        packed, last = bytearray(), self.position
        for start, stop in self.stretches():
            packed += _varint(start - last) + _varint(stop - start)
            last = stop
        text = _FORMAT + base64.b64encode(zlib.compress(bytes(packed), 9)).decode()
        return text if len(text) <= _TEXT_LIMIT else None

    @classmethod
    def decode(cls, position: int, text: str) -> Progress:
        """From what was stored. Raises ValueError where the text is of another format, or damaged."""
        progress = cls(position)
        if not text:
            return progress
        if not text.startswith(_FORMAT):
            raise ValueError("not a format that this version knows")
        try:
            unpacking = zlib.decompressobj()
            packed = unpacking.decompress(base64.b64decode(text[len(_FORMAT) :], validate=True), _UNPACKED_LIMIT)
        except (binascii.Error, zlib.error) as error:
            raise ValueError("damaged") from error
        if not unpacking.eof:
            raise ValueError("damaged")
        numbers, last = list(_numbers(packed)), position
        for gap, length in zip(numbers[::2], numbers[1::2], strict=True):
            progress.mark(last + gap, last + gap + length)
            last += gap + length
        return progress


def _varint(number: int) -> bytes:
    packed = bytearray()
    while number > 0x7F:
        packed.append(number & 0x7F | 0x80)
        number >>= 7
    packed.append(number)
    return bytes(packed)


def _numbers(packed: bytes) -> Iterator[int]:
    number = shift = 0
    for byte in packed:
        number |= (byte & 0x7F) << shift
        if byte & 0x80:
            shift += 7
        else:
            yield number
            number = shift = 0
    if shift:
        raise ValueError("damaged")
