"""Where schemas are known by id: the port to a schema registry, and its client for Confluent's HTTP API."""

from __future__ import annotations

import asyncio
import functools
import logging
import random as randomness
import time
from collections.abc import Awaitable, Callable, Coroutine, Hashable, Sequence
from typing import Any, NamedTuple, Protocol, TypeVar
from urllib.parse import quote

import httpx2

from deimos_async.errors import ConfigurationError, RegistryError, SchemaNotFoundError
from deimos_async.schemas.protocol import RegisteredSchema, SchemaReference
from deimos_async.schemas.registry_flights import PerLoop, SingleFlight
from deimos_async.schemas.registry_http import RegistryHttp
from deimos_async.schemas.registry_options import RegistryOptions

__all__ = ["HttpSchemaRegistry", "RegistryOptions", "SchemaRegistry", "escaped"]

logger = logging.getLogger("deimos_async.schemas")

_T = TypeVar("_T")
_Question = tuple[Hashable, ...]

_MAX_INT = 2**31 - 1
_MOST_MISSING = 10_000


class SchemaRegistry(Protocol):
    """Schemas by id and by subject.

    What is known is kept: an id, a version and a registered text never change, the newest version is asked for again
    after a while. Every method but `close` may raise RegistryUnavailableError (retriable) and RegistryError (a refusal;
    retriable if it is about the credentials). Cancelled: a registration may or may not have happened; it can be
    repeated.
    """

    async def register(
        self, subject: str, text: str, *, schema_type: str = "AVRO", references: Sequence[SchemaReference] = ()
    ) -> RegisteredSchema:
        """Make the schema a version of the subject, or find it there. `text` of the result is the text given.

        `version` is None where the registry does not tell it. Raises SchemaIncompatibleError.
        """

    async def lookup(
        self, subject: str, text: str, *, schema_type: str = "AVRO", references: Sequence[SchemaReference] = ()
    ) -> RegisteredSchema:
        """The schema if the subject has it already. Changes nothing. Raises SchemaNotFoundError."""

    async def by_id(self, id: int) -> RegisteredSchema:
        """The schema of that id, without subject and version. Raises SchemaNotFoundError; for id <= 0 unasked."""

    async def latest(self, subject: str) -> RegisteredSchema:
        """The newest version of the subject. Raises SchemaNotFoundError."""

    async def version(self, subject: str, version: int) -> RegisteredSchema:
        """One version of the subject, as references name it. Raises SchemaNotFoundError."""

    async def ping(self) -> None:
        """Ask once for a sign of life, without retries. Raises RegistryUnavailableError or RegistryError."""

    async def close(self) -> None:
        """Close connections and end what is under way. What is known stays known, and the next call connects again."""


class _Latest(NamedTuple):
    schema: RegisteredSchema
    until: float


class HttpSchemaRegistry:
    """Client of a registry with Confluent's HTTP API (Confluent, Apicurio, Karapace, Redpanda).

    However many ask the same question at once, one request is made; an error goes to all of them and is not kept, but
    that something does not exist is believed for `missing_ttl` seconds. What is cached is served while the registry is
    away, the newest version of a subject too when its time is over. Nothing is opened before the first question; the
    client may be used in several event loops, and each of them should `close` it before it ends.

    Args:
        options: Where the registry is and how long to wait for it.
        clock: Seconds that only grow; for tests.
        sleep: Waits for so many seconds; for tests.
        random: From [0, 1), for the jitter of retries; for tests.
        transport: In place of the network; for tests.

    Raises:
        ConfigurationError: A certificate or key cannot be used.

    Source: Confluent Schema Registry API v1. Deimos 2.6 caches by id and text too; differs by single flight, deadline,
    retries, fail-over, TLS options and the look-up of what exists.
    """

    def __init__(
        self,
        options: RegistryOptions,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        random: Callable[[], float] = randomness.random,
        transport: httpx2.AsyncBaseTransport | None = None,
    ) -> None:
        self._options = options
        self._clock = clock
        self._http = RegistryHttp(options, clock=clock, sleep=sleep, random=random, transport=transport)
        self._flights = PerLoop(SingleFlight)
        self._by_id: dict[int, RegisteredSchema] = {}
        self._by_text: dict[_Question, RegisteredSchema] = {}
        self._by_version: dict[tuple[str, int], RegisteredSchema] = {}
        self._latest: dict[str, _Latest] = {}
        self._missing = _Missing(options.missing_ttl, clock)
        self._registrations = 0

    async def register(
        self, subject: str, text: str, *, schema_type: str = "AVRO", references: Sequence[SchemaReference] = ()
    ) -> RegisteredSchema:
        """See `SchemaRegistry.register`."""
        key = (subject, schema_type, text, tuple(references))
        known = self._by_text.get(key)
        if known is not None:
            return known
        return await self._flights.get().ask(
            ("register", *key), lambda: self._register(key, subject, text, schema_type, tuple(references))
        )

    async def lookup(
        self, subject: str, text: str, *, schema_type: str = "AVRO", references: Sequence[SchemaReference] = ()
    ) -> RegisteredSchema:
        """See `SchemaRegistry.lookup`."""
        key = (subject, schema_type, text, tuple(references))
        known = self._by_text.get(key)
        if known is not None:
            return known
        return await self._ask(
            ("lookup", *key), lambda: self._look_up(key, subject, text, schema_type, tuple(references))
        )

    async def by_id(self, id: int) -> RegisteredSchema:
        """See `SchemaRegistry.by_id`."""
        known = self._by_id.get(id)
        if known is not None:
            return known
        if not 0 < id <= _MAX_INT:
            raise SchemaNotFoundError(f"{id} is not the id of a schema: ids are from 1 to {_MAX_INT}")
        return await self._ask(("id", id), lambda: self._fetch_id(id))

    async def latest(self, subject: str) -> RegisteredSchema:
        """See `SchemaRegistry.latest`. If the registry is away, the version known last is served."""
        known = self._latest.get(subject)
        if known is not None and self._clock() < known.until:
            return known.schema
        return await self._ask(("latest", subject), lambda: self._fetch_latest(subject))

    async def version(self, subject: str, version: int) -> RegisteredSchema:
        """See `SchemaRegistry.version`."""
        known = self._by_version.get((subject, version))
        if known is not None:
            return known
        if not 0 < version <= _MAX_INT:
            raise SchemaNotFoundError(f"{version} is not a version of subject {subject!r}: versions count from 1")
        return await self._ask(("version", subject, version), lambda: self._fetch_version(subject, version))

    async def ping(self) -> None:
        """See `SchemaRegistry.ping`."""
        await self._flights.get().ask(
            ("ping",), lambda: self._http.ask("GET", "/schemas/types", _read_types, what="list of types", once=True)
        )

    async def close(self) -> None:
        """See `SchemaRegistry.close`. Questions under way in this loop end with RegistryUnavailableError."""
        flights = self._flights.pop()
        if flights is not None:
            await flights.close()
        await self._http.close()

    async def _ask(self, question: _Question, fetch: Callable[[], Coroutine[Any, Any, _T]]) -> _T:
        missing = self._missing.find(question)
        if missing is not None:
            raise SchemaNotFoundError(missing)
        return await self._flights.get().ask(question, functools.partial(self._fetch, question, fetch))

    async def _fetch(self, question: _Question, fetch: Callable[[], Coroutine[Any, Any, _T]]) -> _T:
        registrations = self._registrations
        try:
            return await fetch()
        except SchemaNotFoundError as error:
            if registrations == self._registrations:  # else it may have been registered after the registry looked
                self._missing.add(question, str(error))
            raise

    async def _register(
        self, key: _Question, subject: str, text: str, schema_type: str, references: tuple[SchemaReference, ...]
    ) -> RegisteredSchema:
        id, version = await self._http.ask(
            "POST",
            f"/subjects/{escaped(subject)}/versions",
            _read_registration,
            what=f"the schema for subject {subject!r}",
            body=_posted(text, schema_type, references),
        )
        found = RegisteredSchema(id, text, schema_type, references, subject, version)
        self._registrations += 1
        self._by_text[key] = found
        self._remember(found)
        self._latest.pop(subject, None)
        self._missing.forget(subject, id)
        return found

    async def _look_up(
        self, key: _Question, subject: str, text: str, schema_type: str, references: tuple[SchemaReference, ...]
    ) -> RegisteredSchema:
        found = await self._http.ask(
            "POST",
            f"/subjects/{escaped(subject)}",
            functools.partial(_read_version, subject=subject),
            what=f"such schema under subject {subject!r}",
            body=_posted(text, schema_type, references),
        )
        self._by_text[key] = found
        self._remember(found)
        return found

    async def _fetch_id(self, id: int) -> RegisteredSchema:
        found = await self._http.ask(
            "GET", f"/schemas/ids/{id}", functools.partial(_read_schema, id=id), what=f"schema with id {id}"
        )
        return self._by_id.setdefault(id, found)

    async def _fetch_version(self, subject: str, version: int) -> RegisteredSchema:
        found = await self._http.ask(
            "GET",
            f"/subjects/{escaped(subject)}/versions/{version}",
            functools.partial(_read_version, subject=subject, version=version),
            what=f"version {version} of subject {subject!r}",
        )
        self._remember(found)
        return found

    async def _fetch_latest(self, subject: str) -> RegisteredSchema:
        known = self._latest.get(subject)
        registrations = self._registrations
        try:
            found = await self._http.ask(
                "GET",
                f"/subjects/{escaped(subject)}/versions/latest",
                functools.partial(_read_version, subject=subject),
                what=f"version of subject {subject!r}",
                once=known is not None,
            )
            ttl = self._options.latest_ttl
            self._remember(found)
        except SchemaNotFoundError:
            self._latest.pop(subject, None)
            raise
        except RegistryError as error:
            if known is None or not error.retriable:
                raise
            found, ttl = known.schema, self._options.missing_ttl
            logger.warning("subject %r: version %s is taken as the newest still: %s", subject, found.version, error)
        if registrations == self._registrations:  # else a newer version may have been registered meanwhile
            self._latest[subject] = _Latest(found, self._clock() + ttl)
        return found

    def _remember(self, found: RegisteredSchema) -> None:
        if found.subject is not None and found.version is not None:
            self._by_version[found.subject, found.version] = found
        # The first text that was seen of an id stays: registries may give one id to texts that differ in layout only.
        self._by_id.setdefault(found.id, RegisteredSchema(found.id, found.text, found.schema_type, found.references))


class _Missing:
    """What the registry did not have when it was asked, believed for `ttl` seconds.

    Bounded, since ids come from whoever writes into a topic: the oldest go first.
    """

    def __init__(self, ttl: float, clock: Callable[[], float]) -> None:
        self._ttl = ttl
        self._clock = clock
        self._known: dict[_Question, tuple[str, float]] = {}

    def find(self, question: _Question) -> str | None:
        """The registry's answer, if it still counts."""
        message, until = self._known.get(question, ("", 0.0))
        if message and self._clock() < until:
            return message
        self._known.pop(question, None)
        return None

    def add(self, question: _Question, message: str) -> None:
        self._known.pop(question, None)
        if len(self._known) >= _MOST_MISSING:
            del self._known[next(iter(self._known))]
        self._known[question] = (message, self._clock() + self._ttl)

    def forget(self, subject: str, id: int) -> None:
        """Something was registered under the subject and has that id."""
        for question in [known for known in self._known if known[1] == subject or known == ("id", id)]:
            del self._known[question]


def escaped(subject: str) -> str:
    """A subject as one part of a path. Raises ConfigurationError."""
    if subject in ("", ".", ".."):
        raise ConfigurationError(f"{subject!r} cannot be the subject of a schema: it has no place in a URL")
    return quote(subject, safe="")


def _posted(text: str, schema_type: str, references: Sequence[SchemaReference]) -> dict[str, Any]:
    body: dict[str, Any] = {"schema": text}
    if schema_type != "AVRO":  # registries of the time before other types refuse the word
        body["schemaType"] = schema_type
    if references:
        body["references"] = [
            {"name": reference.name, "subject": reference.subject, "version": reference.version}
            for reference in references
        ]
    return body


def _read_types(data: Any) -> None:
    if not isinstance(data, list):
        raise ValueError("not a list of schema types")


def _read_registration(data: Any) -> tuple[int, int | None]:
    version = _object(data).get("version")
    return _positive(data, "id"), None if version is None else _positive(data, "version")


def _read_schema(data: Any, *, id: int) -> RegisteredSchema:
    return RegisteredSchema(
        id, _text(_object(data), "schema"), _text(data, "schemaType", default="AVRO"), _references(data)
    )


def _read_version(data: Any, *, subject: str, version: int | None = None) -> RegisteredSchema:
    schema = _read_schema(data, id=_positive(_object(data), "id"))
    found = _positive(data, "version")
    if version is not None and found != version:
        raise ValueError("another version than asked for")
    return RegisteredSchema(schema.id, schema.text, schema.schema_type, schema.references, subject, found)


def _object(data: Any) -> dict[str, Any]:
    if not isinstance(data, dict):
        raise ValueError("not a JSON object")
    return data


def _positive(data: dict[str, Any], name: str) -> int:
    value = data.get(name)
    if type(value) is int and 0 < value <= _MAX_INT:
        return value
    raise ValueError(f"{name!r} is not a positive 32-bit integer")


def _text(data: dict[str, Any], name: str, *, default: str | None = None) -> str:
    value = data.get(name)
    if value is None:
        value = default
    if isinstance(value, str):
        return value
    raise ValueError(f"{name!r} is not a text")


def _references(data: dict[str, Any]) -> tuple[SchemaReference, ...]:
    listed = data.get("references")
    if listed is None:
        return ()
    if not isinstance(listed, list):
        raise ValueError("'references' is not a list")
    return tuple(
        SchemaReference(_text(_object(entry), "name"), _text(entry, "subject"), _positive(entry, "version"))
        for entry in listed
    )
