"""What is told of pollers before they run: options that cannot be, and what a model lacks."""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import DateTime, Integer, String
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from deimos_async import ConfigurationError, Deimos, Key, ModelProducer, Poller, Producer, Router

SCHEMA = {
    "type": "record",
    "name": "Widget",
    "namespace": "com.acme",
    "fields": [{"name": "id", "type": "int"}],
}


class Base(DeclarativeBase):
    pass


class Widget(Base):
    __tablename__ = "widgets"
    id: Mapped[int] = mapped_column(primary_key=True)
    updated_at: Mapped[datetime] = mapped_column(DateTime)
    loose_at = mapped_column(DateTime)
    sent_at = mapped_column("sent_on", DateTime)
    state = mapped_column(String(10))
    count: Mapped[int] = mapped_column(Integer)


class WidgetProducer(ModelProducer[Widget]):
    pass


@pytest.fixture
def app(tmp_path: Path) -> Deimos:
    path = tmp_path / "com" / "acme" / "Widget.avsc"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(SCHEMA))
    settings = {"embedded": True, "schema.path": str(tmp_path), "producers.backend": "test"}
    return Deimos(settings, metrics=None, tracing=None)


def producer(app: Deimos, cls: Any = WidgetProducer) -> Any:
    return app.producer(app.topic("widgets", schema="com.acme.Widget", key=Key.field("id")), cls)


async def problems(app: Deimos) -> tuple[str, ...]:
    with pytest.raises(ConfigurationError) as caught:
        async with app.running(only=("producers",)):
            pass
    return caught.value.problems


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"name": ""}, "name='' is not possible; give a text"),
        ({"mode": "times"}, "mode='times' is not possible; one of 'time', 'state'"),
        ({"run_every": 0}, "run_every=0 is not possible; give seconds, above 0"),
        ({"run_every": float("inf")}, "run_every=inf is not possible"),
        ({"delay_time": -1}, "delay_time=-1 is not possible; give seconds, 0 or more"),
        ({"retries": -1}, "retries=-1 is not possible; give a whole number of at least 0, or None for ever"),
        ({"retries": True}, "retries=True is not possible"),
        ({"full_table": 1}, "full_table=1 is not possible; True or False"),
        ({"timestamp_column": None}, "timestamp_column=None is not possible; give the name of a column"),
        ({"state_column": 5}, "state_column=5 is not possible; give the name of a column"),
        ({"poller_class": Poller()}, "is not possible; give a subclass of Poller"),
        ({"mode": "state", "full_table": True}, "full_table=True is not possible; it belongs to mode='time'"),
        ({"mode": "state", "start_from_beginning": False}, "it belongs to mode='time'"),
        ({"state_column": "state"}, "state_column='state' is not possible; it belongs to mode='state'"),
        ({"mode": "state", "published_state": "x"}, "published_state='x' is not possible; give state_column=, too"),
    ],
)
def test_option_that_cannot_be_is_told_at_once(options: dict[str, Any], problem: str) -> None:
    router = Router()
    with pytest.raises(ConfigurationError) as caught:
        router.poller(Producer(), **options)
    assert any(problem in found for found in caught.value.problems)
    assert not router._declared.pollers


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"timestamp_column": "changed_at"}, "timestamp_column='changed_at', and Widget has no such column"),
        ({"timestamp_column": "count"}, "timestamp_column='count' of Widget is no DateTime"),
        ({"timestamp_column": "loose_at"}, "timestamp_column='loose_at' of Widget may be NULL"),
        ({"mode": "state"}, "mode='state' needs state_column= and published_state=, or a poll_query"),
        (
            {"mode": "state", "state_column": "status", "published_state": "x"},
            "state_column='status', and Widget has no such column",
        ),
        (
            {
                "mode": "state",
                "state_column": "state",
                "published_state": "x",
                "publish_timestamp_column": "count",
            },
            "publish_timestamp_column='count' of Widget is no DateTime",
        ),
        ({"name": "x" * 192}, "its name has 192 characters; at most 191 are possible"),
    ],
)
async def test_what_the_model_lacks_is_told_at_start(app: Deimos, options: dict[str, Any], problem: str) -> None:
    app.poller(producer(app), **options)
    (found,) = await problems(app)
    assert found.startswith("poller ")
    assert problem in found


async def test_columns_may_be_named_by_their_own_names(app: Deimos) -> None:
    app.poller(
        producer(app),
        mode="state",
        state_column="state",
        published_state="x",
        publish_timestamp_column="sent_on",
    )
    async with app.running(only=("producers",)):
        assert app._running is not None
        assert app._running.plan is not None
        (planned,) = app._running.plan.pollers
        assert planned.spec.publish_timestamp_column == "sent_at"
        assert planned.name == "WidgetProducer"


async def test_poller_needs_model_producers_of_its_application(app: Deimos) -> None:
    class NoModel(ModelProducer):
        pass

    class Nothing(Poller):
        pass

    class Strange(Poller):
        def poll_query(self, query: Any, more: Any) -> Any:
            return query

    other = Deimos({"embedded": True}, metrics=None, tracing=None)
    app.poller(name="a")
    app.poller(producer(app, Producer), name="b")
    app.poller(producer(other), name="c")
    app.poller(producer(app, NoModel), name="d")
    app.poller(name="e", poller_class=Nothing)
    app.poller(producer(app), name="f", poller_class=Strange)
    app.poller(producer(app), name="g", poller_class=dict)
    found = await problems(app)
    assert [problem.partition(":")[0] for problem in found] == [f"poller '{name}'" for name in "abcdef"] + [
        "poller 'g'"
    ]
    assert "it has no producers; give them to app.poller(...)" in found[0]
    assert "Producer is no ModelProducer" in found[1]
    assert "WidgetProducer is no producer of this application" in found[2]
    assert "NoModel names no model; derive it from ModelProducer[Row]" in found[3]
    assert "it has no producers" in found[4]
    assert "poll_query is called with other arguments than it takes" in found[5]
    assert "give a subclass of Poller" in found[6]


async def test_names_are_unique(app: Deimos) -> None:
    app.poller(producer(app))
    app.poller(producer(app))
    assert await problems(app) == (
        "poller 'WidgetProducer': there are two of that name; give one of them another, by name=...",
    )


async def test_pollers_need_a_database(app: Deimos) -> None:
    app.poller(producer(app))
    with app.with_settings({"embedded": False, "schema.backend": "avro_local"}):
        assert "pollers read tables, but there is no database" in (await problems(app))[0]


async def test_pollers_alone_need_a_poller(app: Deimos) -> None:
    producer(app)
    with pytest.raises(ConfigurationError, match=r"the application has no pollers; declare them with app\.poller"):
        async with app.running(only=("pollers",)):
            pass


async def test_router_brings_its_pollers_and_takes_none_afterwards(app: Deimos) -> None:
    router = Router()
    made = router.producer(router.topic("widgets", schema="com.acme.Widget", key=Key.field("id")), WidgetProducer)
    router.poller(made, name="widgets", run_every=5)
    app.include(router)
    async with app.running(only=("producers",)):
        assert app._running is not None
        assert app._running.plan is not None
        assert [planned.name for planned in app._running.plan.pollers] == ["widgets"]
    with pytest.raises(ConfigurationError, match="poller 'late' is declared after its router was included"):
        router.poller(made, name="late")


async def test_pollers_do_not_run_where_producers_are_stopped(app: Deimos, caplog: pytest.LogCaptureFixture) -> None:
    app.poller(producer(app))
    with app.with_settings({"producers.disabled": True}):
        async with app.running():
            assert app.health().pollers == ()
    assert "pollers do not run, as producers are stopped" in caplog.text
