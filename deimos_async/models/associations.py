"""Rows of several tables from one message: rows of other tables, under names of relationships, within a row.

Values are made to fit here, for all tables; `attempt` writes them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy.ext.asyncio import AsyncConnection

from deimos_async.errors import ConfigurationError
from deimos_async.models.attempt import Attempt
from deimos_async.models.mapping import ModelTable, Refuse, Row
from deimos_async.models.members import ImportIds, Member
from deimos_async.models.messages import groups
from deimos_async.models.relations import Relation
from deimos_async.models.removal import MOST_KEYS, MemberOf, among, remove_below
from deimos_async.schemas.coercion import as_list, as_mapping

__all__ = ["Associations"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Associations:
    """What a consumer may write besides its own table. Made at start; other models are looked at when first used.

    Attributes:
        root: The consumer's own model.
        member_of: Any other model.
        replaces: Whether rows that belong to a row and are not given with it are removed.
        saves_first: Whether rows may be given that a row belongs to.
        has_versions: Whether older messages are refused.
    """

    root: Member
    import_ids: ImportIds
    member_of: MemberOf
    replaces: bool
    saves_first: bool
    has_versions: bool

    def are_in(self, rows: Sequence[Row]) -> bool:
        """Whether one of the rows has rows of other tables."""
        names = self.root.table.relations
        return any(name in row for name in names for row in rows)

    # --- values ------------------------------------------------------------------------------------------------

    def fit(self, rows: Sequence[Row], refuse: Refuse) -> None:
        """Make what lies under names of relationships what its tables take, in place: lists of dicts, or one dict.

        An absent name says nothing, and nor does None under that of a list; None under another name says that there
        is no such row.

        Args:
            rows: Of the consumer's model, as its table has fitted them.
            refuse: Told of each row that cannot be written.

        Raises:
            ConfigurationError: Rows have versions and lie in others, and nothing tells which were refused as older.
        """
        self._fit(self.root.table, rows, refuse, above=None)
        if self.has_versions and self.are_in(rows):
            self._check_versions()

    def _check_versions(self) -> None:
        """Raise ConfigurationError if nothing tells the rows that were written from those that were older."""
        if self.root.import_column is None:
            raise ConfigurationError(
                f"table {self.root.table.table.fullname!r}: rows with a version_column can only have rows of "
                f"relationships if the table has a column {self.import_ids.name!r} (bulk_import_id_column), which "
                "tells the rows that were written from those that were older"
            )
        if not self.import_ids.differ():
            raise ConfigurationError(
                "bulk_import_id_generator gives the same value each time; with version_column, and rows of "
                "relationships, values must differ, as they tell the rows that were written from those that were older"
            )

    def fit_one(self, row: Row) -> None:
        """As `fit`, for one row. Raises ValueError or TypeError if it cannot be written."""

        def refuse(index: int, error: Exception) -> None:
            raise error

        self.fit([row], refuse)

    def _fit(self, table: ModelTable, rows: Sequence[Row], refuse: Refuse, *, above: Relation | None) -> None:
        for relation in table.relations.values():
            holders = [index for index, row in enumerate(rows) if relation.name in row]
            if not holders:
                continue
            problem = self._problem(relation, above)
            places: list[tuple[int, str]] = []
            found: list[Row] = []
            inner = self.member_of(relation.mapper).table
            for index in holders:
                row = rows[index]
                if problem is not None:
                    refuse(index, ValueError(problem))
                    continue
                try:
                    given = _rows_under(relation, row[relation.name], inner.constants)
                except TypeError as error:
                    refuse(index, error)
                    continue
                if given is None:
                    del row[relation.name]
                    continue
                row[relation.name] = given if relation.is_list else next(iter(given), None)
                found += given
                places += [
                    (index, f"{relation.name}[{position}]" if relation.is_list else relation.name)
                    for position in range(len(given))
                ]

            def refuse_inner(
                position: int, error: Exception, places: Sequence[tuple[int, str]] = places, refuse: Refuse = refuse
            ) -> None:
                index, place = places[position]
                refused = ValueError(f"{place}: {error}")
                refused.__cause__ = error
                refuse(index, refused)

            if found:
                inner.fit(found, refuse_inner)
                self._fit(inner, found, refuse_inner, above=relation)

    def _problem(self, relation: Relation, above: Relation | None) -> str | None:
        if relation.owns:
            return None
        if above is not None and above.owns and set(above.there) & set(relation.here):
            return f"{relation.name}: it is the row that this one lies in; leave it out"
        if not self.saves_first:
            return (
                f"{relation.name}: rows that others belong to are only written with save_associations_first = True; "
                f"else give {', '.join(relation.here)}"
            )
        return None

    # --- writing -----------------------------------------------------------------------------------------------

    async def write(self, connection: AsyncConnection, rows: Sequence[Row], now: Mapping[str, datetime]) -> None:
        """Write rows with all that lies in them. They get the columns that were filled in, such as primary keys.

        Args:
            connection: In a transaction. After an error it must be rolled back, at least to a savepoint before the
                call; rows are then as they were. Cancelled: likewise.
            rows: Fitted, stamped, and with import ids where the table has that column.
            now: What they were stamped with.

        Raises:
            StatementError: As `UpsertPlan.write`.
            ValueError: A row that was written is not found again.
            ConfigurationError: Nothing tells rows apart that must be found again, or unique indexes are ambiguous.
        """
        attempt = Attempt(connection, self.member_of, self.import_ids, replaces=self.replaces)
        attempt.now[self.root] = now
        await attempt.store(self.root, rows, [self.root.columns_of(row) for row in rows], is_stamped=True)
        attempt.fill_in()

    @property
    def cascade(self) -> bool:
        """Whether other rows are removed together with the consumer's own."""
        return any(relation.cascades for relation in self.root.table.relations.values())

    async def remove_below(self, connection: AsyncConnection, keys: Sequence[Row]) -> None:
        """Remove what belongs to the rows of these keys; they themselves are removed next.

        Args:
            keys: Key columns with their values.
        """
        if not self.cascade:
            return
        table = self.root.table
        names = table.key_columns
        for some in groups([tuple(key[name] for name in names) for key in keys], MOST_KEYS):
            await remove_below(connection, self.member_of, self.root, [among(table, names, some)])

    def deletion_mark(self) -> Row:
        """An import id for rows that stay as deleted ones, to be given to `remove_below_marked`; empty: not needed.

        Raises:
            ConfigurationError: The column has no use if its values do not differ.
        """
        name = self.root.import_column
        if name is None or not self.cascade:
            return {}
        self._check_versions()
        return self.root.table.fit_one({name: self.import_ids.generate()})

    async def remove_below_marked(self, connection: AsyncConnection, mark: Row) -> None:
        """Remove what belongs to the rows that have been marked: not those which were newer than their delete."""
        for name, import_id in mark.items():
            column = self.root.table.column(name)
            await remove_below(connection, self.member_of, self.root, [column == import_id])


def _rows_under(relation: Relation, value: Any, constants: Row) -> list[Row] | None:
    """New rows of what stands under a relationship's name; None: as if nothing stood there."""
    if value is None:
        return None if relation.is_list else []
    items: Sequence[Any] | None = as_list(value) if relation.is_list else (value,)
    found = [] if items is None else [as_mapping(item) for item in items]
    if items is None or None in found:
        wanted = "a list of dicts" if relation.is_list else "a dict or None"
        what = "items of other types" if items is not None and relation.is_list else type(value).__name__
        raise TypeError(f"{relation.name} takes {wanted}, not {what}")
    return [{**constants, **fields} for fields in found if fields is not None]
