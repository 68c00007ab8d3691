"""What a class of model consumers is bound to at start, and every mistake in it that can be seen then."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar, get_args, get_origin

from sqlalchemy import Table
from sqlalchemy.engine.default import DefaultDialect

from deimos_async.consuming.consumer import Circumstances
from deimos_async.database.upserts import UpsertPlan, upsert_plan
from deimos_async.database.upserts.driver import DRIVERS
from deimos_async.errors import ConfigurationError
from deimos_async.events import EventBus
from deimos_async.models.mapping import CREATED_AT, ModelTable, mapped
from deimos_async.models.values import EPOCH_UNITS
from deimos_async.schemas.coercion import as_mapping
from deimos_async.schemas.keys import key_name
from deimos_async.topics import FieldKey

__all__ = ["Binding", "bind"]

logger = logging.getLogger("deimos_async.models")

_HOOKS = {
    "record_attributes": 2,
    "record_key": 1,
    "key_columns": 0,
    "columns": 0,
    "process_message": 1,
    "should_consume": 2,
    "delete_record": 1,
    "record_version": 1,
    "pre_process": 1,
    "deleted_query": 1,
    "post_process_batch": 2,
    "fetch_record": 3,
    "assign_key": 3,
    "destroy_record": 2,
}
"""Hooks, and how many arguments they are called with."""
_ASYNC = frozenset({"pre_process", "post_process_batch", "fetch_record", "destroy_record"})
_BATCH_HOOKS = ("columns", "record_version", "pre_process", "deleted_query", "post_process_batch")
_MESSAGE_HOOKS = ("fetch_record", "assign_key", "destroy_record")
_MISSING = ("bulk_import_id_column", "bulk_import_id_generator", "replace_associations", "save_associations_first")
"""Settings of Deimos's model consumers that this version lacks."""


@dataclass(slots=True, kw_only=True)
class Binding:
    """A model consumer with everything decided.

    Attributes:
        table: The model's.
        overridden: Names of the hooks that the class has defined itself.
        commits_part: Whether what could be written of a batch is committed although other messages failed.
        columns: Columns that a stored row gets; None: all.
    """

    name: str
    table: ModelTable
    dialect: Any
    events: EventBus
    overridden: frozenset[str]
    commits_part: bool
    version_column: str | None = None
    deleted_column: str | None = None
    tombstone_values: Mapping[str, Any] = field(default_factory=dict)
    columns: tuple[str, ...] | None = None
    _plans: dict[bool, UpsertPlan] = field(default_factory=dict)

    def plan(self, *, mirrors_creation: bool = False) -> UpsertPlan:
        """How rows are written.

        Made with the first batch, not at start: types may depend on what the server says when it is connected to.

        Args:
            mirrors_creation: Whether rows say when they were created, so that a stored row takes that over, too.
        """
        found = self._plans.get(mirrors_creation)
        if found is None:
            found = self._plans[mirrors_creation] = self.make_plan(mirrors_creation=mirrors_creation)
        return found

    def make_plan(self, *, mirrors_creation: bool = False) -> UpsertPlan:
        """A new plan. Raises ConfigurationError with every mistake in the columns."""
        table = self.table
        keeps_creation = CREATED_AT in table.managed and not mirrors_creation
        return upsert_plan(
            table.table,
            table.key_columns,
            None if self.columns is None else (*self.columns, *table.managed),
            dialect=self.dialect,
            insert_only=(CREATED_AT,) if keeps_creation else (),
            version_column=self.version_column,
            deleted_column=self.deleted_column,
            tombstone_values=self.tombstone_values or None,
        )

    def version_of(self, payload: Any) -> Any:
        """The payload's value of the version's column; None if it has none."""
        fields = as_mapping(payload)
        if fields is None:
            return None
        return next(
            (value for name, value in fields.items() if self.table.names.get(name) == self.version_column), None
        )


def bind(consumer: Any, base: type, circumstances: Circumstances) -> None:
    """Bind an instance of a subclass of `base` (`ModelConsumer`): sets its `_bound`.

    Raises:
        ConfigurationError: Every mistake in the class, its model and its hooks.
    """
    cls = type(consumer)
    problems = [*_check_settings(cls, circumstances), *_check_hooks(consumer, base)]
    table = _table(consumer, base, circumstances, problems)
    if problems or table is None:
        raise _mistakes(circumstances, problems)
    overridden = frozenset(name for name in _HOOKS if getattr(cls, name) is not getattr(base, name))
    binding = consumer._bound = Binding(
        name=circumstances.name,
        table=table,
        dialect=circumstances.dialect,
        events=circumstances.events,
        overridden=overridden,
        # Offsets that are in the transaction speak of the whole batch.
        commits_part=cls.batch_message_fallback and circumstances.delivery != "effectively_once",
    )
    _decide_columns(consumer, binding, circumstances, problems)
    if not problems and circumstances.dialect is not None and (circumstances.batch or _has_bulk_writes(circumstances)):
        try:
            binding.make_plan()
        except ConfigurationError as error:
            problems += error.problems
    if problems:
        raise _mistakes(circumstances, problems)
    unused = overridden.intersection(_MESSAGE_HOOKS if circumstances.batch else _BATCH_HOOKS)
    if unused:
        mode = "batch mode" if circumstances.batch else "message mode"
        logger.warning("consumer %r: %s not called in %s", circumstances.name, ", ".join(sorted(unused)), mode)


def _mistakes(circumstances: Circumstances, problems: Sequence[str]) -> ConfigurationError:
    return ConfigurationError(*(f"consumer {circumstances.name!r}: {problem}" for problem in problems))


def _has_bulk_writes(circumstances: Circumstances) -> bool:
    return (circumstances.dialect.name, circumstances.dialect.driver) in DRIVERS


def _table(consumer: Any, base: type, circumstances: Circumstances, problems: list[str]) -> ModelTable | None:
    cls = type(consumer)
    model = _model(cls, base)
    if model is None:
        problems.append(f"it names no model; derive it from ModelConsumer[Model], not from {base.__name__} alone")
        return None
    mapper = mapped(model)
    if mapper is None:
        what = getattr(model, "__name__", repr(model))
        problems.append(f"{what} is no class that SQLAlchemy maps; ModelConsumer[...] takes a declarative model")
        return None
    if not isinstance(mapper.local_table, Table) or len(mapper.tables) != 1:
        problems.append(f"{model.__name__} is not mapped to one table, so its rows cannot be written in bulk")
        return None
    if problems:
        return None
    return ModelTable(
        mapper,
        circumstances.dialect or DefaultDialect(),
        epoch_unit=cls.epoch_unit,
        truncate=cls.truncate_columns,
        timestamps_from_payload=cls.timestamps_from_payload,
    )


def _model(cls: type, base: type) -> Any:
    """What stands in the brackets of `ModelConsumer[...]`, of the class or of the nearest one it derives from."""
    for owner in cls.__mro__:
        for written in owner.__dict__.get("__orig_bases__", ()):
            origin = get_origin(written)
            if isinstance(origin, type) and issubclass(origin, base):
                found = get_args(written)[0]
                if not isinstance(found, TypeVar):
                    return found
    return None


def _check_settings(cls: Any, circumstances: Circumstances) -> Iterator[str]:
    for name in ("compacted", "batch_message_fallback", "truncate_columns", "timestamps_from_payload"):
        if not isinstance(getattr(cls, name), bool):
            yield f"{name}={getattr(cls, name)!r} is not possible; True or False"
    size = cls.max_db_batch_size
    if size is not None and (isinstance(size, bool) or not isinstance(size, int) or size < 1):
        yield f"max_db_batch_size={size!r} is not possible; a whole number of at least 1, or None"
    if cls.epoch_unit not in EPOCH_UNITS:
        yield f"epoch_unit={cls.epoch_unit!r} is not possible; one of {', '.join(map(repr, EPOCH_UNITS))}"
    for name in ("version_column", "deleted_column"):
        value = getattr(cls, name)
        if value is not None and not isinstance(value, str):
            yield f"{name}={value!r} is not possible; the name of a column, or None"
        elif value is not None and not circumstances.batch:
            yield f"{name} needs batch mode; declare batch=True"
    if not isinstance(cls.tombstone_values, Mapping):
        yield f"tombstone_values={cls.tombstone_values!r} is not possible; a mapping of columns to values"
    for name in _MISSING:
        if getattr(cls, name, None):
            yield f"this version does not have {name}"


def _check_hooks(consumer: Any, base: type) -> Iterator[str]:
    for name, count in _HOOKS.items():
        hook = getattr(consumer, name)
        if not callable(hook):
            yield f"{name} must be a method"
            continue
        if inspect.iscoroutinefunction(hook) is not (name in _ASYNC):
            yield f"{name} must be {'async def' if name in _ASYNC else 'a plain method, not async def'}"
        try:
            inspect.signature(hook).bind(*[None] * count)
        except TypeError:
            wanted = ", ".join(inspect.signature(getattr(base, name)).parameters)
            yield f"{name} is called with other arguments than it takes; write it as {name}({wanted})"


def _decide_columns(consumer: Any, binding: Binding, circumstances: Circumstances, problems: list[str]) -> None:
    """Ask the hooks that name columns, and translate what they, and the settings, say."""
    table, cls = binding.table, type(consumer)

    def keys(option: str, names: Any) -> list[str]:
        if isinstance(names, str) or not isinstance(names, Sequence):
            problems.append(f"{option} must be a list of names of columns, not {type(names).__name__}")
            return []
        unknown = [name for name in names if name not in table.names]
        if unknown:
            what = ", ".join(map(repr, unknown))
            problems.append(f"{option} names {what}, and table {table.table.fullname!r} has no such column")
        return [table.names[name] for name in names if name in table.names]

    def key(option: str) -> str | None:
        name = getattr(cls, option)
        return next(iter(keys(option, [name])), None) if name is not None else None

    binding.version_column, binding.deleted_column = key("version_column"), key("deleted_column")
    binding.tombstone_values = dict(
        zip(keys("tombstone_values", list(cls.tombstone_values)), cls.tombstone_values.values(), strict=False)
    )
    key_columns = keys("key_columns()", consumer.key_columns())
    if "columns" in binding.overridden:
        binding.columns = tuple(keys("columns()", consumer.columns()))
    deletes = not binding.overridden & {"delete_record", "deleted_query"}
    if binding.version_column is not None and binding.deleted_column is None and deletes:
        problems.append(
            "version_column needs deleted_column: a row that is gone leaves no trace of its version, and an older "
            "message could bring it back; or override delete_record where nothing is deleted"
        )
    key_config = circumstances.key
    table.identify(
        key_columns,
        key_field=key_name(key_config.field) if isinstance(key_config, FieldKey) else None,
        others=(binding.version_column, binding.deleted_column),
    )
