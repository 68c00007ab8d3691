"""What a class of model consumers is bound to at start, and every mistake in it that can be seen then."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Table

from deimos_async.consuming.consumer import Circumstances
from deimos_async.database.upserts import UpsertPlan, upsert_plan
from deimos_async.database.upserts.driver import DRIVERS
from deimos_async.errors import ConfigurationError
from deimos_async.events import EventBus
from deimos_async.models.association_settings import associations_of, model_table
from deimos_async.models.associations import Associations
from deimos_async.models.classes import model_of
from deimos_async.models.hooks import ask, named_columns, setting, takes
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
_TAKE_MODEL = frozenset({"key_columns", "columns"})
"""Hooks that may take one argument more: the class whose columns are asked for."""


@dataclass(slots=True, kw_only=True)
class Binding:
    """A model consumer with everything decided.

    Attributes:
        table: The model's.
        overridden: Names of the hooks that the class has defined itself.
        commits_part: Whether what could be written of a batch is committed although other messages failed.
        columns: Columns that a stored row gets; None: all.
        associations: How rows of other tables are written with the model's.
        may_relate: Whether messages of batches can have such rows at all.
        import_column: Key of the model's column for them; None: it has none.
        max_db_batch_size: Most rows written at once; None: no limit.
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
    associations: Associations = field(init=False)
    may_relate: bool = False
    import_column: str | None = None
    max_db_batch_size: int | None = None
    _plans: dict[bool, UpsertPlan] = field(default_factory=dict)

    def plan(self, mirrors_creation: bool = False) -> UpsertPlan:
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
            None if self.columns is None else (*self.columns, *table.managed, *self._own_columns()),
            dialect=self.dialect,
            insert_only=(CREATED_AT,) if keeps_creation else (),
            version_column=self.version_column,
            deleted_column=self.deleted_column,
            tombstone_values=self.tombstone_values or None,
        )

    def _own_columns(self) -> tuple[str, ...]:
        return () if self.import_column is None else (self.import_column,)

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
    binding.may_relate = bool(table.relations) and bool(overridden & {"record_attributes", "record_key"})
    binding.associations = associations = associations_of(
        consumer,
        base,
        circumstances,
        problems,
        table=table,
        columns=binding.columns,
        plan=binding.plan,
        reserved={*table.managed, binding.version_column, binding.deleted_column},
        relates=binding.may_relate,
    )
    binding.import_column = associations.root.import_column
    binding.max_db_batch_size = setting(cls, circumstances, "max_db_batch_size")
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
    model = model_of(cls, base)
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
    return model_table(cls, mapper, circumstances)


def _check_settings(cls: Any, circumstances: Circumstances) -> Iterator[str]:
    for name in ("compacted", "batch_message_fallback", "truncate_columns", "timestamps_from_payload"):
        if not isinstance(getattr(cls, name), bool):
            yield f"{name}={getattr(cls, name)!r} is not possible; True or False"
    for name in ("replace_associations", "save_associations_first"):
        if not isinstance(setting(cls, circumstances, name), bool):
            yield f"{name}={setting(cls, circumstances, name)!r} is not possible; True or False"
    column = setting(cls, circumstances, "bulk_import_id_column")
    if column is not None and not (isinstance(column, str) and column):
        yield f"bulk_import_id_column={column!r} is not possible; the name of a column, or None"
    if setting(cls, circumstances, "save_associations_first") is True and cls.version_column is not None:
        yield (
            "version_column and save_associations_first exclude each other: rows that others belong to have no "
            "version, and an older message would overwrite them"
        )
    size = setting(cls, circumstances, "max_db_batch_size")
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


def _check_hooks(consumer: Any, base: type) -> Iterator[str]:
    for name, count in _HOOKS.items():
        hook = getattr(consumer, name)
        if not callable(hook):
            yield f"{name} must be a method"
            continue
        if inspect.iscoroutinefunction(hook) is not (name in _ASYNC):
            yield f"{name} must be {'async def' if name in _ASYNC else 'a plain method, not async def'}"
        if not takes(hook, count) and not (name in _TAKE_MODEL and takes(hook, count + 1)):
            wanted = ", ".join(inspect.signature(getattr(base, name)).parameters)
            yield f"{name} is called with other arguments than it takes; write it as {name}({wanted})"


def _decide_columns(consumer: Any, binding: Binding, circumstances: Circumstances, problems: list[str]) -> None:
    """Ask the hooks that name columns, and translate what they, and the settings, say."""
    table, cls = binding.table, type(consumer)

    def keys(option: str, names: Any) -> list[str]:
        return named_columns(table, option, names, problems)

    def key(option: str) -> str | None:
        name = getattr(cls, option)
        return next(iter(keys(option, [name])), None) if name is not None else None

    binding.version_column, binding.deleted_column = key("version_column"), key("deleted_column")
    binding.tombstone_values = dict(
        zip(keys("tombstone_values", list(cls.tombstone_values)), cls.tombstone_values.values(), strict=False)
    )
    names = ask(consumer, "key_columns", table.model, is_own=True)
    key_columns = list(table.key_columns) if names is None else keys("key_columns()", names)
    if "columns" in binding.overridden and (names := ask(consumer, "columns", table.model, is_own=True)) is not None:
        binding.columns = tuple(keys("columns()", names))
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
