"""Where a partition goes on, by its row and by what the topic holds."""

from __future__ import annotations

import pytest

from deimos_async.brokers.protocol import Extent
from deimos_async.consuming.stored_offsets import MustReread, Place, StoredOffsets, go_on_at
from deimos_async.database.protocol import Bookmark
from deimos_async.errors import OffsetOutOfRangeError
from deimos_async.message import TopicPartition

P0 = TopicPartition("orders", 0)
HELD = Extent(10, 20, "new")


@pytest.mark.parametrize(
    ("row", "extent", "goes_on"),
    [
        (Bookmark(10, "new"), HELD, Bookmark(10, "new")),  # the first one that there is
        (Bookmark(20, "new"), HELD, Bookmark(20, "new")),  # nothing new yet
        (Bookmark(15, None), HELD, Bookmark(15, "new")),  # kept before the brokers had ids
        (Bookmark(15, "old"), Extent(10, 20, None), Bookmark(15, "old")),  # brokers that have none (any more)
        (Bookmark(0, None), Extent(0, 0, None), Bookmark(0, None)),
    ],
)
def test_row_that_fits_is_where_it_goes_on(row: Bookmark, extent: Extent, goes_on: Bookmark) -> None:
    found = go_on_at(row, extent, on_lost="stop", group="g", partition=P0)
    assert found == (goes_on, None)


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        (Bookmark(9, "new"), "the stored offset 9 does not exist, the partition holds 10 to 20"),
        (Bookmark(21, "new"), "the stored offset 21 does not exist, the partition holds 10 to 20"),
        (Bookmark(15, "old"), "the stored offset 15 is of topic id old, and its id is new now"),
    ],
)
def test_row_that_does_not_fit_stops_or_is_replaced(row: Bookmark, problem: str) -> None:
    with pytest.raises(OffsetOutOfRangeError, match="group 'g': topic 'orders' partition 0") as caught:
        go_on_at(row, HELD, on_lost="stop", group="g", partition=P0)
    assert problem in str(caught.value)
    assert caught.value.partition == P0
    earliest, why = go_on_at(row, HELD, on_lost="earliest", group="g", partition=P0)
    assert (earliest, problem in str(why)) == (Bookmark(10, "new"), True)
    latest, why = go_on_at(row, HELD, on_lost="latest", group="g", partition=P0)
    assert (latest, problem in str(why)) == (Bookmark(20, "new"), True)


def test_message_below_the_stored_offset_is_not_begun() -> None:
    offsets = StoredOffsets(None, group="g", on_lost="stop")  # type: ignore[arg-type]
    offsets.places[P0] = Place(5)
    assert offsets.place(P0, 7) is offsets.places[P0]  # offsets may have gaps
    with pytest.raises(MustReread, match="committed already"):
        offsets.place(P0, 4)
    offsets.forget([P0])
    with pytest.raises(MustReread, match="taken away"):
        offsets.place(P0, 7)
