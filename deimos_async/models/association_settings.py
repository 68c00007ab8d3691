"""How a class of model consumers writes rows of several tables, and the mistakes in that which are seen at start."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Iterable, Iterator
from typing import Any

from sqlalchemy import types
from sqlalchemy.engine.default import DefaultDialect
from sqlalchemy.orm import Mapper

from deimos_async.consuming.consumer import Circumstances
from deimos_async.database.upserts import UpsertPlan
from deimos_async.errors import ConfigurationError
from deimos_async.models.associations import Associations
from deimos_async.models.hooks import ask, named_columns, setting, takes
from deimos_async.models.mapping import ModelTable
from deimos_async.models.members import ImportIds, Member, random_import_id
from deimos_async.topics import UNSET

__all__ = ["associations_of", "model_table"]


def model_table(cls: Any, mapper: Mapper[Any], circumstances: Circumstances) -> ModelTable:
    """The table of a class, with the settings of the consumer's class `cls`."""
    return ModelTable(
        mapper,
        circumstances.dialect or DefaultDialect(),
        epoch_unit=cls.epoch_unit,
        truncate=cls.truncate_columns,
        timestamps_from_payload=cls.timestamps_from_payload,
    )


def associations_of(
    consumer: Any,
    base: type,
    circumstances: Circumstances,
    problems: list[str],
    *,
    table: ModelTable,
    columns: tuple[str, ...] | None,
    plan: Callable[[bool], UpsertPlan],
    reserved: Collection[str | None],
    relates: bool,
) -> Associations:
    """Decide how rows of other tables are written, and how writes are marked.

    Models that relationships of the consumer's own lead to are looked at now, others when they are first met.

    Args:
        base: `ModelConsumer`.
        problems: Gets every mistake.
        table: The consumer's own, with its key columns.
        columns: Those that a stored row gets; None: all.
        plan: Of the table, by whether rows say when they were created.
        reserved: Columns that cannot take import ids, besides the key's.
        relates: Whether rows of other tables can be given at all.
    """
    cls, dialect = type(consumer), circumstances.dialect or DefaultDialect()
    name = setting(cls, circumstances, "bulk_import_id_column")
    ids = ImportIds(name, _generator(consumer, circumstances, problems))
    root = Member(
        table,
        dialect,
        key_columns=table.key_columns,
        columns=columns,
        import_column=ids.column(table),
        plan=lambda key, mirrors_creation, foreign_key: plan(mirrors_creation),
    )
    if root.import_column is not None and root.import_column in {*table.key_columns, *reserved}:
        problems.append(f"bulk_import_id_column {name!r} has another use already: a key, a time, or a version")
    members = {table.mapper: root}

    def member_of(mapper: Mapper[Any]) -> Member:
        found = members.get(mapper)
        if found is None:
            mistakes: list[str] = []
            found = _member(consumer, model_table(cls, mapper, circumstances), dialect, ids, mistakes)
            if mistakes:
                raise ConfigurationError(*(f"consumer {circumstances.name!r}: {mistake}" for mistake in mistakes))
            members[mapper] = found
        return found

    for relation in table.relations.values() if relates else ():
        if relation.mapper not in members:
            members[relation.mapper] = _member(
                consumer, model_table(cls, relation.mapper, circumstances), dialect, ids, problems
            )
    problems += _import_problems(cls, base, ids, members.values())
    wanted = [name for name in ("replace_associations", "save_associations_first") if name in _own_settings(cls, base)]
    if wanted and not table.relations:
        reasons = "; ".join(["it has none that can be written", *table.unusable.values()])
        problems.append(f"{', '.join(wanted)} needs a relationship of {table.model.__name__}, and {reasons}")
    return Associations(
        root=root,
        import_ids=ids,
        member_of=member_of,
        replaces=setting(cls, circumstances, "replace_associations"),
        saves_first=setting(cls, circumstances, "save_associations_first"),
        has_versions=cls.version_column is not None,
    )


def _generator(consumer: Any, circumstances: Circumstances, problems: list[str]) -> Callable[[], Any]:
    name, option = "bulk_import_id_generator", circumstances.options.bulk_import_id_generator
    # A function in a class becomes a method of the instance; both ways of writing it are meant.
    given = [getattr(type(consumer), name), getattr(consumer, name)] if option is UNSET else [option]
    if given[0] is None:
        return random_import_id
    for found in given:
        if callable(found) and not inspect.iscoroutinefunction(found) and takes(found, 0):
            return found
    problems.append(f"{name}={given[0]!r} is not possible; a plain function without arguments, or None")
    return random_import_id


def _member(consumer: Any, table: ModelTable, dialect: Any, ids: ImportIds, problems: list[str]) -> Member:
    """A model that a relationship leads to."""
    found: dict[str, tuple[str, ...] | None] = {}
    for hook in ("key_columns", "columns"):
        found[hook] = None
        try:
            names = ask(consumer, hook, table.model, is_own=False)
        except Exception as error:
            # User code: whatever it raises, it has no answer.
            what = type(error).__name__
            problems.append(f"{hook}({table.model.__name__}) raised {what}; return None where it says nothing")
            continue
        if names is not None:
            found[hook] = tuple(named_columns(table, f"{hook}({table.model.__name__})", names, problems))
    member = Member(
        table,
        dialect,
        key_columns=found["key_columns"],
        columns=found["columns"],
        import_column=ids.column(table),
    )
    try:
        member.check()
    except ConfigurationError as error:
        problems += error.problems
    return member


def _own_settings(cls: type, base: type) -> set[str]:
    """Names that the class, or one between it and `base`, defines."""
    return {name for owner in cls.__mro__ if owner not in base.__mro__ for name in vars(owner)}


def _import_problems(cls: type, base: type, ids: ImportIds, members: Iterable[Member]) -> Iterator[str]:
    tables = [member.table for member in members if member.import_column is not None]
    if not tables and ids.name is not None and "bulk_import_id_column" in _own_settings(cls, base):
        yield f"bulk_import_id_column names {ids.name!r}, and neither the table nor one next to it has such a column"
    if ids.generate is not random_import_id:
        return
    length = len(random_import_id())
    for table in tables:
        column = table.column(str(ids.column(table)))
        is_short = isinstance(column.type, types.String) and (column.type.length or length) < length
        if is_short or isinstance(column.type, types.Numeric | types.Integer | types.DateTime | types.Boolean):
            yield (
                f"table {table.table.fullname!r}: column {ids.name!r} ({column.type!r}) cannot hold a UUID as text, "
                f"{length} characters; change its type, or set bulk_import_id_generator"
            )
