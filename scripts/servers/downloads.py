"""What the servers need from Maven Central, fetched by Maven and kept in the user's cache folder."""

import asyncio
import contextlib
import fcntl
import os
import re
import shutil
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

from servers.process import ServerError, run_tool, say
from servers.programs import Need, find_program, program

POM = Path(__file__).resolve().parent.parent / "pom.xml"
_TIMED_OUT = re.compile(r"time(?:d[ -]?)?out", re.IGNORECASE)
_ATTEMPTS = 3


def cache_directory() -> Path:
    """`deimos_async` in the user's cache folder, outside the checkout: the next clone finds the downloads there."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "deimos_async"


def missing_for(name: str) -> list[Need]:
    """What is missing to have the download `name`: nothing when it is in the cache, else perhaps Maven."""
    if (cache_directory() / name).exists() or find_program("mvn") is not None:
        return []
    return [Need("Maven, for the first download", "maven")]


async def fetch(name: str, *goal: str) -> Path:
    """Folder `name` of the cache; if it is not there, Maven fills it.

    The folder appears when it is complete, and one process at a time fetches it: the others wait.

    Args:
        goal: Maven's goal and options; its plugin is told the folder by `-DoutputDirectory`.

    Raises:
        ServerError: Maven failed. It is tried again only after a network timeout.
    """
    target = cache_directory() / name
    if target.exists():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    async with _locked(target.with_name(f"{name}.lock")):
        if target.exists():
            return target
        work = Path(tempfile.mkdtemp(prefix=f"{name}.", dir=target.parent))
        try:
            # Maven leaves a folder `target` beside the pom.
            pom = shutil.copy(POM, work / "pom.xml")
            say(f"downloading {name} ...")
            options = ("-B", "-ntp", "-f", str(pom), f"-DoutputDirectory={work / 'got'}")
            await run_download([program("mvn"), *options, *goal], log=work / "maven.log")
            (work / "got").rename(target)
        finally:
            shutil.rmtree(work, ignore_errors=True)
    return target


async def run_download(command: list[str], *, log: Path) -> None:
    """Run a program that downloads; after a network timeout, and only then, try again.

    Raises:
        ServerError: it failed otherwise, or three times by timeouts.
    """
    for attempt in range(1, _ATTEMPTS + 1):
        try:
            await run_tool(command, log=log, deadline=600)
        except ServerError as error:
            if attempt == _ATTEMPTS or _TIMED_OUT.search(str(error)) is None:
                raise
            say(f"{command[0]}: a network timeout, trying again")
        else:
            return


@contextlib.asynccontextmanager
async def _locked(path: Path) -> AsyncIterator[None]:
    with path.open("w") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                await asyncio.sleep(0.2)
            else:
                break
        yield
