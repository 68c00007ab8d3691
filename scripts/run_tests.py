"""What `make test` runs: style, types, and the tests with real services. Arguments are pytest's.

All of it runs, whatever fails before, and the status is zero only when all was well. The last lines say which services
could not be reached and how many tests were left out for that.
"""

import json
import sys
import tempfile
import time
from pathlib import Path

from services import Interruption, Policy, provided, run_child, run_until_signal

_CHECKS = (
    ("ruff", "check", "."),
    ("ruff", "format", "--check", "."),
    ("mypy",),
)
_NO_TESTS_COLLECTED = 5


async def run(arguments: list[str], policy: Policy, interruption: Interruption) -> int:
    """Status: 0 when everything passed, pytest's own when its tests failed, else 1."""
    failed: list[str] = []
    for check in _CHECKS:
        print(f"\n$ {' '.join(check)}", flush=True)
        if await run_child([sys.executable, "-m", *check], {}, interruption) != 0:
            failed.append(" ".join(check))
    status = 0
    lines: list[str] = []
    with tempfile.TemporaryDirectory(prefix="deimos-report-") as folder:
        report = Path(folder, "report.json")
        print(flush=True)
        began = time.monotonic()
        async with provided(policy) as services:
            print(f"services ready after {time.monotonic() - began:.1f} s:", flush=True)
            for name, address in services.addresses.items():
                print(f"  {name}: {_without_password(address)}", flush=True)
            environment = services.environment() | {"DEIMOS_TEST_REPORT": str(report)}
            if policy.requires_all:
                environment["SERVICES"] = "required"
            print(f"\n$ pytest {' '.join(arguments)}", flush=True)
            status = await run_child([sys.executable, "-m", "pytest", *arguments], environment, interruption)
            missing = services.missing
        left_out = json.loads(report.read_text()) if report.exists() else {}
    if status != 0:
        failed.append("pytest: no test was collected" if status == _NO_TESTS_COLLECTED else "pytest")
    for name in sorted(missing.keys() | left_out.keys()):
        verb = "failed" if policy.requires_all else "left out"
        reason = missing.get(name) or left_out[name]["reason"]
        count = left_out[name]["tests"] if name in left_out else 0
        lines.append(f"{name} could not be reached: {reason}; tests {verb} for that: {count}")
    if missing and policy.requires_all:
        failed.append(f"missing services: {', '.join(missing)}")
    print()
    print("\n".join(lines) or "All services were reached: no test was left out for want of one.")
    if failed:
        print(f"FAILED: {'; '.join(failed)}")
    return status or (1 if failed else 0)


def _without_password(address: str) -> str:
    scheme, separator, rest = address.rpartition("://")
    return f"{scheme}{separator}{rest.rpartition('@')[2]}"


def main() -> int:
    policy = Policy.from_environment()
    return run_until_signal(lambda interruption: run(sys.argv[1:], policy, interruption))


if __name__ == "__main__":
    sys.exit(main())
