"""Debian packages: installed only under CI or when somebody asks by name, never behind a contributor's back."""

import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterable
from pathlib import Path

from servers.downloads import run_download
from servers.process import ServerError, say
from servers.programs import OLDEST_JAVA, Need

_JAVA_PACKAGE = re.compile(r"(?:openjdk-(\d+)-jre-headless|temurin-(\d+)-jre|temurin-(\d+)-jdk)")


async def install(needs: Iterable[Need]) -> None:
    """Install what is missing, in one go. Call it before servers run: an upgrade under a running PostgreSQL breaks it.

    What can be installed is installed before an error about the rest is raised.

    Raises:
        ServerError: there is no apt-get, no right to use it, or it failed.
    """
    wanted = {need.debian for need in needs}
    if not wanted:
        return
    if shutil.which("apt-get") is None:
        raise ServerError(f"no apt-get on this system to install {', '.join(sorted(wanted))}")
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder, "apt.log")
        say(f"installing {', '.join(sorted(wanted))} ...")
        await run_download(_as_root("apt-get", "update"), log=log)
        java = _java_package() if "jre" in wanted else None
        packages = sorted(wanted - {"jre"} | ({java} if java is not None else set()))
        if packages:
            options = ("-y", "-q", "--no-install-recommends", "-o", "DPkg::Lock::Timeout=120")
            await run_download(_as_root("apt-get", "install", *options, *packages), log=log)
    if "jre" in wanted and java is None:
        raise ServerError(f"this system packages no Java {OLDEST_JAVA} or newer: install one, and set JAVA_HOME")


def _as_root(*command: str) -> list[str]:
    quiet = ["env", "DEBIAN_FRONTEND=noninteractive", *command]
    return quiet if os.geteuid() == 0 else ["sudo", "-n", *quiet]


def _java_package() -> str | None:
    """The oldest packaged Java that is new enough, as it has had the most fixes; None when there is none."""
    names = subprocess.run(["apt-cache", "pkgnames"], capture_output=True, text=True, check=True).stdout.split()
    found = [(int(match[match.lastindex or 0]), name) for name in names if (match := _JAVA_PACKAGE.fullmatch(name))]
    return min((entry for entry in found if entry[0] >= OLDEST_JAVA), default=(0, None))[1]
