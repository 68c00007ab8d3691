"""Keys, topic options, error policies: what users declare about a topic, as values, and how options merge."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import isfinite
from typing import Any, Final, Literal, TypeAlias, TypedDict, get_args
from urllib.parse import urlsplit

from deimos_async.errors import ConfigurationError

__all__ = [
    "UNSET",
    "Backoff",
    "FatalError",
    "FieldKey",
    "Key",
    "NoKey",
    "OnError",
    "PayloadLog",
    "PlainKey",
    "SchemaKey",
    "Then",
    "Topic",
    "TopicOptionArguments",
    "TopicOptions",
    "merge_options",
    "registry_url_problem",
    "split_schema_name",
]


class _Unset:
    """Tells "not given" from None."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "UNSET"

    def __bool__(self) -> bool:
        return False

    def __reduce__(self) -> str:
        return "UNSET"


UNSET: Final[Any] = _Unset()

PayloadLog: TypeAlias = Literal["full", "headers", "keys", "count"]
Then: TypeAlias = Literal["dead_letter", "retry_keyed", "skip", "stop"]
FatalError: TypeAlias = Callable[[BaseException, list[Any]], bool]


@dataclass(frozen=True, slots=True)
class NoKey:
    """Messages have no key."""


@dataclass(frozen=True, slots=True)
class PlainKey:
    """The key is text as it is."""


@dataclass(frozen=True, slots=True)
class FieldKey:
    """The key is a field of the payload (dotted for a nested one), in a key schema made from the value's."""

    field: str


@dataclass(frozen=True, slots=True)
class SchemaKey:
    """The key has a schema of its own."""

    schema: str
    namespace: str | None = None


class Key:
    """How keys are made: `Key.none()`, `Key.plain()`, `Key.field("order_id")`, `Key.schema("com.acme.OrderKey")`."""

    __slots__ = ()

    @staticmethod
    def none() -> NoKey:
        """Messages have no key; giving one is an error."""
        return NoKey()

    @staticmethod
    def plain() -> PlainKey:
        """The key is sent as its text, UTF-8, and read as `str`."""
        return PlainKey()

    @staticmethod
    def field(name: str) -> FieldKey:
        """The key is that field of the payload. Its key schema is named `<Schema>_key`."""
        if not isinstance(name, str) or not name:
            raise ConfigurationError(f"Key.field takes the name of a field, not {name!r}")
        return FieldKey(name)

    @staticmethod
    def schema(schema: str, namespace: str | None = None) -> SchemaKey:
        """The key is a value of a schema of its own; without a namespace anywhere, the topic's is taken."""
        if not isinstance(schema, str) or not schema:
            raise ConfigurationError(f"Key.schema takes the name of a schema, not {schema!r}")
        return SchemaKey(schema, namespace)


KeyConfig: TypeAlias = NoKey | PlainKey | FieldKey | SchemaKey


@dataclass(frozen=True, slots=True)
class Backoff:
    """Waiting times between attempts: `initial` seconds, doubled each time up to `maximum`; half of it is drawn."""

    initial: float = 0.1
    maximum: float = 30.0

    def __post_init__(self) -> None:
        if not (0 < self.initial <= self.maximum < float("inf")):
            raise ConfigurationError(
                f"Backoff(initial={self.initial}, maximum={self.maximum}): "
                "initial must be above 0 and maximum at least as large (both in seconds)"
            )


@dataclass(frozen=True, slots=True)
class OnError:
    """What happens when a handler raises.

    Attributes:
        attempts: How often a message is tried in place; the first try counts.
        backoff: Waiting times between the attempts.
        then: What follows the last attempt.
        retry_topics: Delays in seconds, a topic for each, tried after the attempts in place.
        include, exclude: Exception classes. Only included (none given: all) and not excluded ones are retried;
            others go to `then` at once.
        wait_on: Classes that are the surroundings' fault: the partition waits and no attempt is counted.
    """

    attempts: int = 3
    backoff: Backoff = Backoff()
    then: Then = "dead_letter"
    retry_topics: tuple[float, ...] = ()
    include: tuple[type[BaseException], ...] = ()
    exclude: tuple[type[BaseException], ...] = ()
    wait_on: tuple[type[BaseException], ...] = ()

    def __post_init__(self) -> None:
        problems = []
        if isinstance(self.attempts, bool) or not isinstance(self.attempts, int) or self.attempts < 1:
            problems.append(f"OnError(attempts={self.attempts!r}): at least 1, the first try counts")
        if self.then not in get_args(Then):
            problems.append(f"OnError(then={self.then!r}): one of {', '.join(map(repr, get_args(Then)))}")
        for name in ("retry_topics", "include", "exclude", "wait_on"):
            object.__setattr__(self, name, _as_tuple(getattr(self, name)))
        problems += [
            f"OnError(retry_topics=...): takes delays in seconds, above 0, not {delay!r}"
            for delay in self.retry_topics
            if isinstance(delay, bool) or not isinstance(delay, (int, float)) or not isfinite(delay) or delay <= 0
        ]
        for name in ("include", "exclude", "wait_on"):
            problems += [
                f"OnError({name}=...): takes exception classes, not {cls!r}"
                for cls in getattr(self, name)
                if not (isinstance(cls, type) and issubclass(cls, BaseException))
            ]
        if problems:
            raise ConfigurationError(*problems)


def _as_tuple(value: Any) -> tuple[Any, ...]:
    return tuple(value) if isinstance(value, (tuple, list, set, frozenset)) else (value,)


@dataclass(frozen=True, slots=True)
class TopicOptions:
    """What may be said about a topic, at the topic, by `app.defaults`, or in the settings. UNSET: not said there.

    One value and one merge (`merge_options`), so that an option means the same wherever it is given; False and None
    are things that may be said.
    """

    schema: str | None = UNSET
    """Full name, or short name together with `namespace`. None: bytes without a schema."""
    namespace: str | None = UNSET
    key: KeyConfig = UNSET
    schema_backend: str = UNSET
    registry_url: str | None = UNSET
    registry_user: str | None = UNSET
    registry_password: Any = dataclasses.field(default=UNSET, repr=False)
    cluster: str = UNSET
    """Name of the cluster in `clusters.<name>`; `"default"` is that of `kafka.*`."""
    payload_log: PayloadLog = UNSET
    unknown_fields: Literal["drop", "error"] = UNSET
    auto_register: bool = UNSET
    use_latest_version: bool = UNSET
    subject_strategy: Literal["topic", "record", "topic_record"] = UNSET
    on_error: OnError = UNSET
    fatal_error: FatalError | None = UNSET
    reraise_errors: bool = UNSET
    partitions: int = UNSET
    """Count for `topics create`; an existing topic is left as it is."""
    replication_factor: int = UNSET
    topic_config: Mapping[str, str] = UNSET
    """Broker settings of the topic for `topics create`, e.g. `{"cleanup.policy": "compact"}`. Mappings merge."""
    max_db_batch_size: int | None = UNSET
    """This and the next four are settings of model consumers, and go before those of the class."""
    bulk_import_id_column: str | None = UNSET
    bulk_import_id_generator: Callable[[], Any] | None = UNSET
    replace_associations: bool = UNSET
    save_associations_first: bool = UNSET

    def __post_init__(self) -> None:
        if isinstance(self.registry_url, str):
            problem = registry_url_problem(self.registry_url, "registry_user", "registry_password")
            if problem is not None:
                raise ConfigurationError(f"registry_url: {problem}")

    def given(self) -> dict[str, Any]:
        """The options that were said."""
        return {
            field.name: value for field in dataclasses.fields(self) if (value := getattr(self, field.name)) is not UNSET
        }


class TopicOptionArguments(TypedDict, total=False):
    """`TopicOptions` as keyword arguments of `app.topic`, `router.topic` and `app.defaults`."""

    schema: str | None
    namespace: str | None
    key: KeyConfig
    schema_backend: str
    registry_url: str | None
    registry_user: str | None
    registry_password: Any
    cluster: str
    payload_log: PayloadLog
    unknown_fields: Literal["drop", "error"]
    auto_register: bool
    use_latest_version: bool
    subject_strategy: Literal["topic", "record", "topic_record"]
    on_error: OnError
    fatal_error: FatalError | None
    reraise_errors: bool
    partitions: int
    replication_factor: int
    topic_config: Mapping[str, str]
    max_db_batch_size: int | None
    bulk_import_id_column: str | None
    bulk_import_id_generator: Callable[[], Any] | None
    replace_associations: bool
    save_associations_first: bool


class Topic:
    """A declared topic. `name` is without the prefix. Made by `app.topic` and `router.topic`.

    Attributes:
        options: What was said at the topic itself.
    """

    __slots__ = ("name", "options")

    def __init__(self, name: str, options: TopicOptions) -> None:
        self.name = name
        self.options = options

    def __repr__(self) -> str:
        return f"Topic({self.name!r})"


TOPIC_OPTION_NAMES: frozenset[str] = frozenset(field.name for field in dataclasses.fields(TopicOptions))


def check_options(options: TopicOptions) -> list[str]:
    """What is wrong with the options that were said, one phrase each, without the topic's name."""
    problems = []

    def check(name: str, wanted: str, fits: Callable[[Any], bool]) -> None:
        value = getattr(options, name)
        if value is not UNSET and not fits(value):
            problems.append(f"{name}={value!r}: give {wanted}")

    def is_text(value: Any) -> bool:
        return isinstance(value, str) and bool(value)

    def is_count(value: Any) -> bool:
        return isinstance(value, int) and not isinstance(value, bool) and value >= 1

    check("schema", "a schema's name, or None", lambda value: value is None or is_text(value))
    check("namespace", "a namespace, or None", lambda value: value is None or is_text(value))
    check(
        "key",
        "Key.field(...), Key.schema(...), Key.plain() or Key.none()",
        lambda value: isinstance(value, NoKey | PlainKey | FieldKey | SchemaKey),
    )
    check("schema_backend", "the name of a backend", is_text)
    check("registry_user", "a user name, or None", lambda value: value is None or is_text(value))
    check("cluster", "the name of a cluster", is_text)
    check("payload_log", _one_of(PayloadLog), lambda value: value in get_args(PayloadLog))
    check("unknown_fields", "'drop' or 'error'", lambda value: value in ("drop", "error"))
    check("subject_strategy", "'topic', 'record' or 'topic_record'", lambda v: v in ("topic", "record", "topic_record"))
    for name in (
        "auto_register",
        "use_latest_version",
        "reraise_errors",
        "replace_associations",
        "save_associations_first",
    ):
        check(name, "True or False", lambda value: isinstance(value, bool))
    check("on_error", "OnError(...)", lambda value: isinstance(value, OnError))
    check("fatal_error", FATAL_ERROR, lambda value: value is None or is_fatal_error(value))
    check("partitions", "a whole number of at least 1", is_count)
    check("replication_factor", "a whole number, or -1 for the broker's default", lambda v: is_count(v) or v == -1)
    check(
        "topic_config",
        "a mapping of the broker's names to text",
        lambda v: isinstance(v, Mapping) and all(isinstance(part, str) for pair in v.items() for part in pair),
    )
    check("max_db_batch_size", "a whole number of at least 1, or None", lambda value: value is None or is_count(value))
    check("bulk_import_id_column", "the name of a column, or None", lambda value: value is None or is_text(value))
    check("bulk_import_id_generator", "a function, or None", lambda value: value is None or callable(value))
    return problems


FATAL_ERROR = "a plain callable (error, messages) -> bool"


def is_fatal_error(value: Any) -> bool:
    """Whether it can be asked: a coroutine function could not, its answer would always count as true."""
    return callable(value) and not inspect.iscoroutinefunction(value)


def _one_of(choices: Any) -> str:
    return "one of " + ", ".join(map(repr, get_args(choices)))


def merge_options(*layers: TopicOptions) -> TopicOptions:
    """Options of several layers, the later ones above the earlier: settings, defaults, the topic's own.

    A value that is a mapping merges key by key with mappings below it; everything else replaces. What is UNSET says
    nothing.
    """
    merged: dict[str, Any] = {}
    for layer in layers:
        for name, value in layer.given().items():
            below = merged.get(name)
            if isinstance(value, Mapping) and isinstance(below, Mapping):
                merged[name] = {**below, **value}
            else:
                merged[name] = value
    return TopicOptions(**merged)


def registry_url_problem(urls: str, user_option: str, password_option: str) -> str | None:
    """What is wrong with the URLs of a schema registry, joined by commas; None if nothing is.

    Credentials in a URL would show up wherever it is told (logs, errors, the repr): they are refused, and the text
    does not repeat them.

    Args:
        user_option, password_option: Names of the options that take the credentials instead.
    """
    for url in urls.split(","):
        try:
            parts = urlsplit(url.strip())
            usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
        except ValueError:  # a bracket or port that cannot be read
            return "is not a URL; give http://host:port or https://host:port, several joined by commas"
        if "@" in parts.netloc:
            return f"must not hold credentials; give them as {user_option!r} and {password_option!r}"
        if not usable:
            return "must be http://host:port or https://host:port, several joined by commas"
    return None


def split_schema_name(schema: str, namespace: str | None) -> str:
    """Full name of a schema: `("com.acme.Order", None)` and `("Order", "com.acme")` both give `com.acme.Order`.

    A dotted name is a full one, whatever the namespace.
    """
    if "." in schema or not namespace:
        return schema
    return f"{namespace}.{schema}"
