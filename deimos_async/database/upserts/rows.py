"""Each key once, in an order that all writers share. Pure."""

from __future__ import annotations

import unicodedata
from collections.abc import Collection, Hashable, Mapping, Sequence
from functools import lru_cache
from itertools import repeat
from typing import Any, NamedTuple

__all__ = ["Folded", "Row", "alike", "fold", "in_order", "rounds"]

Row = Mapping[str, Any]

_UNSEEN = frozenset({"Cc", "Cf", "Mn", "Me"})
"""Categories of characters that collations may pass over: controls, and marks such as accents."""


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


def alike(value: Any) -> Any:
    """What is the same for texts that a collation may take for one, as far as they differ in case, in accents, in
    spaces at the end, or in forms of a character. Texts that no collation takes for one may be the same here, too.

    Source: Unicode Technical Standard 10 (levels of comparison), and MySQL's `utf8mb4_general_ci`.
    """
    if not isinstance(value, str):
        return value
    text = value
    if not (text.isascii() and text.isprintable()):
        parts = unicodedata.normalize("NFKD", unicodedata.normalize("NFKD", text).casefold())
        text = "".join(map(_part, parts))
    # A sharp s is one s to some collations and two to others.
    return text.casefold().rstrip(" ").replace("ss", "s")


@lru_cache(maxsize=4096)
def _part(character: str) -> str:
    if unicodedata.category(character) in _UNSEEN:
        return ""
    # Some collations take all characters above U+FFFF for one.
    return "\ufffd" if character > "\uffff" else character


def rounds(keys: Sequence[Hashable | None], identities: Sequence[Hashable]) -> list[list[int]]:
    """Positions of rows in rounds, to be written one after the other: within a round different keys have different
    identities, and what comes later in the order of rows comes in a later round, or in the same one with the same key.

    Args:
        keys: Of each row; None for a row without one.
        identities: Of each row; rows that may be the same to the database have the same.
    """
    found: list[list[int]] = []
    last: dict[Hashable, tuple[Hashable, int]] = {}
    for position, (key, identity) in enumerate(zip(keys, identities, strict=True)):
        number = 0
        if key is not None:
            before, number = last.get(identity, (key, 0))
            if before != key:
                number += 1
            last[identity] = (key, number)
        if number == len(found):
            found.append([])
        found[number].append(position)
    return found
