"""How a cluster is reached, in aiokafka's words: addresses, TLS, SASL."""

from __future__ import annotations

import importlib
import logging
import ssl
import tempfile
from collections.abc import Awaitable, Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aiokafka.abc import AbstractTokenProvider

from deimos_async.errors import ConfigurationError

if TYPE_CHECKING:
    # Start-up time: pydantic is not needed for connecting.
    from deimos_async.settings import KafkaSettings

__all__ = ["KafkaOptions"]

_SET_ELSEWHERE = frozenset({
    "bootstrap_servers", "client_id", "request_timeout_ms", "security_protocol", "ssl_context", "sasl_mechanism",
    "sasl_plain_username", "sasl_plain_password", "sasl_oauth_token_provider", "loop", "api_version",
})  # fmt: skip
"""Options of the client library that are settings of their own, or that it no longer heeds."""


@dataclass(frozen=True, slots=True)
class KafkaOptions:
    """One cluster's connection. Fields as in `KafkaSettings`; secrets are plain text here and not shown by `repr`."""

    bootstrap_servers: str = "localhost:9092"
    security_protocol: str = "PLAINTEXT"
    sasl_mechanism: str | None = None
    sasl_username: str | None = None
    sasl_password: str | None = field(default=None, repr=False)
    sasl_oauth_token_provider: str | None = None
    ssl_ca: str | None = field(default=None, repr=False)
    ssl_certificate: str | None = field(default=None, repr=False)
    ssl_key: str | None = field(default=None, repr=False)
    ssl_key_password: str | None = field(default=None, repr=False)
    ssl_check_hostname: bool = True
    client_id: str = "deimos-async"
    connect_timeout: float = 10.0
    request_timeout: float = 30.0
    extra: Mapping[str, Any] = field(default_factory=dict, repr=False)

    @classmethod
    def from_settings(cls, settings: KafkaSettings) -> KafkaOptions:
        """The same, from a group of settings."""

        def secret(value: Any) -> str | None:
            return None if value is None else str(value.get_secret_value())

        return cls(
            bootstrap_servers=settings.bootstrap_servers,
            security_protocol=settings.security_protocol,
            sasl_mechanism=settings.sasl_mechanism,
            sasl_username=settings.sasl_username,
            sasl_password=secret(settings.sasl_password),
            sasl_oauth_token_provider=settings.sasl_oauth_token_provider,
            ssl_ca=settings.ssl_ca,
            ssl_certificate=settings.ssl_certificate,
            ssl_key=secret(settings.ssl_key),
            ssl_key_password=secret(settings.ssl_key_password),
            ssl_check_hostname=settings.ssl_check_hostname,
            client_id=settings.client_id,
            connect_timeout=settings.connect_timeout,
            request_timeout=settings.request_timeout,
            extra=settings.extra,
        )

    def connection(self, setting: str) -> dict[str, Any]:
        """Arguments that every client of aiokafka takes.

        Args:
            setting: Name of the settings group, for errors: `kafka` or `clusters.<name>`.

        Raises:
            ConfigurationError: A certificate, key or token provider cannot be used.
        """
        arguments: dict[str, Any] = {
            "bootstrap_servers": self.bootstrap_servers,
            "client_id": self.client_id,
            "request_timeout_ms": milliseconds(self.request_timeout),
            "security_protocol": self.security_protocol,
        }
        if self.security_protocol in ("SSL", "SASL_SSL"):
            arguments["ssl_context"] = self._ssl_context(setting)
        if self.security_protocol.startswith("SASL"):
            arguments["sasl_mechanism"] = self.sasl_mechanism
            if self.sasl_mechanism == "OAUTHBEARER":
                arguments["sasl_oauth_token_provider"] = _token_provider(self.sasl_oauth_token_provider, setting)
            else:
                arguments["sasl_plain_username"] = self.sasl_username
                arguments["sasl_plain_password"] = self.sasl_password
        return arguments

    def _ssl_context(self, setting: str) -> ssl.SSLContext:
        try:
            if self.ssl_ca is None:
                context = ssl.create_default_context()
            elif _is_pem(self.ssl_ca):
                context = ssl.create_default_context(cadata=self.ssl_ca)
            else:
                context = ssl.create_default_context(cafile=self.ssl_ca)
        except (OSError, ValueError) as error:
            raise ConfigurationError(f"setting '{setting}.ssl_ca' cannot be used: {_reason(error)}") from error
        context.check_hostname = self.ssl_check_hostname
        if self.ssl_certificate is not None:
            try:
                with ExitStack() as stack:
                    certificate = _as_file(self.ssl_certificate, stack)
                    key = None if self.ssl_key is None else _as_file(self.ssl_key, stack)
                    # Without a password OpenSSL would ask for one on the terminal.
                    context.load_cert_chain(certificate, key, self.ssl_key_password or "")
            except (OSError, ValueError) as error:
                raise ConfigurationError(
                    f"settings '{setting}.ssl_certificate', '{setting}.ssl_key' and '{setting}.ssl_key_password' "
                    f"cannot be used together: {_reason(error)}"
                ) from error
        return context


class _WithoutCredentials(logging.Filter):
    """aiokafka 0.14 logs every request at DEBUG, the one that carries user name and password included."""

    def filter(self, record: logging.LogRecord) -> bool:
        arguments = record.args if isinstance(record.args, tuple) else ()
        return not any(type(argument).__name__.startswith("SaslAuthenticateRequest") for argument in arguments)


logging.getLogger("aiokafka.conn").addFilter(_WithoutCredentials())


def milliseconds(seconds: float) -> int:
    """aiokafka's durations are whole milliseconds."""
    return max(1, round(seconds * 1000))


def check_extra(
    extra: Mapping[str, Any], accepted: frozenset[str], guarded: Mapping[str, str], where: str
) -> dict[str, Any]:
    """Options that pass through to the client library.

    Args:
        extra: As the user gave them.
        accepted: Names that the client has.
        guarded: Names that would break a guarantee, and why or what to use instead.
        where: What is configured, for errors.

    Raises:
        ConfigurationError: Names all that cannot be passed.
    """
    problems = []
    for name in extra:
        if name in guarded:
            problems.append(f"{where}: extra option {name!r} cannot be given: {guarded[name]}")
        elif name in _SET_ELSEWHERE:
            problems.append(f"{where}: extra option {name!r} cannot be given: it is set by the settings of the cluster")
        elif name not in accepted:
            problems.append(f"{where}: extra option {name!r} is unknown to the client library; remove it")
    if problems:
        raise ConfigurationError(*problems)
    return dict(extra)


class _TokenProvider(AbstractTokenProvider):  # type: ignore[misc]  # the library has no types
    def __init__(self, fresh_token: Callable[[], Awaitable[str]]) -> None:
        self._fresh_token = fresh_token

    async def token(self) -> str:
        return await self._fresh_token()


def _token_provider(path: str | None, setting: str) -> _TokenProvider:
    name = f"setting '{setting}.sasl_oauth_token_provider'"
    module, colon, attribute = (path or "").partition(":")
    if not (module and colon and attribute):
        raise ConfigurationError(f"{name} is {path!r}; give 'module:attribute' of an async callable")
    try:
        found: Any = importlib.import_module(module)
        for step in attribute.split("."):
            found = getattr(found, step)
    except (ImportError, AttributeError) as error:
        raise ConfigurationError(f"{name} is {path!r}, which cannot be imported: {error}") from error
    if not callable(found):
        raise ConfigurationError(f"{name} is {path!r}, which is not callable")
    return _TokenProvider(found)


def _is_pem(text: str) -> bool:
    return "-----BEGIN" in text


def _as_file(value: str, stack: ExitStack) -> str:
    """The value if it is a path; PEM text is put into a file that only we may read, for as long as the stack lives."""
    if not _is_pem(value):
        return value
    folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="deimos-"))  # mode 0700
    path = Path(folder) / "pem"
    path.write_text(value)
    return str(path)


def _reason(error: Exception) -> str:
    # Never the value: it may be the PEM text of a key.
    return getattr(error, "strerror", None) or getattr(error, "reason", None) or type(error).__name__
