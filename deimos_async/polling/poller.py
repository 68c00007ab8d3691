"""`Poller`: what classes of pollers derive from, and what an application's pollers are, with everything decided."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from sqlalchemy import Column, Select, Table
from sqlalchemy.orm import Mapper

from deimos_async.database.polling.pages import is_time
from deimos_async.models.classes import hook_problems
from deimos_async.models.columns import ModelColumns, columns_of
from deimos_async.models.mapping import mapped
from deimos_async.models.producer import ModelProducer
from deimos_async.specs import PollerSpec

__all__ = ["PlannedPoller", "Poller", "plan_pollers"]

_HOOKS = {"producers": 0, "poll_query": 1}
_LONGEST_NAME = 191


class Poller:
    """What a poller reads and who sends it: `app.poller(..., poller_class=MyPoller)`. Made without arguments.

    Source: Deimos 2.6, subclasses of DbPoller::Base (`producers`, `poll_query`).
    """

    _given: Sequence[ModelProducer[Any]] = ()

    def producers(self) -> Sequence[ModelProducer[Any]]:
        """Producers that every row goes to, in this order; the first one's model is read. Default: those given."""
        return self._given

    def poll_query(self, query: Select[Any]) -> Select[Any]:
        """The rows that are wanted: a select of the model, to be narrowed. Default: the first producer's.

        Times, order and length of a page are added afterwards.
        """
        return self.producers()[0].poll_query(query)


@dataclass(frozen=True, slots=True)
class PlannedPoller:
    """A declared poller with everything decided."""

    spec: PollerSpec
    name: str
    poller: Poller
    producers: tuple[ModelProducer[Any], ...]
    mapper: Mapper[Any]

    @property
    def columns(self) -> ModelColumns:
        """The model's columns."""
        return columns_of(self.mapper)

    @property
    def topics(self) -> str:
        """Names of the topics, for logs."""
        return ", ".join(dict.fromkeys(producer.topic.name for producer in self.producers))

    @property
    def known_as(self) -> tuple[str, ...]:
        """Names by which a Deimos has kept its cursor."""
        return tuple(dict.fromkeys((self.name, type(self.poller).__name__, type(self.producers[0]).__name__)))

    @property
    def has_query(self) -> bool:
        """Whether somebody says which rows are wanted."""
        return (
            type(self.poller).poll_query is not Poller.poll_query
            or type(self.producers[0]).poll_query is not ModelProducer.poll_query
        )

    def column(self, attribute: str) -> Column[Any]:
        """The column of an attribute."""
        found: Any = self.mapper.column_attrs[attribute].columns[0]
        assert isinstance(found, Column)
        return found


def plan_pollers(specs: Iterable[PollerSpec], producers: Sequence[Any], problems: list[str]) -> list[PlannedPoller]:
    """Decide what can be decided; adds every mistake to `problems`, a sentence each.

    Args:
        producers: All of the application.
    """
    planned = []
    names: set[str] = set()
    for spec in specs:
        found: list[str] = []
        poller = _plan(spec, producers, found)
        name = spec.name if poller is None else poller.name
        where = f"poller {name!r}" if name else "poller"
        problems += (f"{where}: {problem}" for problem in found)
        if poller is None or found:
            continue
        if poller.name in names:
            problems.append(f"{where}: there are two of that name; give one of them another, by name=...")
        names.add(poller.name)
        planned.append(poller)
    return planned


def _plan(spec: PollerSpec, known: Sequence[Any], problems: list[str]) -> PlannedPoller | None:
    poller = spec.poller_class() if spec.poller_class is not None else Poller()
    if not isinstance(poller, Poller):
        problems.append(f"poller_class={spec.poller_class!r} is not possible; give a subclass of Poller")
        return None
    poller._given = spec.producers
    problems += hook_problems(poller, Poller, _HOOKS, ())
    if problems:
        return None
    producers = tuple(poller.producers())
    if not producers:
        problems.append("it has no producers; give them to app.poller(...), or define producers() in its poller_class")
        return None
    for producer in producers:
        if not isinstance(producer, ModelProducer):
            problems.append(
                f"{type(producer).__name__} is no ModelProducer; pollers send rows, app.producer(topic, WidgetProducer)"
            )
        elif not any(producer is other for other in known):
            problems.append(f"{type(producer).__name__} is no producer of this application")
    if problems:
        return None
    mapper = mapped(producers[0]._model)
    if mapper is None:
        problems.append(f"{type(producers[0]).__name__} names no model; derive it from ModelProducer[Row]")
        return None
    default = type(poller) if spec.poller_class is not None and not spec.producers else type(producers[0])
    planned = PlannedPoller(spec, spec.name or default.__name__, poller, producers, mapper)
    planned = replace(planned, spec=_named_by_attributes(spec, mapper))
    problems += _check_columns(planned)
    if len(planned.name) > _LONGEST_NAME:
        problems.append(f"its name has {len(planned.name)} characters; at most {_LONGEST_NAME} are possible")
    return planned


def _named_by_attributes(spec: PollerSpec, mapper: Mapper[Any]) -> PollerSpec:
    """Columns may be named by their own names, as well."""
    aliases = columns_of(mapper).aliases

    def attribute(name: str | None) -> Any:
        return aliases.get(name, name) if name is not None else None

    return replace(
        spec,
        timestamp_column=attribute(spec.timestamp_column),
        state_column=attribute(spec.state_column),
        publish_timestamp_column=attribute(spec.publish_timestamp_column),
    )


def _check_columns(planned: PlannedPoller) -> Iterable[str]:
    spec, mapper = planned.spec, planned.mapper
    model = mapper.class_.__name__
    if not isinstance(mapper.local_table, Table) or mapper.inherits is not None:
        yield f"{model} is not mapped to a table of its own"
        return
    names = planned.columns.names
    for option in ("timestamp_column", "state_column", "publish_timestamp_column"):
        name = getattr(spec, option)
        if name is not None and name not in names:
            yield f"{option}={name!r}, and {model} has no such column"
            continue
        if name is not None and option != "state_column" and not is_time(planned.column(name)):
            yield f"{option}={name!r} of {model} is no DateTime"
    time = spec.timestamp_column
    if time in names and planned.column(time).nullable:
        yield (
            f"timestamp_column={time!r} of {model} may be NULL, and rows without it would never be sent; "
            "declare it with nullable=False, and set it in every row"
        )
    if spec.mode == "state" and not planned.has_query and (spec.state_column is None or spec.published_state is None):
        yield (
            "mode='state' needs state_column= and published_state=, or a poll_query that says which rows are to be sent"
        )
