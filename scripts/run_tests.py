"""What `make test` runs: style, types, and the tests with real services. Arguments are pytest's.

All of it runs, whatever fails before, and the status is zero only when all was well. The last lines say which services
could not be reached and how many tests were left out for that.

Without arguments the tests run in four processes side by side, as many of them mostly wait: for sessions of a group to
expire, for brokers to restart, for programs to start. What all but the first have to say is printed at the end.
"""

import asyncio
import contextlib
import json
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Mapping, Sequence
from pathlib import Path
from typing import IO

from services import Interruption, Policy, provided, run_child, run_until_signal

_CHECKS = (
    ("ruff", "check", "."),
    ("ruff", "format", "--check", "."),
    ("mypy",),
)
_NO_TESTS_COLLECTED = 5
_TESTS = Path(__file__).resolve().parent.parent / "tests"
_WAITING = (("faults",), ("integration",), ("acceptance",))
"""Folders of tests that mostly wait for other processes, by the run that they are in."""


async def run(arguments: list[str], policy: Policy, interruption: Interruption) -> int:
    """Status: 0 when everything passed, pytest's own when its tests failed, else 1."""
    failed: list[str] = []
    for check in _CHECKS:
        print(f"\n$ {' '.join(check)}", flush=True)
        if await run_child([sys.executable, "-m", *check], {}, interruption) != 0:
            failed.append(" ".join(check))
    lines: list[str] = []
    print(flush=True)
    began = time.monotonic()
    async with provided(policy) as services:
        print(f"services ready after {time.monotonic() - began:.1f} s:", flush=True)
        for name, address in services.addresses.items():
            print(f"  {name}: {_without_password(address)}", flush=True)
        environment = services.environment()
        if policy.requires_all:
            environment["SERVICES"] = "required"
        runs = [arguments] if arguments else _parts()
        status, left_out = await _pytest(runs, environment, interruption)
        missing = services.missing
    if status != 0:
        failed.append("pytest: no test was collected" if status == _NO_TESTS_COLLECTED else "pytest")
    for name in sorted(missing.keys() | left_out.keys()):
        verb = "failed" if policy.requires_all else "left out"
        count, reason = left_out.get(name, (0, ""))
        lines.append(f"{name} could not be reached: {missing.get(name) or reason}; tests {verb} for that: {count}")
    if missing and policy.requires_all:
        failed.append(f"missing services: {', '.join(missing)}")
    print()
    print("\n".join(lines) or "All services were reached: no test was left out for want of one.")
    if failed:
        print(f"FAILED: {'; '.join(failed)}")
    return status or (1 if failed else 0)


def _parts() -> list[list[str]]:
    """pytest's arguments of runs that have all tests between them."""
    rooms = sorted(folder.name for folder in _TESTS.iterdir() if any(folder.rglob("test_*.py")))
    waiting = {room for part in _WAITING for room in part}
    parts = [*_WAITING, [room for room in rooms if room not in waiting]]
    return [["--durations=8", *(f"tests/{room}" for room in part)] for part in parts]


async def _pytest(
    runs: Sequence[Sequence[str]], environment: Mapping[str, str], interruption: Interruption
) -> tuple[int, dict[str, tuple[int, str]]]:
    """Run pytest with each of these arguments, all at once.

    Returns:
        The first status that is not zero, and for each service that was missing the tests left out and the reason.
    """
    with tempfile.TemporaryDirectory(prefix="deimos-report-") as folder, contextlib.ExitStack() as outputs:

        def start(number: int, arguments: Sequence[str], output: IO[bytes] | None) -> Awaitable[int]:
            command = [sys.executable, "-m", "pytest", *arguments]
            variables = {**environment, "DEIMOS_TEST_REPORT": str(Path(folder, f"{number}.json"))}
            return run_child(command, variables, interruption, output=output)

        print(f"\n$ pytest {' '.join(runs[0])}", flush=True)
        kept = [outputs.enter_context(tempfile.TemporaryFile()) for _ in runs[1:]]
        try:
            statuses = await asyncio.gather(*map(start, range(len(runs)), runs, [None, *kept]))
        finally:
            for arguments, output in zip(runs[1:], kept, strict=True):
                print(f"\n$ pytest {' '.join(arguments)}", flush=True)
                output.seek(0)
                shutil.copyfileobj(output, sys.stdout.buffer)
                sys.stdout.buffer.flush()
        counts: Counter[str] = Counter()
        reasons: dict[str, str] = {}
        for report in Path(folder).glob("*.json"):
            for name, found in json.loads(report.read_text()).items():
                counts[name] += found["tests"]
                reasons[name] = found["reason"]
        return next((status for status in statuses if status), 0), {
            name: (count, reasons[name]) for name, count in counts.items()
        }


def _without_password(address: str) -> str:
    scheme, separator, rest = address.rpartition("://")
    return f"{scheme}{separator}{rest.rpartition('@')[2]}"


def main() -> int:
    policy = Policy.from_environment()
    return run_until_signal(lambda interruption: run(sys.argv[1:], policy, interruption))


if __name__ == "__main__":
    sys.exit(main())
