"""A schema registry that speaks Confluent's API: Apicurio Registry, with its content in memory."""

import functools
from pathlib import Path

from servers import downloads
from servers.ports import HOST, exchange, free_port
from servers.process import Server, ServerError
from servers.programs import Need, java, java_missing

VERSION = "3.3.3"

_PROGRAM = f"apicurio-registry-{VERSION}"
_API = "/apis/ccompat/v7"


class Registry(Server):
    """One registry. It keeps nothing: after a restart it is empty."""

    name = "registry"

    def __init__(self, *, port: int | None = None) -> None:
        super().__init__()
        self.port = port or free_port()
        self._management_port = free_port()

    @classmethod
    def missing(cls) -> list[Need]:
        return java_missing() + downloads.missing_for(_PROGRAM)

    @classmethod
    async def prepare(cls) -> None:
        artifact = f"io.apicurio:apicurio-registry-app:{VERSION}:tar.gz:all"
        await downloads.fetch(_PROGRAM, "dependency:unpack", f"-Dartifact={artifact}")

    @property
    def url(self) -> str:
        """Base URL of the Confluent-compatible API."""
        return f"http://{HOST}:{self.port}{_API}"

    @property
    def address(self) -> str:
        return self.url

    async def _create(self) -> None:
        """Nothing is kept on disk."""

    def _command(self) -> list[str]:
        return [java(), "-Xmx512m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-jar", str(_jar())]

    def _environment(self) -> dict[str, str]:
        # Without the management settings it takes port 9000 on every address.
        return super()._environment() | {
            "QUARKUS_HTTP_HOST": HOST,
            "QUARKUS_HTTP_PORT": str(self.port),
            "QUARKUS_MANAGEMENT_HOST": HOST,
            "QUARKUS_MANAGEMENT_PORT": str(self._management_port),
        }

    async def _is_ready(self) -> bool:
        request = f"GET {_API}/subjects HTTP/1.1\r\nHost: {HOST}\r\nConnection: close\r\n\r\n"
        return await exchange(HOST, self.port, request.encode(), 12) == b"HTTP/1.1 200"


@functools.cache
def _jar() -> Path:
    folder = downloads.cache_directory() / _PROGRAM
    for jar in folder.rglob("quarkus-run.jar"):
        return jar
    raise ServerError(f"{folder} has no quarkus-run.jar: delete the folder, and it is fetched again")
