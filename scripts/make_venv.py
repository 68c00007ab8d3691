"""Makes `.venv` with the package in it: `make_venv.py dev` with what development needs, `make_venv.py package` without.
`make_venv.py peers` makes `.venv-peers` with what the benchmarks compare with.

It does nothing when the folder is as pyproject.toml, or the list of the peers, wants it already. Any Python 3 can read
this file, so that an old one gets a message instead of a syntax error.
"""

import hashlib
import os
import subprocess
import sys

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
VENV = os.path.join(ROOT, ".venv")
PEERS_VENV = os.path.join(ROOT, ".venv-peers")
PEERS = os.path.join(ROOT, "benchmarks", "requirements-peers.txt")
PIP = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check"]


def main(kind):
    # type: (str) -> None
    if sys.version_info < (3, 11):
        sys.exit("Python 3.11 or newer is needed, this is %d.%d: make PYTHON=python3.11 ..." % sys.version_info[:2])
    if kind == "peers":
        _make_peers()
    else:
        _make_package(kind)


def _make_package(kind):
    # type: (str) -> None
    wanted = _fingerprint(os.path.join(ROOT, "pyproject.toml"))
    # Whoever has the tools of development has the package too.
    accepted = ("dev",) if kind == "dev" else ("dev", "package")
    if any(_read(_stamp(VENV, name)) == wanted for name in accepted) and _runs(VENV):
        return
    if not _runs(VENV):
        _create(VENV)
    print("installing the package into .venv ...", flush=True)
    target = ROOT + ("[dev]" if kind == "dev" else "")
    status = subprocess.call([_python(VENV), *PIP, "--editable", target])
    if status != 0:
        sys.exit("pip could not install the package (status %d)" % status)
    _write(_stamp(VENV, kind), wanted)


def _make_peers():
    # type: () -> None
    """What cannot be installed is left out, which the benchmarks tell again, and is tried again the next time."""
    wanted = _fingerprint(PEERS)
    if _read(_stamp(PEERS_VENV, "peers")) == wanted and _runs(PEERS_VENV):
        return
    _create(PEERS_VENV)
    print("installing other frameworks into .venv-peers ...", flush=True)
    pip = [_python(PEERS_VENV), *PIP]
    if subprocess.call([*pip, "--requirement", PEERS]) == 0:
        _write(_stamp(PEERS_VENV, "peers"), wanted)
        return
    print("not all of them: one after another ...", flush=True)
    for line in (_read(PEERS) or "").splitlines():
        requirement = line.partition("#")[0].strip()
        if requirement and subprocess.call([*pip, requirement]) != 0:
            print("LEFT OUT of .venv-peers: pip could not install %s" % requirement, flush=True)


def _create(venv_folder):
    # type: (str) -> None
    try:
        import ensurepip  # noqa: F401 - Debian splits it off, and `venv` fails half way without it
        import venv  # noqa: F401
    except ImportError:
        sys.exit(
            "This Python cannot make virtual environments. On Debian or Ubuntu: apt-get install python%d.%d-venv"
            % sys.version_info[:2]
        )
    print("making %s ..." % os.path.basename(venv_folder), flush=True)
    status = subprocess.call([sys.executable, "-m", "venv", "--clear", venv_folder])
    if status != 0:
        sys.exit("the virtual environment could not be made (status %d)" % status)


def _runs(venv_folder):
    # type: (str) -> bool
    """Whether the environment's Python works and is new enough; it may be left from one that was removed since."""
    question = [_python(venv_folder), "-c", "import sys, pip; sys.exit(sys.version_info < (3, 11))"]
    try:
        return subprocess.call(question, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) == 0
    except OSError:
        return False


def _fingerprint(path):
    # type: (str) -> str
    """Changes with the file, and with the folder: an editable installation points at it."""
    digest = hashlib.sha256(ROOT.encode())
    with open(path, "rb") as file:
        digest.update(file.read())
    return digest.hexdigest()


def _python(venv_folder):
    # type: (str) -> str
    return os.path.join(venv_folder, "bin", "python")


def _stamp(venv_folder, kind):
    # type: (str, str) -> str
    return os.path.join(venv_folder, "installed-" + kind)


def _write(path, text):
    # type: (str, str) -> None
    with open(path, "w", encoding="utf-8") as file:
        file.write(text)


def _read(path):
    # type: (str) -> str | None
    try:
        with open(path, encoding="utf-8") as file:
            return file.read()
    except OSError:
        return None


if __name__ == "__main__":
    main(sys.argv[1])
