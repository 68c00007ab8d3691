"""The error tree: families, texts, and that every error survives a pickle."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Iterator
from typing import Any

import pytest

from deimos_async import errors
from deimos_async.errors import (
    BatchWriteError,
    BrokerError,
    BrokerUnavailableError,
    CommitError,
    ConfigurationError,
    DatabaseError,
    DatabaseUnavailableError,
    DecodeError,
    DeimosError,
    DeliveryError,
    EncodeError,
    FieldError,
    HandlerError,
    LifecycleError,
    NotRunningError,
    OffsetOutOfRangeError,
    RegistryError,
    RegistryUnavailableError,
    SchemaError,
    SchemaIncompatibleError,
    SchemaNotFoundError,
    ShutdownTimeoutError,
    TopicNotFoundError,
)
from deimos_async.message import Delivery


class Cause(Exception):
    """An exception that is equal to one of the same text, as after a pickle."""

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Cause) and other.args == self.args

    def __hash__(self) -> int:
        return hash(self.args)


FIELDS = [FieldError("items[3].price", "a number was expected, not str"), FieldError("", "is missing")]

EXAMPLES: list[tuple[DeimosError, dict[str, Any]]] = [
    (DeimosError("text"), {"retriable": False}),
    (ConfigurationError("a", "b"), {"problems": ("a", "b"), "retriable": False}),
    (SchemaError("text"), {"retriable": False}),
    (SchemaNotFoundError("text"), {"retriable": False}),
    (SchemaIncompatibleError("text"), {"retriable": False}),
    (
        EncodeError(FIELDS, schema="com.acme.Order", topic="orders"),
        {"errors": tuple(FIELDS), "path": "items[3].price", "schema": "com.acme.Order", "topic": "orders"},
    ),
    (DecodeError("too short"), {"errors": (FieldError("", "too short"),), "path": "", "schema": None, "topic": None}),
    (BrokerError("text"), {"retriable": False}),
    (BrokerUnavailableError("text"), {"retriable": True}),
    (TopicNotFoundError("text"), {"retriable": False}),
    (OffsetOutOfRangeError("text"), {"retriable": False}),
    (CommitError("text", lost=True), {"lost": True, "retriable": False}),
    (CommitError("text", retriable=True), {"lost": False, "retriable": True}),
    (
        DeliveryError("text", indexes=[1], deliveries=[Delivery("t", 0, 7), None], unknown=True, retriable=True),
        {"indexes": (1,), "deliveries": (Delivery("t", 0, 7), None), "unknown": True, "retriable": True},
    ),
    (RegistryError("text", status=409, code=40901), {"status": 409, "code": 40901, "retriable": False}),
    (RegistryUnavailableError("text", status=503), {"status": 503, "code": None, "retriable": True}),
    (DatabaseError("text"), {"retriable": False}),
    (DatabaseUnavailableError("text"), {"retriable": True}),
    (
        BatchWriteError("text", [("message", Cause("a")), (None, Cause("b"))]),
        {
            "failures": (("message", Cause("a")), (None, Cause("b"))),
            "exceptions": (Cause("a"), Cause("b")),
            "retriable": False,
        },
    ),
    (
        HandlerError("text", topic="orders", partition=3, offset=42, attempt=2),
        {"topic": "orders", "partition": 3, "offset": 42, "attempt": 2},
    ),
    (LifecycleError("text"), {"retriable": False}),
    (NotRunningError("text"), {"retriable": False}),
    (ShutdownTimeoutError("text"), {"retriable": False}),
]
IDS = [type(error).__name__ for error, _ in EXAMPLES]


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize(("error", "attributes"), EXAMPLES, ids=IDS)
def test_error_is_the_same_after_a_pickle(error: DeimosError, attributes: dict[str, Any], protocol: int) -> None:
    found = pickle.loads(pickle.dumps(error, protocol))
    assert type(found) is type(error)
    assert str(found) == str(error)
    assert found.args == error.args
    assert {name: getattr(found, name) for name in attributes} == attributes


@pytest.mark.parametrize(("error", "attributes"), EXAMPLES, ids=IDS)
def test_error_is_the_same_after_a_copy(error: DeimosError, attributes: dict[str, Any]) -> None:
    for found in (copy.copy(error), copy.deepcopy(error)):
        assert str(found) == str(error)
        assert {name: getattr(found, name) for name in attributes} == attributes


def test_notes_survive_a_pickle() -> None:
    error = EncodeError(FIELDS)
    error.add_note("while writing orders")
    assert pickle.loads(pickle.dumps(error)).__notes__ == ["while writing orders"]


def subclasses(cls: type) -> Iterator[type]:
    for below in cls.__subclasses__():
        yield below
        yield from subclasses(below)


def test_every_public_class_has_an_example() -> None:
    public = {cls for cls in subclasses(DeimosError) if cls.__module__ == errors.__name__ and cls.__name__[0] != "_"}
    assert {type(error) for error, _ in EXAMPLES} - {DeimosError} == public
    assert {cls.__name__ for cls in public} | {"DeimosError", "FieldError"} == set(errors.__all__)


@pytest.mark.parametrize(
    ("cls", "family"),
    [
        (ConfigurationError, DeimosError),
        (EncodeError, SchemaError),
        (DecodeError, SchemaError),
        (SchemaNotFoundError, SchemaError),
        (SchemaIncompatibleError, SchemaError),
        (BrokerUnavailableError, BrokerError),
        (TopicNotFoundError, BrokerError),
        (OffsetOutOfRangeError, BrokerError),
        (CommitError, BrokerError),
        (DeliveryError, BrokerError),
        (RegistryUnavailableError, RegistryError),
        (DatabaseUnavailableError, DatabaseError),
        (BatchWriteError, DatabaseError),
        (BatchWriteError, ExceptionGroup),
        (NotRunningError, LifecycleError),
        (ShutdownTimeoutError, LifecycleError),
        (HandlerError, DeimosError),
    ],
)
def test_class_belongs_to_its_family(cls: type, family: type) -> None:
    assert issubclass(cls, family)


def test_causes_of_a_failed_batch_can_be_caught_by_their_class() -> None:
    caught = []
    try:
        raise BatchWriteError("2 messages", [("a", Cause("a")), ("b", KeyError("b"))])
    except* KeyError as group:
        caught += group.exceptions
    except* Cause as group:
        caught += group.exceptions
    assert [type(error) for error in caught] == [KeyError, Cause]


def test_one_problem_is_told_as_it_is_and_several_as_a_list() -> None:
    assert str(ConfigurationError("a is wrong")) == "a is wrong"
    assert str(ConfigurationError("a is wrong", "b too")) == "2 problems:\n  - a is wrong\n  - b too"


def test_codec_error_tells_topic_schema_and_every_field() -> None:
    error = EncodeError(FIELDS, schema="com.acme.Order", topic="orders")
    assert str(error) == (
        "topic 'orders': schema com.acme.Order: cannot encode: "
        "items[3].price: a number was expected, not str; is missing"
    )
    assert str(DecodeError("too short")) == "cannot decode: too short"


def test_field_errors_are_values() -> None:
    assert FieldError("a", "b") == FieldError("a", "b")
    assert len({FieldError("a", "b"), FieldError("a", "b"), FieldError("a", "c")}) == 2
    assert repr(FieldError("a", "b")) == "FieldError('a', 'b')"
