"""Where a schema registry is, how it is reached, and what it is told about us."""

from __future__ import annotations

import base64
import ssl
from collections.abc import Iterator
from dataclasses import dataclass, field
from urllib.parse import quote

import httpx2

from deimos_async.errors import ConfigurationError

__all__ = ["CREDENTIALS", "URL_SETTING", "RegistryOptions"]

URL_SETTING = "setting 'schema.registry_url' (or the topic's registry_url)"
CREDENTIALS = (
    "settings 'schema.user' and 'schema.password', or 'schema.token' "
    "(for a topic's own registry its registry_user and registry_password)"
)


@dataclass(frozen=True, slots=True)
class RegistryOptions:
    """How one registry is reached. Fields as in `SchemaSettings`; secrets are plain text here and not shown by `repr`.

    Raises:
        ConfigurationError: All mistakes together; none shows a secret.
    """

    urls: tuple[str, ...]
    """Base URLs of the same registry, http or https; what precedes `/subjects` belongs to them."""
    user: str | None = None
    password: str | None = field(default=None, repr=False)
    token: str | None = field(default=None, repr=False)
    ssl_ca: str | None = None
    ssl_certificate: str | None = None
    ssl_key: str | None = field(default=None, repr=False)
    request_timeout: float = 5.0
    deadline: float = 30.0
    latest_ttl: float = 300.0
    missing_ttl: float = 10.0
    max_schema_bytes: int = 1024 * 1024
    """Most bytes of one answer, which is a schema as a JSON string with a few words around it."""

    def __post_init__(self) -> None:
        if problems := [*self._url_problems(), *self._credential_problems()]:
            raise ConfigurationError(*problems)

    def _url_problems(self) -> Iterator[str]:
        if not self.urls:
            yield f"{URL_SETTING} is empty; give http(s)://host[:port][/path]"
        for number, text in enumerate(self.urls, start=1):
            # No URL is shown before it is known to hold no password.
            which = URL_SETTING if len(self.urls) == 1 else f"URL {number} in {URL_SETTING}"
            try:
                url = httpx2.URL(text)
            except httpx2.InvalidURL:
                yield f"{which} is not a URL; give http(s)://host[:port][/path]"
                continue
            if "@" in text:
                yield f"{which} holds credentials; remove them from the URL and use {CREDENTIALS}"
            elif url.scheme not in ("http", "https") or not url.host:
                yield f"{which} is {text!r}; give http(s)://host[:port][/path]"
            elif url.query or url.fragment or "?" in text or "#" in text:
                yield f"{which} is {text!r}; remove what follows the path"

    def _credential_problems(self) -> Iterator[str]:
        if self.token is not None and self.user is not None:
            yield "settings 'schema.token' and 'schema.user' exclude each other; keep one way of authentication"
        if self.password is not None and self.user is None:
            yield "a password for the schema registry is given without its user: set 'schema.user' (or registry_user)"
        if self.user is not None and ":" in self.user:
            yield "the schema registry's user contains a colon, which basic authentication cannot carry (RFC 7617)"
        if self.token is not None and not (self.token and self.token.isascii() and self.token.isprintable()):
            yield "setting 'schema.token' must be printable ASCII without line breaks"
        if self.ssl_key is not None and self.ssl_certificate is None:
            yield "setting 'schema.ssl_key' is given without 'schema.ssl_certificate'"

    def authorization(self) -> str | None:
        """Value of the header of that name; None without credentials."""
        if self.token is not None:
            return f"Bearer {self.token}"
        if self.user is not None:
            pair = f"{self.user}:{self.password or ''}"  # in UTF-8, RFC 7617
            return f"Basic {base64.b64encode(pair.encode()).decode()}"
        return None

    def secrets(self) -> tuple[str, ...]:
        """Texts that no message may show, the longest first."""
        found = {self.password, self.token, (self.authorization() or "").partition(" ")[2]}
        found |= {quote(secret, safe="") for secret in found if secret}
        return tuple(sorted((secret for secret in found if secret), key=len, reverse=True))

    def ssl_context(self) -> ssl.SSLContext:
        """For https; without such a URL one that trusts nobody. Raises ConfigurationError naming the setting."""
        if not any(url.lower().startswith("https:") for url in self.urls):
            return ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        try:
            context = ssl.create_default_context(cafile=self.ssl_ca)
        except (OSError, ValueError) as error:
            raise ConfigurationError(f"setting 'schema.ssl_ca' cannot be used: {_os_reason(error)}") from error
        if self.ssl_certificate is not None:
            try:
                # Without a password OpenSSL would ask for one on the terminal.
                context.load_cert_chain(self.ssl_certificate, self.ssl_key, "")
            except (OSError, ValueError) as error:
                raise ConfigurationError(
                    "settings 'schema.ssl_certificate' and 'schema.ssl_key' cannot be used together: "
                    f"{_os_reason(error)}"
                ) from error
        return context


def _os_reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or getattr(error, "reason", None) or type(error).__name__
