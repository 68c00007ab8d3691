"""MariaDB, which stands for MySQL's protocol, from the machine's own packages."""

from servers.ports import HOST, exchange, free_port
from servers.process import Server
from servers.programs import Account, Need, find_program, program, unprivileged_account

USER = PASSWORD = DATABASE = "deimos"

_FIRST_STATEMENTS = f"""\
CREATE DATABASE IF NOT EXISTS {DATABASE};
CREATE USER IF NOT EXISTS '{USER}'@'%' IDENTIFIED BY '{PASSWORD}';
GRANT ALL PRIVILEGES ON *.* TO '{USER}'@'%' WITH GRANT OPTION;
"""


class MariaDB(Server):
    """One MariaDB server with a database `deimos`, and an all-powerful user of that name and password."""

    name = "mariadb"

    def __init__(self, *, port: int | None = None) -> None:
        super().__init__()
        self.port = port or free_port()

    @classmethod
    def missing(cls) -> list[Need]:
        there = find_program("mariadb-install-db") is not None and find_program("mariadbd") is not None
        return [] if there else [Need("the MariaDB server", "mariadb-server")]

    @property
    def url(self) -> str:
        """SQLAlchemy's URL, for aiomysql."""
        return f"mysql+aiomysql://{USER}:{PASSWORD}@{HOST}:{self.port}/{DATABASE}?charset=utf8mb4"

    @property
    def address(self) -> str:
        return self.url

    def _account(self) -> Account | None:
        return unprivileged_account("mysql")

    async def _create(self) -> None:
        (self.directory / "first.sql").write_text(_FIRST_STATEMENTS)
        await self._run(
            [
                *(program("mariadb-install-db"), "--no-defaults", f"--datadir={self.directory / 'data'}"),
                *("--auth-root-authentication-method=normal", "--skip-test-db"),
            ]
        )

    def _command(self) -> list[str]:
        return [
            *(program("mariadbd"), "--no-defaults", f"--datadir={self.directory / 'data'}"),
            *(f"--bind-address={HOST}", f"--port={self.port}", f"--socket={self.directory / 'mariadb.sock'}"),
            *(f"--pid-file={self.directory / 'mariadb.pid'}", f"--init-file={self.directory / 'first.sql'}"),
            *("--skip-name-resolve", "--character-set-server=utf8mb4"),
        ]

    async def _is_ready(self) -> bool:
        # The server speaks first: a packet's header (4 bytes), then the protocol's version, 10. The statements of the
        # init file have run by then.
        greeting = await exchange(HOST, self.port, b"", 5)
        return greeting is not None and greeting[4] == 10
