"""Each key once, in an order that all writers share. Pure."""

from __future__ import annotations

from collections.abc import Collection, Hashable, Mapping, Sequence
from itertools import repeat
from typing import Any, NamedTuple

__all__ = ["Folded", "Row", "fold", "in_order"]

Row = Mapping[str, Any]


class Folded(NamedTuple):
    """Rows to write, and how many of those given are older than another of the same key."""

    rows: list[Row]
    stale: int


def fold(
    rows: Sequence[Row],
    keys: Sequence[Hashable | None],
    *,
    versions: Sequence[Any] | None = None,
    keep_first: Collection[str] = (),
) -> Folded:
    """What the rows come to, written one after the other: n rows -> at most n, one for each key.

    A later row's columns replace those of an earlier row with its key; columns that only the earlier one speaks of
    stay. With versions, a row that is older than one before it is dropped; equal versions count as newer.

    Args:
        rows: In the order in which they are to take effect.
        keys: The key of each row; None for a row without one, which is always kept.
        versions: The version of each row, comparable within a key.
        keep_first: Columns of which the first row's value stays.

    Returns:
        Rows in order of their keys, so that transactions which write the same rows lock them in the same order
        whichever process they run in; then rows without a key as they came.

    Raises:
        TypeError: A key cannot be hashed, or two versions of a key cannot be compared.
    """
    kept: dict[Hashable, Row] = {}
    newest: dict[Hashable, Any] = {}
    without_key: list[Row] = []
    stale = 0
    for row, key, version in zip(
        rows, keys, repeat(None) if versions is None else versions, strict=versions is not None
    ):
        if key is None:
            without_key.append(row)
            continue
        before = kept.get(key)
        if before is None:
            kept[key] = row
        elif versions is not None and version < newest[key]:
            stale += 1
            continue
        else:
            kept[key] = {**before, **row, **{name: before[name] for name in keep_first if name in before}}
        newest[key] = version
    return Folded([kept[key] for key in in_order(kept)] + without_key, stale)


def in_order(keys: Collection[Hashable]) -> list[Any]:
    """Keys in the order in which all writers take them, whatever kinds of values they are."""
    try:
        return sorted(keys)
    except TypeError:
        # Kinds that do not compare: no correct batch has them in one column, but any order does, if it is fixed.
        return sorted(keys, key=_description)


def _description(key: Hashable) -> list[tuple[str, str]]:
    return [(type(part).__name__, repr(part)) for part in (key if isinstance(key, tuple) else (key,))]
