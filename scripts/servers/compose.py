"""The same services from `compose.yaml`, for machines with a Docker engine."""

import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from servers.process import run_tool

FILE = Path(__file__).resolve().parents[2] / "compose.yaml"

ADDRESSES = {
    "kafka": "127.0.0.1:9092",
    "registry": "http://127.0.0.1:8081/apis/ccompat/v7",
    "postgres": "postgresql+asyncpg://deimos:deimos@127.0.0.1:5432/deimos",
    "mariadb": "mysql+aiomysql://root:deimos@127.0.0.1:3306/deimos?charset=utf8mb4",
}
"""What clients are given; the ports and passwords of compose.yaml."""


def is_possible() -> bool:
    """Whether a Docker engine answers and its client knows `compose`."""
    if shutil.which("docker") is None:
        return False
    questions = (["docker", "version", "--format", "{{.Server.Version}}"], ["docker", "compose", "version"])
    try:
        return all(
            subprocess.run(question, capture_output=True, timeout=20, check=False).returncode == 0
            for question in questions
        )
    except subprocess.TimeoutExpired:
        return False


def running() -> set[str]:
    """Services of the file that run already: somebody else started them, and will stop them."""
    answer = subprocess.run(
        [*_compose(), "ps", "--services", "--status", "running"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return set(answer.stdout.split()) if answer.returncode == 0 else set()


async def up(names: Sequence[str]) -> None:
    """Start services and wait until they are healthy. Raises ServerError."""
    await _run("up", "-d", "--wait", "--wait-timeout", "180", *names)


async def down(names: Sequence[str]) -> None:
    """Stop services and drop their data. Raises ServerError."""
    await _run("rm", "--stop", "--force", "--volumes", *names)


def _compose() -> list[str]:
    return ["docker", "compose", "-f", str(FILE)]


async def _run(*arguments: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        # Images may have to be pulled.
        await run_tool([*_compose(), *arguments], log=Path(folder, "compose.log"), deadline=900)
