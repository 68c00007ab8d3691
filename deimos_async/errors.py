"""The whole error tree.

Families follow who must act: `ConfigurationError` the developer, `SchemaError` whoever wrote the data or its schema,
`BrokerError`, `RegistryError` and `DatabaseError` the surroundings, `HandlerError` the application, `LifecycleError`
the caller. `retriable` says whether the same call may succeed later with nothing changed; nobody parses messages.
Messages name what, where and what to change; they carry no payloads and no secrets. Every error can be pickled.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

__all__ = [
    "BatchWriteError",
    "BrokerError",
    "BrokerUnavailableError",
    "CommitError",
    "ConfigurationError",
    "DatabaseError",
    "DatabaseUnavailableError",
    "DecodeError",
    "DeimosError",
    "DeliveryError",
    "EncodeError",
    "FieldError",
    "HandlerError",
    "LifecycleError",
    "NotRunningError",
    "OffsetOutOfRangeError",
    "RegistryError",
    "RegistryUnavailableError",
    "SchemaError",
    "SchemaIncompatibleError",
    "SchemaNotFoundError",
    "ShutdownTimeoutError",
    "TopicNotFoundError",
]


def _rebuild(cls: type[DeimosError], args: tuple[Any, ...], state: Mapping[str, Any]) -> DeimosError:
    error = cls.__new__(cls, *args)
    error.args = args
    error.__dict__.update(state)
    return error


class DeimosError(Exception):
    """Root of every error that this library raises on purpose."""

    retriable: bool = False
    """Whether the same call may succeed later with nothing changed."""

    def __reduce__(self) -> tuple[Callable[..., DeimosError], tuple[Any, ...]]:
        return _rebuild, (type(self), self.args, dict(self.__dict__))


class ConfigurationError(DeimosError):
    """Seen before the first message; names the topic or setting and the change to make.

    Attributes:
        problems: Every mistake that was found, one sentence each; `str(error)` lists them all.
    """

    def __init__(self, *problems: str) -> None:
        self.problems: tuple[str, ...] = problems
        super().__init__(*problems)

    def __str__(self) -> str:
        if len(self.problems) == 1:
            return self.problems[0]
        return f"{len(self.problems)} problems:\n" + "\n".join(f"  - {problem}" for problem in self.problems)


class SchemaError(DeimosError):
    """Data and schema do not fit, or the schema itself cannot be used."""


class SchemaNotFoundError(SchemaError):
    """No schema of that name on disk, or of that id or subject in the registry."""


class SchemaIncompatibleError(SchemaError):
    """The registry refused the schema, or the writer's schema cannot be read with ours."""


class FieldError:
    """One thing wrong with one field of a payload.

    Attributes:
        path: Where, as `some_record.items[3].price`; empty for the payload itself.
        problem: What is wrong and what was expected, without the value.
    """

    __slots__ = ("path", "problem")

    def __init__(self, path: str, problem: str) -> None:
        self.path = path
        self.problem = problem

    def __str__(self) -> str:
        return f"{self.path}: {self.problem}" if self.path else self.problem

    def __repr__(self) -> str:
        return f"FieldError({self.path!r}, {self.problem!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, FieldError) and (self.path, self.problem) == (other.path, other.problem)

    def __hash__(self) -> int:
        return hash((self.path, self.problem))


class _CodecError(SchemaError):
    _doing: ClassVar[str]

    def __init__(
        self, errors: Sequence[FieldError] | str, *, schema: str | None = None, topic: str | None = None
    ) -> None:
        self.errors: tuple[FieldError, ...] = (FieldError("", errors),) if isinstance(errors, str) else tuple(errors)
        self.schema = schema
        self.topic = topic
        super().__init__(errors)

    @property
    def path(self) -> str:
        """Path of the first field that is wrong; empty for the payload itself."""
        return self.errors[0].path if self.errors else ""

    def __str__(self) -> str:
        where = "".join(
            [f"topic {self.topic!r}: " if self.topic else "", f"schema {self.schema}: " if self.schema else ""]
        )
        return f"{where}{self._doing}: " + "; ".join(str(error) for error in self.errors)


class EncodeError(_CodecError):
    """A payload or key does not fit its schema.

    Attributes:
        errors: Every field that is wrong, as `FieldError(path, problem)`, in the schema's order.
        path: The first one's path, as `some_record.items[3].price`.
        schema: Full name of the schema, or None.
        topic: Topic it was meant for, or None.
    """

    _doing = "cannot encode"


class DecodeError(_CodecError):
    """Bytes cannot be read with their schema, or do not fit the type that the handler asked for.

    Attributes as for `EncodeError`.
    """

    _doing = "cannot decode"


class BrokerError(DeimosError):
    """Kafka refused or failed a request."""


class BrokerUnavailableError(BrokerError):
    """No broker answers."""

    retriable = True


class TopicNotFoundError(BrokerError):
    """The cluster has no topic of that name."""


class OffsetOutOfRangeError(BrokerError):
    """A stored offset does not exist any more (or not yet) in the partition; nothing is skipped silently.

    Attributes:
        partition: The `TopicPartition`, or None.
    """

    def __init__(self, message: str, *, partition: Any = None) -> None:
        super().__init__(message)
        self.partition = partition


class CommitError(BrokerError):
    """An offset commit failed.

    Attributes:
        lost: True if the partitions belong to another member by now, so that their work is theirs.
    """

    def __init__(self, message: str, *, lost: bool = False, retriable: bool = False) -> None:
        super().__init__(message)
        self.lost = lost
        self.retriable = retriable


class DeliveryError(BrokerError):
    """Messages were not acknowledged.

    After a time-out this means unknown, not unsent: `unknown` is then true.

    Attributes:
        indexes: Positions, in the call's list, of the messages that failed, ascending.
        deliveries: For each message of the call its `Delivery`, or None if it failed.
        unknown: Whether the broker may have stored them all the same.
        of_topic: Whether it lies with the topic, not with the messages: others to it would fail as well.
    """

    def __init__(
        self,
        message: str,
        *,
        indexes: Sequence[int] = (),
        deliveries: Sequence[Any] = (),
        unknown: bool = False,
        retriable: bool = False,
        of_topic: bool = False,
    ) -> None:
        super().__init__(message)
        self.of_topic = of_topic
        self.indexes: tuple[int, ...] = tuple(indexes)
        self.deliveries: tuple[Any, ...] = tuple(deliveries)
        self.unknown = unknown
        self.retriable = retriable


class RegistryError(DeimosError):
    """The schema registry refused a request.

    Attributes:
        status: HTTP status, or None.
        code: The registry's own error code, or None.
    """

    def __init__(self, message: str, *, status: int | None = None, code: int | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.code = code


class RegistryUnavailableError(RegistryError):
    """No registry answers, or it answers that it cannot work at the moment."""

    retriable = True


class DatabaseError(DeimosError):
    """The database failed in a way that this library had to act on."""


class DatabaseUnavailableError(DatabaseError):
    """No connection to the database can be had."""

    retriable = True


class BatchWriteError(DatabaseError, ExceptionGroup[Exception]):
    """Messages of a batch could not be written to the table; the text names each one's key and cause.

    It is a group of these causes as well, for `except*` and for tracebacks.

    Attributes:
        failures: Each message that failed with its error, in the order in which they failed.
    """

    def __new__(cls, text: str, failures: Sequence[tuple[Any, Exception]]) -> BatchWriteError:
        return super().__new__(cls, text, [error for _, error in failures])

    def __init__(self, text: str, failures: Sequence[tuple[Any, Exception]]) -> None:
        Exception.__init__(self, text, failures)  # a group's own takes errors only
        self.failures: tuple[tuple[Any, Exception], ...] = tuple(failures)

    def __str__(self) -> str:
        return str(self.args[0])


class HandlerError(DeimosError):
    """Wraps what user code raised; the cause is the original error.

    Attributes:
        topic, partition, offset: The message, or the first one of the batch.
        attempt: Which attempt failed, from 1.
    """

    def __init__(self, message: str, *, topic: str, partition: int, offset: int, attempt: int) -> None:
        super().__init__(message)
        self.topic = topic
        self.partition = partition
        self.offset = offset
        self.attempt = attempt


class LifecycleError(DeimosError):
    """Something was called in the wrong state."""


class NotRunningError(LifecycleError):
    """The application does not run, or not any more."""


class ShutdownTimeoutError(LifecycleError):
    """Work did not end before the deadline of the shutdown and was cancelled; it was not committed."""
