"""Programs of the machine that the servers need: finding them, and saying what is missing."""

import functools
import glob
import os
import pwd
import re
import shutil
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

OLDEST_JAVA = 21
"""The registry refuses anything older. The broker would do with 17, but one Java for both is less to explain."""

_JAVA_PATTERNS = (
    "/usr/lib/jvm/*/bin/java",
    "/usr/java/*/bin/java",
    "/opt/java/*/bin/java",
    "/Library/Java/JavaVirtualMachines/*/Contents/Home/bin/java",
    "/opt/homebrew/opt/openjdk*/bin/java",
    "/usr/local/opt/openjdk*/bin/java",
)
_PROGRAM_PATTERNS = (
    "/usr/lib/postgresql/*/bin",
    "/usr/pgsql-*/bin",
    "/opt/homebrew/opt/*/bin",
    "/usr/local/opt/*/bin",
    "/usr/local/sbin",
    "/usr/sbin",
    "/usr/libexec",
)


@dataclass(frozen=True, slots=True)
class Need:
    """Something that a server needs and that is not there."""

    what: str
    """In words, e.g. `Java 21 or newer`."""
    debian: str
    """Debian package that brings it; `jre` means the oldest packaged Java that is new enough."""

    def __str__(self) -> str:
        package = f"openjdk-{OLDEST_JAVA}-jre-headless or newer" if self.debian == "jre" else self.debian
        return f"{self.what} (Debian: {package})"


def find_program(name: str) -> str | None:
    """Path of a program on PATH, or in the folders where distributions hide their servers; the highest version wins."""
    on_path = shutil.which(name)
    if on_path is not None:
        return on_path
    found = [
        path for pattern in _PROGRAM_PATTERNS for path in glob.glob(f"{pattern}/{name}") if os.access(path, os.X_OK)
    ]
    return max(found, key=_numbers, default=None)


def program(name: str) -> str:
    """`find_program` for what `Server.missing` has seen to be there. Raises FileNotFoundError when it is gone."""
    path = find_program(name)
    if path is None:
        raise FileNotFoundError(f"{name} is not installed")
    return path


def java() -> str:
    """`find_java` for what `Server.missing` has seen to be there. Raises FileNotFoundError when it is gone."""
    path = find_java()
    if path is None:
        raise FileNotFoundError(f"no Java {OLDEST_JAVA} or newer is installed")
    return path


def java_missing() -> list[Need]:
    """The need of a Java that is new enough; empty when there is one."""
    return [] if find_java() is not None else [Need(f"Java {OLDEST_JAVA} or newer", "jre")]


def find_java() -> str | None:
    """The newest Java of the machine, None when it is older than `OLDEST_JAVA` or there is none."""
    version, path = max(((_java_version(java), java) for java in _javas()), default=(0, ""))
    return path if version >= OLDEST_JAVA else None


def _javas() -> Iterable[str]:
    candidates = [shutil.which("java")]
    if "JAVA_HOME" in os.environ:
        candidates.append(str(Path(os.environ["JAVA_HOME"], "bin", "java")))
    for pattern in _JAVA_PATTERNS:
        candidates += glob.glob(pattern)
    return {os.path.realpath(java) for java in candidates if java is not None and os.access(java, os.X_OK)}


@functools.cache
def _java_version(java: str) -> int:
    """Major version that `java -version` reports, 0 when it does not run (macOS has a `java` that only advertises)."""
    try:
        answer = subprocess.run([java, "-version"], capture_output=True, text=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return 0
    match = re.search(r'version "(\d+)(?:\.(\d+))?', answer.stderr)
    if match is None:
        return 0
    major = int(match[1])
    return int(match[2] or 0) if major == 1 else major  # "1.8.0" is Java 8


def _numbers(path: str) -> list[int]:
    return [int(digits) for digits in re.findall(r"\d+", path)]


@dataclass(frozen=True, slots=True)
class Account:
    """System account that a server runs as."""

    uid: int
    gid: int


def unprivileged_account(preferred: str) -> Account | None:
    """Account for servers that refuse to run as root.

    Returns:
        `preferred` where the system has it, else `nobody`; None when we are not root and may run servers ourselves.
    """
    if os.geteuid() != 0:
        return None
    try:
        entry = pwd.getpwnam(preferred)
    except KeyError:
        entry = pwd.getpwnam("nobody")
    return Account(entry.pw_uid, entry.pw_gid)
