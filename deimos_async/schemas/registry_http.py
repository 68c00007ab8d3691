"""One question to a schema registry over HTTP: to which URL, how often, for how long, and what its status means."""

from __future__ import annotations

import asyncio
import email.utils
import json
import logging
import math
import re
import ssl
from collections.abc import Awaitable, Callable, Iterator, Mapping
from typing import Any, NamedTuple, NoReturn, TypeVar

import httpx2

from deimos_async.errors import (
    RegistryError,
    RegistryUnavailableError,
    SchemaIncompatibleError,
    SchemaNotFoundError,
)
from deimos_async.schemas.registry_flights import PerLoop
from deimos_async.schemas.registry_options import CREDENTIALS, URL_SETTING, RegistryOptions

__all__ = ["RegistryHttp"]

logger = logging.getLogger("deimos_async.schemas")

_T = TypeVar("_T")

_CONTENT_TYPE = "application/vnd.schemaregistry.v1+json"
_HEADERS = {
    "Accept": f"{_CONTENT_TYPE}, application/json",
    # Plain bytes: what a compressed answer grows to is known only after it has grown.
    "Accept-Encoding": "identity",
    "User-Agent": "deimos-async",
}
_TRANSIENT = frozenset({408, 425, 429})
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_MOST_REDIRECTS = 5
_MOST_MESSAGE = 500
_BACKOFF_INITIAL = 0.1
_BACKOFF_MAXIMUM = 5.0


class _Failed(Exception):
    """This URL gave no answer that counts.

    Args:
        wait: Seconds until it may be asked again at the earliest; infinite if not within this question.
    """

    def __init__(self, reason: str, *, wait: float = 0.0) -> None:
        super().__init__(reason)
        self.wait = wait


class _Answer(NamedTuple):
    status: int
    headers: Mapping[str, str]
    content: bytes


class _Connecting:
    """Closes the connection whose TLS handshake was cancelled: the HTTP client forgets it.

    An instance belongs to one request, as its `trace` extension.
    """

    def __init__(self) -> None:
        self._connected: Any = None

    async def __call__(self, event: str, info: Mapping[str, Any]) -> None:
        if event == "connection.connect_tcp.complete":
            self._connected = info["return_value"]
        elif event == "connection.start_tls.failed" and self._connected is not None:
            await self._connected.aclose()


class RegistryHttp:
    """Asks the first URL that answers, beginning with the one that answered last.

    A failure that may pass (no connection, time-out, 408, 425, 429, 5xx) leads to the next URL, and after the last one,
    with a growing wait, to the first again until the deadline. What is no answer of a registry (not JSON, a refusal
    without the registry's error code, a redirect to elsewhere) leads to the next URL too, but that URL is not asked
    again. Every other answer is final.

    Proxies, netrc files and certificates named by environment variables for HTTP clients are not used: credentials go
    to the registry that they belong to, on the way that the settings say.

    Args:
        options: Checked by themselves; files of certificates are read here.
        clock: Seconds that only grow.
        sleep: Waits for so many seconds.
        random: From [0, 1).
        transport: In place of the network, for tests.

    Raises:
        ConfigurationError: A certificate or key cannot be used.
    """

    def __init__(
        self,
        options: RegistryOptions,
        *,
        clock: Callable[[], float],
        sleep: Callable[[float], Awaitable[None]],
        random: Callable[[], float],
        transport: httpx2.AsyncBaseTransport | None = None,
    ) -> None:
        self._options = options
        self._clock = clock
        self._sleep = sleep
        self._random = random
        self._transport = transport
        self._urls = tuple(url.rstrip("/") for url in options.urls)
        self._preferred = 0
        self._secrets = options.secrets()
        self._ssl_context = options.ssl_context()
        self._clients = PerLoop(self._make_client)

    async def ask(
        self,
        method: str,
        path: str,
        read: Callable[[Any], _T],
        *,
        what: str,
        body: Any = None,
        once: bool = False,
    ) -> _T:
        """The answer to one question.

        Args:
            method: `GET`, `DELETE`, or `POST` of something that may be posted twice.
            path: After the base URL; escaped.
            read: Makes the answer of the parsed JSON. Raises ValueError saying what is wrong with it.
            what: What is asked for, for errors: `"schema with id 7"`.
            body: Sent as JSON.
            once: Ask each URL at most once, without waiting.

        Raises:
            RegistryUnavailableError: No URL answered like a registry until the deadline; names the setting and URLs.
            SchemaNotFoundError: The registry says that it does not have it.
            SchemaIncompatibleError: The registry refuses the schema as incompatible (409).
            RegistryError: Any other refusal. 401 and 403 name the settings of the credentials and are retriable: they
                are the surroundings' fault, never a message's.

        Cancelled: the request is given up; whether the registry heard it is not known.
        """
        options = self._options
        content = None if body is None else json.dumps(body).encode()
        until = self._clock() + options.deadline
        not_before = dict.fromkeys(range(len(self._urls)), -math.inf)
        reasons: dict[int, str] = {}
        attempt = 0
        while True:
            delay = self._backoff(attempt)
            attempt += 1
            cause: Exception | None = None
            for index in self._in_turn():
                now = self._clock()
                if now >= until or not_before[index] > now:
                    continue
                limit = min(options.request_timeout, until - now)
                try:
                    async with asyncio.timeout(limit):
                        answer = await self._exchange(method, self._urls[index] + path, content)
                    result = self._judge(answer, read, what, self._urls[index])
                except _Failed as failed:
                    cause, reasons[index], wait = failed, str(failed), failed.wait
                except (httpx2.HTTPError, OSError) as error:
                    cut_short = isinstance(error, TimeoutError) and limit < options.request_timeout
                    if not cut_short or index not in reasons:  # a try cut short by the deadline says less
                        cause, reasons[index] = error, self._transport_reason(error, limit)
                    wait = 0.0
                else:
                    self._preferred = index
                    return result
                not_before[index] = self._clock() + max(delay, wait)
            now = self._clock()
            due = min(not_before.values())
            if once or due >= until or now >= until:
                self._give_up(reasons, cause)
            logger.warning("schema registry: %s; next try in %.1f s", self._list(reasons), due - now)
            await self._sleep(max(0.0, due - now))

    async def close(self) -> None:
        """Close the running loop's connections. The next question opens others, in whatever loop it is asked."""
        client = self._clients.pop()
        if client is not None:
            await client.aclose()

    def _make_client(self) -> httpx2.AsyncClient:
        headers = dict(_HEADERS)
        if (authorization := self._options.authorization()) is not None:
            headers["Authorization"] = authorization
        return httpx2.AsyncClient(
            headers=headers,
            verify=self._ssl_context,
            trust_env=False,
            timeout=None,  # it would start anew with every piece of the answer; `ask` limits the whole
            transport=self._transport,
        )

    def _in_turn(self) -> Iterator[int]:
        preferred, count = self._preferred, len(self._urls)
        return ((preferred + step) % count for step in range(count))

    def _backoff(self, attempt: int) -> float:
        """Exponential backoff with equal jitter: half is fixed, half is drawn."""
        ceiling = min(_BACKOFF_MAXIMUM, _BACKOFF_INITIAL * 2.0 ** min(attempt, 60))
        return ceiling / 2 + ceiling / 2 * self._random()

    async def _exchange(self, method: str, url: str, content: bytes | None) -> _Answer:
        client = self._clients.get()
        headers = {} if content is None else {"Content-Type": _CONTENT_TYPE}
        target = httpx2.URL(url)
        for _ in range(1 + _MOST_REDIRECTS):
            request = client.build_request(
                method, target, content=content, headers=headers, extensions={"trace": _Connecting()}
            )
            response = await client.send(request, stream=True, follow_redirects=False)
            try:
                location = response.headers.get("Location")
                if response.status_code not in _REDIRECTS or location is None:
                    return _Answer(response.status_code, response.headers, await self._read(response))
            finally:
                await response.aclose()
            target = self._redirected(method, response.status_code, target, location)
        raise _Failed(f"redirects more than {_MOST_REDIRECTS} times", wait=math.inf)

    def _redirected(self, method: str, status: int, target: httpx2.URL, location: str) -> httpx2.URL:
        try:
            found = target.join(location)
        except httpx2.InvalidURL as error:
            raise _Failed("redirects to something that is not a URL", wait=math.inf) from error
        if _origin(found) != _origin(target) or found.userinfo:
            # Following would hand the credentials to somebody else.
            elsewhere = self._scrub(f"{found.scheme}://{found.netloc.decode(errors='replace').rpartition('@')[2]}")
            raise _Failed(
                f"redirects to {elsewhere}, which is not followed; if it is the registry, set it", wait=math.inf
            )
        if method != "GET" and status not in (307, 308):
            # RFC 9110, 15.4: clients turn these into a GET, and nothing would be registered.
            raise _Failed(f"redirects a {method} with status {status}, which is not followed", wait=math.inf)
        return found

    async def _read(self, response: httpx2.Response) -> bytes:
        encoding = response.headers.get("Content-Encoding", "identity").strip().lower()
        if encoding != "identity":
            raise _Failed("answers compressed although it was asked not to", wait=math.inf)
        limit = self._options.max_schema_bytes
        content = bytearray()
        async for chunk in response.aiter_raw():
            content += chunk
            if len(content) > limit:
                if response.is_success:
                    raise RegistryError(
                        f"the schema registry's answer to {response.request.method} {response.url.path} "
                        f"is larger than {limit} bytes and was refused",
                        status=response.status_code,
                    )
                break
        return bytes(content[:limit])

    def _judge(self, answer: _Answer, read: Callable[[Any], _T], what: str, url: str) -> _T:
        status = answer.status
        if 200 <= status < 300:
            try:
                return read(json.loads(answer.content))
            except (ValueError, RecursionError) as error:
                reason = "not JSON" if isinstance(error, json.JSONDecodeError | UnicodeDecodeError) else str(error)
                raise _Failed(f"does not answer like a registry ({self._scrub(reason)})", wait=math.inf) from error
        code, message = _refusal(answer.content)
        said = f": {self._scrub(message)}" if message else ""
        if status in _TRANSIENT or status >= 500:
            raise _Failed(f"status {status}{said}", wait=_retry_after(answer.headers))
        if status in (401, 403):
            what_failed = "does not accept the credentials" if status == 401 else f"does not allow to have {what}"
            refusal = RegistryError(
                f"the schema registry {url} {what_failed} (status {status}{said}); check {CREDENTIALS}",
                status=status,
                code=code,
            )
            refusal.retriable = True
            raise refusal
        if code is None or (status == 404 and not 40400 <= code <= 40499):
            # A wrong path or a proxy in between says 404 too, and then every message would count as unreadable.
            raise _Failed(
                f"status {status} without a registry's error code{said}; is the path of the URL right?", wait=math.inf
            )
        if status == 404:
            raise SchemaNotFoundError(f"the schema registry has no {what}{said}")
        if status == 409:
            raise SchemaIncompatibleError(f"the schema registry refuses {what}{said}")
        raise RegistryError(
            f"the schema registry refuses {what} (status {status}, code {code}){said}", status=status, code=code
        )

    def _transport_reason(self, error: Exception, limit: float) -> str:
        if isinstance(error, TimeoutError | httpx2.TimeoutException):
            return f"no answer within {limit:.3g} s"
        cause: BaseException | None = error
        while cause is not None:
            if isinstance(cause, ssl.SSLError):
                problem = getattr(cause, "verify_message", None) or cause.reason or str(cause)
                return (
                    f"TLS fails ({self._scrub(problem)}); "
                    "check settings 'schema.ssl_ca', 'schema.ssl_certificate' and 'schema.ssl_key'"
                )
            cause = cause.__cause__ or cause.__context__
        return self._scrub(str(error)) or type(error).__name__

    def _give_up(self, reasons: Mapping[int, str], cause: Exception | None) -> NoReturn:
        raise RegistryUnavailableError(f"no schema registry answers ({URL_SETTING}): {self._list(reasons)}") from cause

    def _list(self, reasons: Mapping[int, str]) -> str:
        return "; ".join(f"{url}: {reasons.get(index, 'not reached in time')}" for index, url in enumerate(self._urls))

    def _scrub(self, text: str) -> str:
        """One line without credentials, at most 500 characters: the other side wrote it."""
        line = " ".join("".join(letter if letter.isprintable() else " " for letter in text).split())
        for secret in self._secrets:
            line = line.replace(secret, "***")
        return re.sub(r"//[^/\s@]*@", "//***@", line)[:_MOST_MESSAGE]


def _refusal(content: bytes) -> tuple[int | None, str]:
    """Error code and message in the registry's own form; (None, "") of anything else."""
    try:
        data = json.loads(content)
    except (ValueError, RecursionError):
        return None, ""
    if not isinstance(data, dict):
        return None, ""
    code, message = data.get("error_code"), data.get("message")
    return code if type(code) is int else None, message if isinstance(message, str) else ""


def _retry_after(headers: Mapping[str, str]) -> float:
    """Seconds that the answer asks to wait; 0 if it does not. RFC 9110, 10.2.3: seconds, or a date.

    A date is read against the answer's own, so that the two clocks need not agree.
    """
    value = headers.get("Retry-After", "").strip()
    if value.isascii() and value.isdigit():
        return float(value[:9])
    try:
        until = email.utils.parsedate_to_datetime(value)
        now = email.utils.parsedate_to_datetime(headers.get("Date", ""))
        return max(0.0, (until - now).total_seconds())
    except (ValueError, TypeError):
        return 0.0


def _origin(url: httpx2.URL) -> tuple[str, str, int | None]:
    default = {"http": 80, "https": 443}.get(url.scheme)
    return url.scheme, url.host, url.port or default
