"""What becomes of rows after they were sent: which may be deleted, and which must be sent again, and in which order.

The rule for a key is its prefix: a row that failed keeps all later rows of its key in the table, also those that were
acknowledged. They are sent again after it. Consumers may then see 2, 3, 1, 2, 3 of one key, whose last value is right;
had 2 and 3 been deleted they would see 2, 3, 1, and keep a wrong value for ever.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

__all__ = ["compact", "deletable"]


def deletable(orders: Sequence[int], failed: Collection[int]) -> list[int]:
    """Positions of rows that may be deleted.

    Args:
        orders: For each row that was sent, in order, what keeps its order together (`order_hash`).
        failed: Positions of those that were not acknowledged.
    """
    if not failed:
        return list(range(len(orders)))
    broken: set[int] = set()
    found = []
    for position, order in enumerate(orders):
        if position in failed:
            broken.add(order)
        elif order not in broken:
            found.append(position)
    return found


def compact(keys: Sequence[tuple[int, bytes | None]]) -> list[int]:
    """Which rows of a batch are sent where only the last one of each key counts.

    Args:
        keys: For each row, in order, what keeps its order together, and its key.

    Returns:
        For each row the position of the row that stands for it: its own, or a later one. Rows without a key stand for
        themselves. A row is deleted only when the one that stands for it was acknowledged.
    """
    last: dict[tuple[int, bytes | None], int] = {}
    standing = list(range(len(keys)))
    for position in range(len(keys) - 1, -1, -1):
        key = keys[position]
        if key[1] is not None:
            standing[position] = last.setdefault(key, position)
    return standing
