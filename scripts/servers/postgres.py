"""PostgreSQL from the machine's own packages."""

import signal

from servers.ports import HOST, free_port
from servers.process import Server
from servers.programs import Account, Need, find_program, program, unprivileged_account

USER = DATABASE = "deimos"


class Postgres(Server):
    """One PostgreSQL server with a superuser and a database `deimos`, without a password, on TCP only."""

    name = "postgres"
    stop_signal = signal.SIGINT
    """Fast shutdown: sessions are ended, and the server with them. SIGTERM would wait for clients to leave."""

    def __init__(self, *, port: int | None = None) -> None:
        super().__init__()
        self.port = port or free_port()

    @classmethod
    def missing(cls) -> list[Need]:
        there = find_program("initdb") is not None and find_program("postgres") is not None
        return [] if there else [Need("the PostgreSQL server", "postgresql")]

    @property
    def url(self) -> str:
        """SQLAlchemy's URL, for asyncpg."""
        return f"postgresql+asyncpg://{USER}@{HOST}:{self.port}/{DATABASE}"

    @property
    def address(self) -> str:
        return self.url

    def _account(self) -> Account | None:
        return unprivileged_account("postgres")

    async def _create(self) -> None:
        await self._run(
            [program("initdb"), "-D", self._data, "-A", "trust", "-U", USER, "-E", "UTF8", "--locale=C"],
        )
        statement = f"CREATE DATABASE {DATABASE}\n".encode()
        await self._run([program("postgres"), "--single", "-D", self._data, "postgres"], given=statement)

    def _command(self) -> list[str]:
        # Socket files would have to lie in a folder with a short name; nobody needs them.
        return [
            *(program("postgres"), "-D", self._data, "-h", HOST, "-p", str(self.port)),
            *("-c", "unix_socket_directories="),
        ]

    async def _is_ready(self) -> bool:
        # What pg_ctl waits for: line 8 of the file says so, and line 1 tells our server's file from a dead one's.
        try:
            lines = (self.directory / "data" / "postmaster.pid").read_text().splitlines()
        except FileNotFoundError:
            return False
        return len(lines) >= 8 and lines[0] == str(self.pid) and lines[7].strip() == "ready"

    @property
    def _data(self) -> str:
        return str(self.directory / "data")
