"""The event bus."""

from __future__ import annotations

import asyncio

import pytest

from deimos_async.events import EVENT_NAMES, Event, EventBus

NAME = "deimos.encode_message"
OTHER = "deimos.error"


@pytest.fixture
def bus() -> EventBus:
    return EventBus()


def test_subscribers_are_called_in_order_of_subscription(bus: EventBus) -> None:
    calls: list[tuple[str, Event]] = []
    bus.subscribe(NAME, lambda event: calls.append(("first", event)))
    bus.subscribe(NAME, lambda event: calls.append(("second", event)))
    bus.subscribe(OTHER, lambda event: calls.append(("other", event)))
    error = ValueError()
    bus.emit(NAME, {"topic": "orders"}, duration=0.5, error=error)
    event = Event(NAME, {"topic": "orders"}, 0.5, error)
    assert calls == [("first", event), ("second", event)]
    assert event["topic"] == "orders"


@pytest.mark.parametrize("name", sorted(EVENT_NAMES))
def test_every_name_can_be_subscribed_and_told(bus: EventBus, name: str) -> None:
    told: list[str] = []
    bus.subscribe(name, lambda event: told.append(event.name))
    bus.emit(name, {})
    assert told == [name]


def test_unknown_name_is_refused_with_the_known_ones(bus: EventBus) -> None:
    for call in (
        lambda: bus.subscribe("deimos.encode", print),
        lambda: bus.emit("deimos.encode", {}),
        lambda: bus.clear("deimos.encode"),
    ):
        with pytest.raises(
            ValueError, match=r"unknown event 'deimos\.encode'; the events are .*deimos\.encode_message"
        ):
            call()


def test_cancel_ends_one_subscription_however_often_it_is_called(bus: EventBus) -> None:
    calls: list[Event] = []
    first = bus.subscribe(NAME, calls.append)
    second = bus.subscribe(NAME, calls.append)
    second.cancel()
    second.cancel()
    bus.emit(NAME, {})
    assert len(calls) == 1
    first.cancel()
    bus.emit(NAME, {})
    assert len(calls) == 1


def test_cancel_after_clear_leaves_a_newer_subscription_of_the_same_callback(bus: EventBus) -> None:
    calls: list[Event] = []
    old = bus.subscribe(NAME, calls.append)
    bus.clear(NAME)
    bus.subscribe(NAME, calls.append)
    old.cancel()
    bus.emit(NAME, {})
    assert len(calls) == 1


def test_clear_forgets_one_event_or_all(bus: EventBus) -> None:
    bus.subscribe(NAME, print)
    bus.subscribe(OTHER, print)
    bus.clear(NAME)
    assert (bus.wants(NAME), bus.wants(OTHER)) == (False, True)
    bus.clear()
    assert (bus.wants(NAME), bus.wants(OTHER)) == (False, False)


def test_subscriber_may_cancel_itself_and_subscribe_others_while_it_is_called(bus: EventBus) -> None:
    calls: list[str] = []

    def once(event: Event) -> None:
        calls.append("once")
        subscription.cancel()
        bus.subscribe(NAME, lambda event: calls.append("late"))

    subscription = bus.subscribe(NAME, once)
    bus.subscribe(NAME, lambda event: calls.append("always"))
    bus.emit(NAME, {})
    assert calls == ["once", "always"]
    bus.emit(NAME, {})
    assert calls == ["once", "always", "always", "late"]


def test_error_of_a_subscriber_reaches_the_code_that_told(bus: EventBus) -> None:
    def broken(event: Event) -> None:
        raise LookupError("broken subscriber")

    bus.subscribe(NAME, broken)
    with pytest.raises(LookupError, match="broken subscriber"):
        bus.emit(NAME, {})


def test_measure_tells_after_the_block_with_its_duration(bus: EventBus) -> None:
    told: list[Event] = []
    bus.subscribe(NAME, told.append)
    payload: dict[str, object] = {"topic": "orders"}
    with bus.measure(NAME, payload):
        assert told == []
        payload["count"] = 3
    (event,) = told
    assert (event.payload, event.error) == ({"topic": "orders", "count": 3}, None)
    assert event.duration is not None


@pytest.mark.parametrize("error", [ValueError("x"), asyncio.CancelledError()])
def test_measure_tells_the_error_of_the_block_and_lets_it_go_on(bus: EventBus, error: BaseException) -> None:
    told: list[Event] = []
    bus.subscribe(NAME, told.append)
    with pytest.raises(type(error)) as raised, bus.measure(NAME, {}):
        raise error
    assert raised.value is error
    assert [event.error for event in told] == [error]


def test_without_subscribers_measure_tells_nothing_and_the_error_goes_on(bus: EventBus) -> None:
    with pytest.raises(ValueError, match="x"), bus.measure(NAME, {}):
        raise ValueError("x")


def test_buses_share_nothing(bus: EventBus) -> None:
    bus.subscribe(NAME, print)
    assert not EventBus().wants(NAME)
