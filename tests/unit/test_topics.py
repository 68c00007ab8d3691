"""Keys, options and how they merge, policies."""

from __future__ import annotations

import copy
import pickle
from math import inf, nan
from typing import Any, get_type_hints

import pytest

from deimos_async.errors import ConfigurationError
from deimos_async.topics import (
    TOPIC_OPTION_NAMES,
    UNSET,
    Backoff,
    FieldKey,
    Key,
    NoKey,
    OnError,
    PlainKey,
    SchemaKey,
    Topic,
    TopicOptionArguments,
    TopicOptions,
    merge_options,
    registry_url_problem,
    split_schema_name,
)

MERGES: list[tuple[str, list[dict[str, Any]], dict[str, Any]]] = [
    # what it shows, layers from below (settings) to above (the topic's own), result
    ("nothing said", [{}, {}], {}),
    ("no layer at all", [], {}),
    ("said once, below", [{"cluster": "east"}, {}], {"cluster": "east"}),
    ("said once, above", [{}, {"cluster": "east"}], {"cluster": "east"}),
    ("the later layer wins", [{"cluster": "a"}, {"cluster": "b"}, {"cluster": "c"}], {"cluster": "c"}),
    ("a layer that says nothing leaves it", [{"cluster": "a"}, {}, {}], {"cluster": "a"}),
    ("False is said", [{"auto_register": True}, {"auto_register": False}], {"auto_register": False}),
    ("None is said", [{"schema": "com.acme.Order"}, {"schema": None}], {"schema": None}),
    ("no fatal error above one", [{"fatal_error": print}, {"fatal_error": None}], {"fatal_error": None}),
    ("empty text is said", [{"namespace": "com.acme"}, {"namespace": ""}], {"namespace": ""}),
    ("different options add up", [{"schema": "A"}, {"key": Key.none()}], {"schema": "A", "key": NoKey()}),
    (
        "mappings merge by key",
        [{"topic_config": {"a": "1", "b": "1"}}, {"topic_config": {"b": "2", "c": "2"}}],
        {"topic_config": {"a": "1", "b": "2", "c": "2"}},
    ),
    ("an empty mapping takes nothing away", [{"topic_config": {"a": "1"}}, {"topic_config": {}}],
     {"topic_config": {"a": "1"}}),
    (
        "policies replace as a whole",
        [{"on_error": OnError(attempts=9, then="skip")}, {"on_error": OnError(then="stop")}],
        {"on_error": OnError(attempts=3, then="stop")},
    ),
]  # fmt: skip


@pytest.mark.parametrize(("layers", "merged"), [case[1:] for case in MERGES], ids=[case[0] for case in MERGES])
def test_options_merge(layers: list[dict[str, Any]], merged: dict[str, Any]) -> None:
    assert merge_options(*(TopicOptions(**layer) for layer in layers)).given() == merged


def test_merge_changes_none_of_its_layers() -> None:
    below, above = {"a": "1"}, {"b": "2"}
    merge_options(TopicOptions(topic_config=below), TopicOptions(topic_config=above))
    assert (below, above) == ({"a": "1"}, {"b": "2"})


def test_arguments_of_topics_are_the_options() -> None:
    assert set(get_type_hints(TopicOptionArguments)) == TOPIC_OPTION_NAMES


def test_repr_shows_no_password() -> None:
    options = TopicOptions(registry_user="me", registry_password="hunter2")
    assert "hunter2" not in repr(options)
    assert "hunter2" not in repr(Topic("orders", options))
    assert options.given()["registry_password"] == "hunter2"


def test_unset_is_one_false_value_through_copies_and_pickles() -> None:
    assert pickle.loads(pickle.dumps(UNSET)) is UNSET
    assert copy.deepcopy(UNSET) is UNSET
    assert not UNSET
    assert repr(UNSET) == "UNSET"


def test_keys_are_values() -> None:
    assert Key.none() == NoKey()
    assert Key.plain() == PlainKey()
    assert Key.field("order.id") == FieldKey("order.id")
    assert Key.schema("com.acme.OrderKey") == SchemaKey("com.acme.OrderKey", None)
    assert Key.schema("OrderKey", namespace="com.acme") == SchemaKey("OrderKey", "com.acme")


@pytest.mark.parametrize("wrong", ["", None, 5])
def test_key_without_a_name_is_refused(wrong: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"Key\.field takes the name of a field"):
        Key.field(wrong)
    with pytest.raises(ConfigurationError, match=r"Key\.schema takes the name of a schema"):
        Key.schema(wrong)


def test_policy_takes_classes_alone_or_in_any_collection() -> None:
    policy = OnError(include=KeyError, exclude=[ValueError], wait_on={OSError}, retry_topics=5)  # type: ignore[arg-type]
    assert (policy.include, policy.exclude, policy.wait_on, policy.retry_topics) == (
        (KeyError,),
        (ValueError,),
        (OSError,),
        (5,),
    )


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ({"attempts": 0}, r"OnError\(attempts=0\): at least 1, the first try counts"),
        ({"attempts": True}, r"OnError\(attempts=True\)"),
        ({"attempts": 2.5}, r"OnError\(attempts=2\.5\)"),
        ({"then": "retry"}, r"OnError\(then='retry'\): one of 'dead_letter', 'retry_keyed', 'skip', 'stop'"),
        ({"include": "KeyError"}, r"OnError\(include=\.\.\.\): takes exception classes, not 'KeyError'"),
        ({"exclude": KeyError()}, r"OnError\(exclude=\.\.\.\): takes exception classes"),
        ({"wait_on": (int,)}, r"OnError\(wait_on=\.\.\.\): takes exception classes"),
        ({"retry_topics": (5, 0)}, r"OnError\(retry_topics=\.\.\.\): takes delays in seconds, above 0, not 0"),
        ({"retry_topics": "60"}, r"OnError\(retry_topics=\.\.\.\): takes delays in seconds, above 0, not '60'"),
        ({"retry_topics": (inf,)}, r"OnError\(retry_topics=\.\.\.\)"),
        ({"retry_topics": (True,)}, r"OnError\(retry_topics=\.\.\.\)"),
    ],
)
def test_policy_that_cannot_be_is_refused(arguments: dict[str, Any], problem: str) -> None:
    with pytest.raises(ConfigurationError, match=problem):
        OnError(**arguments)


def test_every_mistake_of_a_policy_is_told_at_once() -> None:
    with pytest.raises(ConfigurationError) as raised:
        OnError(attempts=0, then="retry", include=(int,))  # type: ignore[arg-type]
    assert len(raised.value.problems) == 3


@pytest.mark.parametrize(("initial", "maximum"), [(0, 1), (-1, 1), (2, 1), (nan, 1), (1, nan), (1, inf)])
def test_backoff_that_cannot_be_is_refused(initial: float, maximum: float) -> None:
    with pytest.raises(ConfigurationError, match="initial must be above 0 and maximum at least as large"):
        Backoff(initial, maximum)


def test_backoff_may_stay_the_same() -> None:
    assert Backoff(1, 1).maximum == 1


@pytest.mark.parametrize(
    ("schema", "namespace", "full"),
    [
        ("com.acme.Order", None, "com.acme.Order"),
        ("Order", "com.acme", "com.acme.Order"),
        ("com.acme.Order", "org.other", "com.acme.Order"),
        ("Order", None, "Order"),
        ("Order", "", "Order"),
    ],
)
def test_full_name_of_a_schema(schema: str, namespace: str | None, full: str) -> None:
    assert split_schema_name(schema, namespace) == full


@pytest.mark.parametrize(
    ("urls", "problem"),
    [
        ("http://localhost:8081", None),
        ("https://registry/base/path", None),
        ("http://[::1]:8081", None),
        ("http://a:8081, https://b", None),
        ("localhost:8081", "must be http"),
        ("", "must be http"),
        ("http://a:8081,", "must be http"),
        ("ftp://registry", "must be http"),
        ("http://", "must be http"),
        ("http://registry:port", "is not a URL"),
        ("http://[registry", "is not a URL"),
        ("http://me:hunter2@registry", "must not hold credentials"),
        ("http://hunter2@registry", "must not hold credentials"),
        ("http://a,http://me:hunter2@b", "must not hold credentials"),
        ("http://me:hunter2@registry:port", "is not a URL"),
        ("me:hunter2@registry", "must be http"),
    ],
)
def test_urls_of_a_registry(urls: str, problem: str | None) -> None:
    found = registry_url_problem(urls, "the user", "the password")
    if problem is None:
        assert found is None
        return
    assert found is not None
    assert found.startswith(problem)
    assert "hunter2" not in found
    with pytest.raises(ConfigurationError, match=r"^registry_url: ") as raised:
        TopicOptions(registry_url=urls)
    assert "hunter2" not in str(raised.value)
