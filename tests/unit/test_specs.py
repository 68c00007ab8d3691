"""Signatures and options of consumers."""

from __future__ import annotations

import functools
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime
from typing import Annotated, Any

import pytest
from sqlalchemy.ext.asyncio import AsyncSession

from deimos_async.errors import ConfigurationError
from deimos_async.message import Message
from deimos_async.specs import ConsumerSpec, Depends, Provide, TakeMessage, TakeSession, check_consumer, handler_spec


class Order: ...


def connection() -> str:
    return "connection"


async def user(message: Message, session: AsyncSession) -> str:
    return "user"


def opened() -> Iterator[int]:
    yield 1


async def opened_async(inner: Annotated[int, Depends(opened)]) -> AsyncIterator[int]:
    yield inner


async def bare(message): ...  # type: ignore[no-untyped-def]
async def plain(message: Message) -> None: ...
async def typed(message: Message[Order]) -> None: ...
async def batch(messages: list[Message[Order]]) -> None: ...
def synchronous(message: Message) -> None: ...
async def injected(
    message: Message,
    session: AsyncSession,
    name: Annotated[str, Depends(connection)],
    who: Annotated[str, Depends(user)],
    number: Annotated[int, Depends(opened_async)],
    limit: int = 3,
) -> None: ...


@pytest.mark.parametrize(
    ("function", "is_batch", "payload", "is_async"),
    [
        (bare, False, Any, True),
        (bare, True, Any, True),
        (plain, False, Any, True),
        (typed, False, Order, True),
        (batch, True, Order, True),
        (synchronous, False, Any, False),
        (functools.partial(plain), False, Any, True),
    ],
)
def test_first_parameter_gives_the_payload_type(function: Any, is_batch: bool, payload: Any, is_async: bool) -> None:
    spec = handler_spec(function, batch=is_batch, name="f")
    assert (spec.payload_type, spec.is_async, spec.arguments) == (payload, is_async, ())


def test_further_parameters_are_resolved_once_and_defaults_are_left_alone() -> None:
    spec = handler_spec(injected, batch=False, name="f")
    sources = {argument.name: argument.source for argument in spec.arguments}
    assert list(sources) == ["session", "name", "who", "number"]
    assert sources["session"] == TakeSession()
    assert sources["name"] == Provide(connection, "plain", ())
    who = sources["who"]
    assert isinstance(who, Provide)
    assert (who.kind, [argument.source for argument in who.arguments]) == ("async", [TakeMessage(), TakeSession()])
    number = sources["number"]
    assert isinstance(number, Provide)
    assert number.kind == "async_generator"
    assert spec.needs_session


async def no_parameter() -> None: ...
async def unknown_further(message: Message, what: int) -> None: ...
async def takes_list(messages: list[Message]) -> None: ...
async def takes_text(message: str) -> None: ...
async def unresolvable(message: Missing) -> None: ...  # type: ignore[name-defined]  # noqa: F821
async def generator(message: Message) -> AsyncIterator[None]:
    yield


async def default_depends(message: Message, name: str = Depends(connection)) -> None: ...  # type: ignore[assignment]


def own(inner: Annotated[int, Depends(lambda: 1)]) -> int:
    return inner


own.__annotations__["inner"] = Annotated[int, Depends(own)]


async def circular(message: Message, number: Annotated[int, Depends(own)]) -> None: ...


@pytest.mark.parametrize(
    ("function", "is_batch", "text"),
    [
        (no_parameter, False, "takes no parameter"),
        (unknown_further, False, "'what' cannot be filled"),
        (takes_list, False, "batch=True"),
        (plain, True, "list[Message]"),
        (takes_text, False, "must take Message or Message[Model]"),
        (unresolvable, False, "cannot be resolved"),
        (generator, False, "cannot be a generator"),
        (default_depends, False, "Annotated[T, Depends(provider)]"),
        (circular, False, "depends on itself"),
    ],
)
def test_wrong_signature_names_the_consumer_and_the_change(function: Any, is_batch: bool, text: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        handler_spec(function, batch=is_batch, name="bill")
    assert "consumer 'bill'" in str(caught.value)
    assert text in str(caught.value)


def test_fastapi_depends_by_mistake_is_told() -> None:
    from fastapi import Depends as FastApiDepends

    async def annotated(message: Message, name: Annotated[str, FastApiDepends(connection)]) -> None: ...

    annotated.__annotations__["name"] = Annotated[str, FastApiDepends(connection)]
    annotated.__annotations__["message"] = Message
    with pytest.raises(ConfigurationError, match="FastAPI's Depends; import Depends from deimos_async"):
        handler_spec(annotated, batch=False, name="bill")


def test_all_mistakes_of_a_signature_are_reported_together() -> None:
    async def two(message: str, what: int) -> None: ...

    with pytest.raises(ConfigurationError) as caught:
        handler_spec(two, batch=False, name="bill")
    assert len(caught.value.problems) == 2


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"concurrency": 0}, "at least 1"),
        ({"concurrency": True}, "at least 1"),
        ({"max_batch": "5"}, "at least 1"),
        ({"max_wait": -1}, "seconds"),
        ({"ordering": "keys"}, "'partition', 'key', 'none'"),
        ({"ordering": "key", "batch": True}, "one partition"),
        ({"delivery": "exactly_once"}, "'at_least_once'"),
        ({"delivery": "effectively_once", "ordering": "none"}, "one offset a partition"),
        ({"on_error": "skip"}, "OnError"),
        ({"start_from": "beginning"}, "'earliest', 'latest'"),
        ({"start_from": datetime(2026, 1, 1)}, "aware"),  # noqa: DTZ001
        ({"group": ""}, "consumers.group"),
        ({"fatal_error": 5}, "callable"),
    ],
)
def test_wrong_option_names_the_consumer_and_the_change(options: dict[str, Any], text: str) -> None:
    problems = check_consumer(ConsumerSpec(target=plain, topic="orders", **options))
    assert len(problems) == 1
    assert problems[0].startswith("consumer 'plain': ")
    assert text in problems[0]


def test_valid_options_have_no_problems() -> None:
    spec = ConsumerSpec(
        target=plain,
        topic="orders",
        group="g",
        concurrency=8,
        ordering="key",
        start_from=datetime(2026, 1, 1, tzinfo=UTC),
    )
    assert check_consumer(spec) == []
