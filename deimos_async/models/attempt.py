"""One attempt to write rows of several tables.

It goes down the tables. Of rows of one model first those are stored that they belong to
(many-to-one), so that their foreign keys are known; then they themselves; then, with their primary keys, the rows that
belong to them (one-to-many, one-to-one), and of these tables the rows that are not meant any more are removed. At each
of these steps all rows of one table are written together, in order of their keys. All of it is in the transaction that
it is given, within the caller's savepoint: nothing is remembered that a rollback would make wrong.

A primary key that the database makes is read again: by the key columns, whose index makes that cheap and which stay
right if several messages speak of one row; for rows that have no such key by their import id.

Rows that are not meant any more are told from others by the import id, one for all rows of a table that an attempt
writes: it costs one statement, and takes no locks between rows of others. Without that column they are told by key.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Select, or_, select
from sqlalchemy.ext.asyncio import AsyncConnection

from deimos_async.database.upserts.rows import in_order
from deimos_async.errors import ConfigurationError
from deimos_async.models.mapping import CREATED_AT, UPDATED_AT, Row
from deimos_async.models.members import ImportIds, Member
from deimos_async.models.messages import groups
from deimos_async.models.relations import Relation
from deimos_async.models.removal import MOST_KEYS, MemberOf, Values, among, belonging, remove

__all__ = ["Attempt"]


class Attempt:
    """One attempt to write. `records` are what was given, and not touched; `rows` are their columns, filled in here."""

    def __init__(
        self,
        connection: AsyncConnection,
        member_of: MemberOf,
        import_ids: ImportIds,
        *,
        replaces: bool,
    ) -> None:
        self._connection = connection
        self._member_of = member_of
        self._import_ids = import_ids
        self._replaces = replaces
        self._written: list[tuple[Row, Row]] = []
        self.now: dict[Member, Mapping[str, datetime]] = {}

    def fill_in(self) -> None:
        """Give the records what was filled in. Only after success: a record must not keep a key of a lost attempt."""
        for record, row in self._written:
            record.update(row)

    async def store(
        self,
        member: Member,
        records: Sequence[Row],
        rows: Sequence[Row],
        *,
        foreign_key: tuple[str, ...] = (),
        needed: Iterable[str] = (),
        is_stamped: bool = False,
        mark: Any = None,
    ) -> None:
        """Write rows with what lies in them.

        Args:
            foreign_key: Columns that the rows above have filled in.
            needed: Columns that the caller must know afterwards.
            is_stamped: Whether rows have their times and import ids.
            mark: Import id for all of them; None: each gets its own.
        """
        if not rows:
            return
        await self._store_owners(member, records, rows)
        member.complete(rows, foreign_key)
        if not is_stamped:
            self._stamp(member, rows, mark)
        stale = await member.write(self._connection, rows, self._now(member), foreign_key)
        self._written += zip(records, rows, strict=True)
        owned = _mentions(member, records, owned=True)
        if stale and owned:
            stored = await self._ids_stored(member, rows)
            owned = [mention for mention in owned if rows[mention.index][str(member.import_column)] in stored]
        if self._replaces:
            await self._lock(member, [rows[mention.index] for mention in owned], foreign_key)
        names = {*needed, *(name for mention in owned for name in mention.relation.here)}
        await self._find(member, rows, sorted(names), foreign_key)
        by_target: dict[tuple[str, str, tuple[str, ...]], list[_Mention]] = {}
        for mention in owned:
            relation = mention.relation
            # One table may have several classes, of which only those are replaced that are given.
            target = (_name_of(relation), relation.mapper.class_.__name__, relation.there)
            by_target.setdefault(target, []).append(mention)
        for _, mentions in sorted(by_target.items(), key=lambda item: item[0]):
            await self._store_owned(rows, mentions)

    async def _lock(self, member: Member, rows: Sequence[Row], foreign_key: tuple[str, ...]) -> None:
        """Have the stored rows locked, so that writers who replace what belongs to them come one after the other.

        A write locks them, except on PostgreSQL rows that say nothing but their key.
        """
        if self._connection.dialect.name != "postgresql":
            return
        for key, part in _by_key(member, rows, foreign_key)[0].items():
            bare = {tuple(row[name] for name in key) for row in part if row.keys() <= {*key, CREATED_AT}}
            for some in groups(in_order(bare), MOST_KEYS):
                columns = [member.table.column(name) for name in key]
                statement = select(*columns).where(among(member.table, key, some)).order_by(*columns)
                await self._connection.execute(statement.with_for_update())

    def _stamp(self, member: Member, rows: Sequence[Row], mark: Any) -> None:
        now, table = self._now(member), member.table
        for row in rows:
            row.update(table.stamps(row, now))
        if member.import_column is not None:
            for row in rows:
                row[member.import_column] = self._new_id(member) if mark is None else mark

    def _now(self, member: Member) -> Mapping[str, datetime]:
        return self.now.setdefault(member, member.table.now())

    def _new_id(self, member: Member) -> Any:
        assert member.import_column is not None
        return member.table.fit_one({member.import_column: self._import_ids.generate()})[member.import_column]

    # --- rows that these belong to -----------------------------------------------------------------------------

    async def _store_owners(self, member: Member, records: Sequence[Row], rows: Sequence[Row]) -> None:
        by_target: dict[str, list[_Mention]] = {}
        for mention in _mentions(member, records, owned=False):
            by_target.setdefault(_name_of(mention.relation), []).append(mention)
        for _, mentions in sorted(by_target.items()):
            target = self._member_of(mentions[0].relation.mapper)
            found = [mention.records[0] for mention in mentions if mention.records]
            found_rows = [target.columns_of(record) for record in found]
            needed = {name for mention in mentions for name in mention.relation.there}
            await self.store(target, found, found_rows, needed=needed)
            remaining = iter(found_rows)
            for mention in mentions:
                owner = next(remaining) if mention.records else {}
                for here, there in zip(mention.relation.here, mention.relation.there, strict=True):
                    rows[mention.index][here] = owner.get(there)

    # --- rows that belong to these -----------------------------------------------------------------------------

    async def _store_owned(self, rows: Sequence[Row], mentions: Sequence[_Mention]) -> None:
        """Write rows of one table with one foreign key, and remove those that are not meant any more."""
        relation = mentions[0].relation
        member = self._member_of(relation.mapper)
        by_owner: dict[Values, tuple[int, list[Row]]] = {}
        for mention in mentions:
            owner = tuple(rows[mention.index][name] for name in mention.relation.here)
            last, found = by_owner.setdefault(owner, (mention.index, []))
            if last != mention.index and self._replaces:
                # Two messages speak of one row: the later one has the last word.
                found = []
            by_owner[owner] = (mention.index, found + list(mention.records))
        children: list[Row] = []
        child_rows: list[Row] = []
        for owner, (_, found) in by_owner.items():
            filled = dict(zip(relation.there, owner, strict=True))
            children += found
            child_rows += [{**member.columns_of(record), **filled} for record in found]
        owners = list(by_owner)
        member.complete(child_rows, relation.there)
        has_new = not all(member.has_key(row, relation.there) for row in child_rows)
        # Rows that are to be found again by their import ids need one each.
        needs_ids = has_new and bool(_mentions(member, children, owned=True))
        mark = None if needs_ids else self._mark(member)
        told_by_key = self._replaces and mark is None
        if told_by_key and has_new:
            # New rows have no key yet by which they could be spared.
            await self._remove_others(member, relation, owners, child_rows)
        await self.store(member, children, child_rows, foreign_key=relation.there, mark=mark)
        if told_by_key and not has_new:
            await self._remove_others(member, relation, owners, child_rows)
        elif self._replaces and mark is not None:
            assert member.import_column is not None
            column = member.table.column(member.import_column)
            for part in groups(in_order(owners), MOST_KEYS):
                others = [*belonging(member, relation, part), or_(column.is_(None), column != mark)]
                await remove(self._connection, self._member_of, member, others)

    def _mark(self, member: Member) -> Any:
        """An import id for all rows written of a table; None: there is no column for it, or it would tell nothing."""
        if member.import_column is None or not self._import_ids.differ():
            return None
        return self._new_id(member)

    async def _remove_others(
        self, member: Member, relation: Relation, owners: Sequence[Values], rows: Sequence[Row]
    ) -> None:
        """Remove what belongs to the owners, but for the stored rows that these rows are."""
        connection, table = self._connection, member.table
        primary_key = [table.column(name) for name in member.primary_key]
        kept: set[Values] = set()
        for key, keyed in _by_key(member, rows, relation.there)[0].items():
            keys = [tuple(row[name] for name in key) for row in keyed]
            for some in groups(in_order(set(keys)), MOST_KEYS):
                statement = select(*primary_key).where(among(table, key, some))
                kept.update(map(tuple, await connection.execute(self._current(statement))))
        for some in groups(in_order(owners), MOST_KEYS):
            theirs = belonging(member, relation, some)
            if not kept:
                await remove(connection, self._member_of, member, theirs)
                continue
            found = await connection.execute(self._current(select(*primary_key).where(*theirs)))
            removed = {row for row in map(tuple, found) if row not in kept}
            for part in groups(in_order(removed), MOST_KEYS):
                await remove(connection, self._member_of, member, [among(table, member.primary_key, part)])

    # --- what the database made --------------------------------------------------------------------------------

    async def _find(
        self, member: Member, rows: Sequence[Row], names: Sequence[str], foreign_key: tuple[str, ...]
    ) -> None:
        """Fill in columns of rows that are stored.

        Raises:
            ConfigurationError: There is nothing to find them by.
        """
        lacking = [row for row in rows if None in [row.get(name) for name in names]]
        if not lacking:
            return
        keyed, others = _by_key(member, lacking, foreign_key)
        for key, part in keyed.items():
            await self._read(member, part, key, names)
        if not others:
            return
        column, table = member.import_column, member.table
        if column is None:
            raise ConfigurationError(
                f"table {table.table.fullname!r}: {', '.join(names)} of new rows is made by the database, and nothing "
                f"finds them again: add a column {self._import_ids.name!r} to it (text or UUID, with an "
                "index), or a unique index on columns that messages give, and name these in key_columns"
            )
        if len({row[column] for row in others}) < len(others):
            raise ConfigurationError(
                f"table {table.table.fullname!r}: bulk_import_id_generator gives the same value for several rows, so "
                "they cannot be found again by it"
            )
        await self._read(member, others, (column,), names)

    async def _read(self, member: Member, rows: Sequence[Row], key: tuple[str, ...], names: Sequence[str]) -> None:
        table = member.table
        statement = select(*(table.column(name) for name in (*key, *names)))
        # Rows that this transaction has changed are in any snapshot of it. A locking read of many rows may lock others.
        changes_always = member.import_column is not None or UPDATED_AT in table.managed
        found: dict[Values, Values | None] = {}
        wanted = {tuple(row[name] for name in key) for row in rows}
        for some in groups(in_order(wanted), MOST_KEYS):
            chosen = statement.where(among(table, key, some))
            for stored in await self._connection.execute(chosen if changes_always else self._current(chosen)):
                own = tuple(stored[: len(key)])
                # A snapshot may still have a row that was removed and made anew meanwhile.
                found[own] = None if own in found else tuple(stored[len(key) :])
        for row in rows:
            own = tuple(row[name] for name in key)
            values = found.get(own)
            if values is None:
                # Databases may call values equal that are not so here: letters of another case, times without a zone.
                chosen = self._current(statement.where(among(table, key, [own])))
                one = (await self._connection.execute(chosen)).first()
                if one is None:
                    raise ValueError(f"a row of table {table.table.fullname!r} was written and is not there")
                values = found[own] = tuple(one[len(key) :])
            if None in values:
                raise ValueError(
                    f"a row of table {table.table.fullname!r} has NULL in {', '.join(names)}, and no row "
                    "can belong to it"
                )
            row.update(zip(names, values, strict=True))

    async def _ids_stored(self, member: Member, rows: Sequence[Row]) -> set[Any]:
        """Import ids of those rows that were not refused as older."""
        assert member.import_column is not None  # checked when rows are fitted
        column = member.table.column(member.import_column)
        stored: set[Any] = set()
        for some in groups([row[member.import_column] for row in rows], MOST_KEYS):
            stored.update((await self._connection.execute(select(column).where(column.in_(some)))).scalars())
        # Columns of type CHAR come back padded.
        return {found.rstrip() if isinstance(found, str) else found for found in stored}

    def _current(self, statement: Select[Any]) -> Select[Any]:
        """As rows are now. MySQL's plain reads show them as they were at the first read of the transaction; its locking
        reads do not. These rows are locked by us already, or about to be removed.
        """
        return statement.with_for_update() if self._connection.dialect.name in ("mysql", "mariadb") else statement


@dataclass(frozen=True, slots=True)
class _Mention:
    """What one row has under a relationship's name: position of the row, and what lies there."""

    index: int
    relation: Relation
    records: Sequence[Row]


def _mentions(member: Member, records: Sequence[Row], *, owned: bool) -> list[_Mention]:
    """In order of records."""
    relations = [relation for relation in member.table.relations.values() if relation.owns is owned]
    if not relations:
        return []
    found = []
    for index, record in enumerate(records):
        for relation in relations:
            if relation.name in record:
                value = record[relation.name]
                found.append(_Mention(index, relation, value if relation.is_list else [] if value is None else [value]))
    return found


def _name_of(relation: Relation) -> str:
    return str(relation.mapper.local_table)


def _by_key(
    member: Member, rows: Sequence[Row], foreign_key: tuple[str, ...]
) -> tuple[dict[tuple[str, ...], list[Row]], list[Row]]:
    """Rows by the key columns that find them, and those that have no such key."""
    keyed: dict[tuple[str, ...], list[Row]] = {}
    others: list[Row] = []
    for row in rows:
        key = member.key_of(row, foreign_key)
        if key and None not in [row.get(name) for name in key]:
            keyed.setdefault(key, []).append(row)
        else:
            others.append(row)
    return keyed, others
