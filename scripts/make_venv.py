"""Makes `.venv` with the package in it: `make_venv.py dev` with what development needs, `make_venv.py package` without.

It does nothing when the folder is as pyproject.toml wants it already. Any Python 3 can read this file, so that an old
one gets a message instead of a syntax error.
"""

import hashlib
import os
import subprocess
import sys

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
VENV = os.path.join(ROOT, ".venv")
PYTHON = os.path.join(VENV, "bin", "python")


def main(kind):
    # type: (str) -> None
    if sys.version_info < (3, 11):
        sys.exit("Python 3.11 or newer is needed, this is %d.%d: make PYTHON=python3.11 ..." % sys.version_info[:2])
    wanted = _fingerprint()
    # Whoever has the tools of development has the package too.
    accepted = ("dev",) if kind == "dev" else ("dev", "package")
    if any(_read(_stamp(name)) == wanted for name in accepted) and _runs():
        return
    if not _runs():
        _create()
    print("installing the package into .venv ...", flush=True)
    target = ROOT + ("[dev]" if kind == "dev" else "")
    pip = [PYTHON, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--editable", target]
    status = subprocess.call(pip)
    if status != 0:
        sys.exit("pip could not install the package (status %d)" % status)
    with open(_stamp(kind), "w", encoding="utf-8") as file:
        file.write(wanted)


def _create():
    # type: () -> None
    try:
        import ensurepip  # noqa: F401 - Debian splits it off, and `venv` fails half way without it
        import venv  # noqa: F401
    except ImportError:
        sys.exit(
            "This Python cannot make virtual environments. On Debian or Ubuntu: apt-get install python%d.%d-venv"
            % sys.version_info[:2]
        )
    print("making .venv ...", flush=True)
    status = subprocess.call([sys.executable, "-m", "venv", "--clear", VENV])
    if status != 0:
        sys.exit("the virtual environment could not be made (status %d)" % status)


def _runs():
    # type: () -> bool
    """Whether the environment's Python works and is new enough; it may be left from one that was removed since."""
    question = [PYTHON, "-c", "import sys, pip; sys.exit(sys.version_info < (3, 11))"]
    try:
        return subprocess.call(question, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) == 0
    except OSError:
        return False


def _fingerprint():
    # type: () -> str
    """Changes with pyproject.toml, and with the folder: an editable installation points at it."""
    digest = hashlib.sha256(ROOT.encode())
    with open(os.path.join(ROOT, "pyproject.toml"), "rb") as file:
        digest.update(file.read())
    return digest.hexdigest()


def _stamp(kind):
    # type: (str) -> str
    return os.path.join(VENV, "installed-" + kind)


def _read(path):
    # type: (str) -> str | None
    try:
        with open(path, encoding="utf-8") as file:
            return file.read()
    except OSError:
        return None


if __name__ == "__main__":
    main(sys.argv[1])
