"""What was declared: topics, producers, consumers, and what a handler's signature asks for, as frozen values."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import math
import types
import typing
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Any, Literal, TypeAlias, get_args, get_origin

from deimos_async.errors import ConfigurationError
from deimos_async.message import Message
from deimos_async.topics import FATAL_ERROR, UNSET, FatalError, OnError, is_fatal_error

__all__ = [
    "Argument",
    "ConsumerSpec",
    "Delivering",
    "Depends",
    "HandlerSpec",
    "Ordering",
    "PollerSpec",
    "Polling",
    "Provide",
    "TakeMessage",
    "TakeSession",
    "check_consumer",
    "check_poller",
    "handler_spec",
]

Ordering: TypeAlias = Literal["partition", "key", "none"]
Delivering: TypeAlias = Literal["at_least_once", "at_most_once", "effectively_once"]
Polling: TypeAlias = Literal["time", "state"]


@dataclass(frozen=True, slots=True)
class Depends:
    """Marks a handler's parameter as made by a provider: `Annotated[T, Depends(provider)]`.

    The provider is a plain, async or (async) generator function, run once for each call of the handler. It may take
    what a handler takes. A generator's part after `yield` runs when the handler has ended, and sees what it raised.
    """

    provider: Callable[..., Any]

    def __post_init__(self) -> None:
        if not callable(self.provider):
            raise ConfigurationError(f"Depends takes a function, not {self.provider!r}")


@dataclass(frozen=True, slots=True)
class TakeMessage:
    """A parameter that takes the message, or the messages of the batch."""


@dataclass(frozen=True, slots=True)
class TakeSession:
    """A parameter that takes the call's AsyncSession."""


@dataclass(frozen=True, slots=True)
class Provide:
    """A parameter that takes what a provider returns."""

    provider: Callable[..., Any]
    kind: Literal["plain", "async", "generator", "async_generator"]
    arguments: tuple[Argument, ...]


@dataclass(frozen=True, slots=True)
class Argument:
    """One parameter of a handler or provider and where its value comes from."""

    name: str
    source: TakeMessage | TakeSession | Provide


@dataclass(frozen=True, slots=True)
class HandlerSpec:
    """A handler's signature, resolved.

    Attributes:
        function: What is called; for a class the bound method.
        is_async: False: it is called in a thread.
        batch: Whether it takes a list of messages.
        payload_type: What `Message[...]` asked for, or Any.
        arguments: The further parameters after the message, by keyword.
    """

    function: Callable[..., Any]
    is_async: bool
    batch: bool
    payload_type: Any
    arguments: tuple[Argument, ...]

    @property
    def needs_session(self) -> bool:
        """Whether the handler or any provider takes an AsyncSession."""
        return any(_needs_session(argument) for argument in self.arguments)


def _needs_session(argument: Argument) -> bool:
    match argument.source:
        case TakeSession():
            return True
        case Provide(arguments=arguments):
            return any(_needs_session(inner) for inner in arguments)
    return False


@dataclass(frozen=True, slots=True)
class ConsumerSpec:
    """A decorated function or class with its options, as declared. `target` is what was decorated."""

    target: Any
    topic: Any
    """The topic's handle, or its declared name."""
    group: str | None = None
    batch: bool = False
    max_batch: int = 500
    max_wait: float = 0.1
    """Seconds that an incomplete batch waits for more."""
    concurrency: int = 1
    ordering: Ordering = "partition"
    delivery: Delivering = "at_least_once"
    on_error: OnError | None = None
    start_from: Literal["earliest", "latest"] | datetime = "earliest"
    fatal_error: FatalError | None = None
    reraise_errors: bool | None = None

    @property
    def name(self) -> str:
        """The function's or class's name."""
        return str(getattr(self.target, "__name__", type(self.target).__name__))


def check_consumer(spec: ConsumerSpec) -> list[str]:
    """Mistakes in a consumer's options, one sentence each."""
    problems = []

    def wrong(option: str, value: object, wanted: str) -> None:
        problems.append(f"consumer {spec.name!r}: {option}={value!r} is not possible; {wanted}")

    if spec.group is not None and (not isinstance(spec.group, str) or not spec.group):
        wrong("group", spec.group, "give a name, or leave it out for 'consumers.group'")
    for option in ("concurrency", "max_batch"):
        value = getattr(spec, option)
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            wrong(option, value, "give a whole number of at least 1")
    if isinstance(spec.max_wait, bool) or not isinstance(spec.max_wait, (int, float)) or spec.max_wait < 0:
        wrong("max_wait", spec.max_wait, "give seconds, 0 or more")
    if spec.ordering not in get_args(Ordering):
        wrong("ordering", spec.ordering, f"one of {', '.join(map(repr, get_args(Ordering)))}")
    elif spec.batch and spec.ordering != "partition":
        wrong("ordering", spec.ordering, "with batch=True each batch is of one partition: use ordering='partition'")
    if spec.delivery not in get_args(Delivering):
        wrong("delivery", spec.delivery, f"one of {', '.join(map(repr, get_args(Delivering)))}")
    elif spec.delivery == "effectively_once" and spec.ordering in ("key", "none"):
        wrong("ordering", spec.ordering, "delivery='effectively_once' keeps one offset a partition: 'partition'")
    if spec.on_error is not None and not isinstance(spec.on_error, OnError):
        wrong("on_error", spec.on_error, "give OnError(...)")
    if isinstance(spec.start_from, datetime):
        if spec.start_from.tzinfo is None:
            wrong("start_from", spec.start_from, "give an aware datetime, e.g. with tzinfo=UTC")
    elif spec.start_from not in ("earliest", "latest"):
        wrong("start_from", spec.start_from, "'earliest', 'latest' or an aware datetime")
    if spec.fatal_error is not None and not is_fatal_error(spec.fatal_error):
        wrong("fatal_error", spec.fatal_error, f"give {FATAL_ERROR}")
    if spec.reraise_errors is not None and not isinstance(spec.reraise_errors, bool):
        wrong("reraise_errors", spec.reraise_errors, "give True or False")
    return problems


@dataclass(frozen=True, slots=True)
class PollerSpec:
    """A poller as declared. `producers` are what `producer(...)` returned."""

    producers: tuple[Any, ...]
    name: str | None = None
    mode: Polling = "time"
    poller_class: Any = None
    run_every: float = 60.0
    """Seconds from the end of a run to the next one."""
    retries: int | None = 1
    """Attempts after the first one that failed; None: for ever."""
    skip_too_large_messages: bool = False
    delay_time: float = 2.0
    """Seconds to stay behind the present."""
    timestamp_column: str = "updated_at"
    full_table: bool = False
    start_from_beginning: bool = True
    state_column: str | None = None
    publish_timestamp_column: str | None = None
    published_state: Any = None
    failed_state: Any = None


def check_poller(spec: PollerSpec) -> list[str]:
    """Mistakes in a poller's options, one sentence each."""
    problems = []

    def wrong(option: str, wanted: str) -> None:
        problems.append(f"poller {spec.name!r}: {option}={getattr(spec, option)!r} is not possible; {wanted}")

    if spec.name is not None and (not isinstance(spec.name, str) or not spec.name):
        wrong("name", "give a text, or leave it out for the class of the first producer")
    if spec.mode not in get_args(Polling):
        wrong("mode", f"one of {', '.join(map(repr, get_args(Polling)))}")
    if spec.poller_class is not None and not inspect.isclass(spec.poller_class):
        wrong("poller_class", "give a subclass of Poller")
    for option, least in (("run_every", "above 0"), ("delay_time", "0 or more")):
        value = getattr(spec, option)
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
        if not is_number or value < 0 or (value == 0 and option == "run_every"):
            wrong(option, f"give seconds, {least}")
    retries = spec.retries
    if retries is not None and (isinstance(retries, bool) or not isinstance(retries, int) or retries < 0):
        wrong("retries", "give a whole number of at least 0, or None for ever")
    for option in ("skip_too_large_messages", "full_table", "start_from_beginning"):
        if not isinstance(getattr(spec, option), bool):
            wrong(option, "True or False")
    if not isinstance(spec.timestamp_column, str):
        wrong("timestamp_column", "give the name of a column")
    for option in ("state_column", "publish_timestamp_column"):
        if not isinstance(getattr(spec, option), str | None):
            wrong(option, "give the name of a column")
    defaults = {"state": ("full_table", "start_from_beginning"), "time": _OF_STATE}
    fields = {field.name: field.default for field in dataclasses.fields(PollerSpec)}
    for option in defaults.get(spec.mode, ()):
        if getattr(spec, option) != fields[option]:
            other = "time" if spec.mode == "state" else "state"
            wrong(option, f"it belongs to mode={other!r}")
    for option in ("published_state", "failed_state"):
        if getattr(spec, option) is not None and spec.state_column is None:
            wrong(option, "give state_column=, too")
    return problems


_OF_STATE = ("state_column", "publish_timestamp_column", "published_state", "failed_state")
"""Options of pollers that only one mode has."""


def handler_spec(function: Callable[..., Any], *, batch: bool, name: str) -> HandlerSpec:
    """Resolve a handler's signature.

    Args:
        function: A function or bound method. Its first parameter takes the message or, with `batch`, the list.
        batch: The mode that was declared.
        name: What to call it in errors.

    Raises:
        ConfigurationError: Every parameter that cannot be filled, and a first parameter of the wrong mode.
    """
    problems: list[str] = []
    parameters, hints = _signature(function, name, problems)
    is_async = _is_async(function)
    if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
        problems.append(f"consumer {name!r}: a handler cannot be a generator; it returns nothing")
    if problems:
        raise ConfigurationError(*problems)
    payload_type: Any = Any
    arguments: list[Argument] = []
    wanted = "list[Message]" if batch else "Message"
    if not parameters:
        problems.append(f"consumer {name!r}: it takes no parameter; the first one takes {wanted}")
    else:
        first, *further = parameters
        if first.kind is inspect.Parameter.KEYWORD_ONLY:
            problems.append(f"consumer {name!r}: its first parameter must be positional and take {wanted}")
        payload_type = _payload_type(hints.get(first.name, UNSET), first.name, batch, name, problems)
        for parameter in further:
            argument = _argument(parameter, hints, name, problems, batch, ())
            if argument is not None:
                arguments.append(argument)
    if not is_async and any(_needs_session(argument) for argument in arguments):
        problems.append(
            f"consumer {name!r}: it is a plain function, which runs in a thread, and cannot use an AsyncSession; "
            "write it as async def"
        )
    if problems:
        raise ConfigurationError(*problems)
    return HandlerSpec(function, is_async, batch, payload_type, tuple(arguments))


def _is_async(function: Callable[..., Any]) -> bool:
    """Whether calling it gives a coroutine: it, or what it wraps, is an `async def`."""
    while isinstance(function, functools.partial):
        function = function.func
    for target in (function, inspect.unwrap(function)):
        if inspect.iscoroutinefunction(target):
            return True
        call = getattr(target, "__call__", None)  # noqa: B004  # an object with an async __call__ is a handler too
        if inspect.iscoroutinefunction(call):
            return True
    return False


def _signature(
    function: Callable[..., Any], name: str, problems: list[str]
) -> tuple[Sequence[inspect.Parameter], dict[str, Any]]:
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError) as error:
        problems.append(f"consumer {name!r}: its signature cannot be read ({error})")
        return (), {}
    target = function
    while isinstance(target, functools.partial):
        target = target.func
    if not (inspect.isfunction(target) or inspect.ismethod(target)):
        target = type(target).__call__
    try:
        hints = typing.get_type_hints(target, include_extras=True)
    except Exception as error:
        # Evaluating an annotation runs user code (names, subscriptions), which may raise anything.
        problems.append(
            f"consumer {name!r}: its annotations cannot be resolved ({type(error).__name__}: {error}); "
            "names used in annotations must be importable at run time"
        )
        hints = {}
    return parameters, hints


def _payload_type(hint: Any, parameter: str, batch: bool, name: str, problems: list[str]) -> Any:
    if hint is UNSET or hint is Any or hint is inspect.Parameter.empty:
        return Any
    origin = get_origin(hint)
    if origin in (list, Sequence) or hint is list:
        if not batch:
            problems.append(
                f"consumer {name!r}: parameter {parameter!r} takes a list of messages, but the consumer is in message "
                "mode; declare batch=True, or annotate it as Message"
            )
            return Any
        inner = get_args(hint)
        return _message_type(inner[0] if inner else Any, parameter, name, problems, "list[Message]")
    if batch:
        problems.append(
            f"consumer {name!r}: batch=True, but parameter {parameter!r} is not annotated as list[Message]; "
            "annotate it so, or remove batch=True"
        )
        return Any
    return _message_type(hint, parameter, name, problems, "Message")


def _message_type(hint: Any, parameter: str, name: str, problems: list[str], wanted: str) -> Any:
    if hint is Any:
        return Any
    if hint is Message:
        return Any
    if get_origin(hint) is Message:
        return get_args(hint)[0]
    problems.append(
        f"consumer {name!r}: parameter {parameter!r} must take {wanted} "
        f"or {wanted.replace('Message', 'Message[Model]')}"
    )
    return Any


def _argument(
    parameter: inspect.Parameter,
    hints: dict[str, Any],
    name: str,
    problems: list[str],
    batch: bool,
    above: tuple[Callable[..., Any], ...],
) -> Argument | None:
    if parameter.kind in (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD):
        return None
    where = f"consumer {name!r}: parameter {parameter.name!r}"
    if parameter.kind is inspect.Parameter.POSITIONAL_ONLY:
        problems.append(f"{where} is positional only; further parameters are given by name")
        return None
    hint = hints.get(parameter.name, UNSET)
    if get_origin(hint) is Annotated:
        markers = [_marker(extra) for extra in get_args(hint)[1:]]
        found = [marker for marker in markers if marker is not None]
        for marker in found:
            if isinstance(marker, Depends):
                source = _provide(marker.provider, name, problems, batch, above)
                return None if source is None else Argument(parameter.name, source)
            problems.append(f"{where} uses FastAPI's Depends; import Depends from deimos_async")
            return None
        hint = get_args(hint)[0]
    default = parameter.default
    if isinstance(default, Depends) or _looks_like_fastapi(default):
        wanted = "Annotated[T, Depends(provider)]"
        whose = "" if isinstance(default, Depends) else " with Depends imported from deimos_async (not from FastAPI)"
        problems.append(f"{where} has Depends as its default; write {wanted}{whose}")
        return None
    if _is_session(hint):
        return Argument(parameter.name, TakeSession())
    if above and (hint is Message or get_origin(hint) in (Message, list)):
        return Argument(parameter.name, TakeMessage())
    if default is not inspect.Parameter.empty:
        return None
    problems.append(
        f"{where} cannot be filled: annotate it as AsyncSession or as Annotated[T, Depends(provider)], "
        "or give it a default"
    )
    return None


def _marker(extra: Any) -> Any:
    if isinstance(extra, Depends):
        return extra
    if isinstance(extra, type) and issubclass(extra, Depends):
        return None
    return extra if _looks_like_fastapi(extra) else None


def _looks_like_fastapi(value: Any) -> bool:
    cls = type(value)
    return cls.__name__ in ("Depends", "Security") and cls.__module__.partition(".")[0] == "fastapi"


def _is_session(hint: Any) -> bool:
    """Whether the annotation is SQLAlchemy's AsyncSession or a subclass, told without importing SQLAlchemy."""
    if get_origin(hint) in (types.UnionType, typing.Union):
        return any(_is_session(inner) for inner in get_args(hint))
    if not isinstance(hint, type):
        return False
    return any(
        cls.__name__ == "AsyncSession" and cls.__module__.startswith("sqlalchemy.ext.asyncio") for cls in hint.__mro__
    )


def _is_generator(function: Callable[..., Any]) -> bool:
    return inspect.isasyncgenfunction(function) or inspect.isgeneratorfunction(function)


def _provide(
    provider: Callable[..., Any],
    name: str,
    problems: list[str],
    batch: bool,
    above: tuple[Callable[..., Any], ...],
) -> Provide | None:
    label = getattr(provider, "__name__", repr(provider))
    if provider in above:
        problems.append(f"consumer {name!r}: provider {label!r} depends on itself")
        return None
    parameters, hints = _signature(provider, name, problems)
    arguments = [
        argument
        for parameter in parameters
        if (argument := _argument(parameter, hints, name, problems, batch, (*above, provider))) is not None
    ]
    inner = inspect.unwrap(provider)
    is_generator = inspect.isasyncgenfunction(inner) or inspect.isgeneratorfunction(inner)
    if inner is not provider and is_generator and not _is_generator(provider):
        problems.append(
            f"consumer {name!r}: provider {label!r} gives a context manager; "
            "give the generator function itself, without @contextmanager or @asynccontextmanager"
        )
        return None
    if inspect.isasyncgenfunction(provider):
        kind = "async_generator"
    elif inspect.isgeneratorfunction(provider):
        kind = "generator"
    else:
        kind = "async" if _is_async(provider) else "plain"
    return Provide(provider, typing.cast(Any, kind), tuple(arguments))
