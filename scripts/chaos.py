"""`make chaos`: the long forms of tests/faults, and benchmarks/chaos.md with what they show.

With arguments, which are pytest's (`-k killed`), only these trials run, and their rows take the place of older ones; so
do those of a run that was interrupted. Another framework goes through the first trial too; it is installed in a virtual
environment of its own, in the user's cache folder, once.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import tempfile
import venv
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from servers.downloads import cache_directory
from servers.kafka import VERSION

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "benchmarks" / "chaos.md"
KEPT = ROOT / "benchmarks" / "chaos.json"
"""The last account of each trial, and which tests did not pass when they ran last."""
FASTSTREAM = "0.7.8"
PACKAGES = [f"faststream[kafka]=={FASTSTREAM}", "aiokafka==0.14.0"]
TARGET = 0.95

TEXT = """# Faults

`make chaos` runs the long forms of `tests/faults` and writes this page; the short forms are a part of `make test`. Each
trial has a topic of 6 partitions with 8 keys in each, a writer (librdkafka) that stays ahead of the groups, and members
as processes that serve three groups: in order by partition, by key with a concurrency of 8, and in batches of 50. Where
it is not said otherwise, 3 messages in 1,000 always fail and go to the dead-letter topic, and 7 in 1,000 fail once.
Session timeout 3 s, commits every 0.5 s. Handlers write a line for each message by `os.write`; the checks read only
these lines, what the broker acknowledged to the writer, and the dead letters.

- lost: acknowledged messages that a group neither handled nor put aside, in brackets those whose handler raised. Must
  be 0.
- again: handlings beyond the first one of a message, of all. Each must be explained by a fault: it was handled before
  the fault, was not committed when the fault began, and came again after it.
- ended: the longest time from SIGTERM to the end of a member.
- rate: messages a second of the slowest group after the fault, against before: the median of {rounds} rounds, each with
  windows of 8 s ({target} is the target); the single rounds in brackets.
- on: when the trial ran last; †: its rate is that of all groups together. Python {python},
  {cores} cores shared with brokers and databases, Kafka {kafka}.

No message was handled before an earlier one of its key (by key) or its partition (else), none was committed before it
was handled, no dead letter was one that need not be, and members that ended by SIGTERM left no task and no socket: the
trials fail otherwise. With counts in a database two groups work effectively once, message by message and in batches:
each adds messages to a count for each partition, and every message but those put aside must be there exactly once.

Trials of the outbox have a writer that commits by sessions of SQLAlchemy, with a row of each message in a table of its
own; one transaction in ten, and one savepoint in ten, is rolled back. Two processes send, if not said otherwise, each
with at most 300 messages in flight: that many a fault may send again of each process that it befalls. librdkafka reads
what arrives: every row of the table must be there, nothing else, and in the order of each key. At the end the outbox is
empty, the leases are free, and no connection to the database is left. Rates are of messages that arrive.
{failed}
| trial | faults | written | groups | lost | again | put aside | ended | rate | on |
|---|---|---|---|---|---|---|---|---|---|
{rows}

The rows that name a framework are the same trial with one group. FastStream {faststream} runs as it is without
options: it commits every 5 s what it has fetched, whatever becomes of it, and a message whose handler raises is gone.
"""


def peer_python() -> Path:
    """The interpreter of the environment in which FastStream is installed."""
    folder = cache_directory() / "peers" / f"faststream-{FASTSTREAM}"
    python = folder / "bin" / "python"
    is_complete = folder / "complete"
    if not is_complete.exists():
        venv.create(folder, clear=True, with_pip=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", *PACKAGES], check=True, timeout=600)
        is_complete.touch()
    return python


def row(report: dict[str, Any]) -> str:
    """One trial's line of the table."""
    share = 100 * report["duplicates"] / max(1, report["handled"])
    rate = ""
    if report["ratio"] is not None:
        missed = "" if report["ratio"] >= TARGET else ", missed"
        rounds = ", ".join(f"{ratio:.2f}" for ratio in report["ratios"])
        rate = f"{report['ratio']:.2f}{missed} ({rounds})"
    cells = [
        report["trial"] + (f" **failed: {'; '.join(report['problems'])}**" if report["problems"] else ""),
        report["faults"],
        f"{report['written']:,}",
        report["groups"],
        str(report["lost"]) + (f" ({report['lost_failing']} failed)" if report["lost"] else ""),
        f"{report['duplicates']:,} ({share:.1f} %)",
        report["put_aside"],
        f"{report['end_seconds']:.1f} s",
        rate,
        report["on"],
    ]
    return f"| {' | '.join(map(str, cells))} |"


def main() -> int:
    with tempfile.TemporaryDirectory(prefix="deimos-chaos-") as folder:
        report = Path(folder, "report.json")
        environment = {
            **os.environ,
            "DEIMOS_CHAOS": "1",
            "DEIMOS_CHAOS_REPORT": str(report),
            "DEIMOS_CHAOS_FASTSTREAM": str(peer_python()),
        }
        command = [sys.executable, "-m", "pytest", "tests/faults", *sys.argv[1:]]
        status = subprocess.run(command, cwd=ROOT, env=environment, check=False).returncode
        found = json.loads(report.read_text()) if report.exists() else {"reports": [], "outcomes": {}}
    if not found["outcomes"]:
        return status or 1
    kept = json.loads(KEPT.read_text()) if KEPT.exists() else {"trials": {}, "failed": []}
    today = f"{datetime.now(UTC).date()}"
    for trial in found["reports"]:
        kept["trials"][trial["trial"]] = trial | {"on": today}
    outcomes = dict.fromkeys(kept["failed"], False) | found["outcomes"]
    kept["failed"] = sorted(test for test, has_passed in outcomes.items() if not has_passed)
    KEPT.write_text(json.dumps(kept, indent=1) + "\n")
    PAGE.write_text(page(kept))
    print(f"written: {PAGE.relative_to(ROOT)}")
    return status


def page(kept: dict[str, Any]) -> str:
    """What the page says."""
    trials = list(kept["trials"].values())
    failed = "".join(f"\n**Did not pass when it ran last:** `{test}`\n" for test in kept["failed"])
    return TEXT.format(
        rounds=max((len(each["ratios"]) for each in trials), default=0),
        target=TARGET,
        failed=failed,
        python=platform.python_version(),
        cores=os.cpu_count(),
        kafka=VERSION,
        rows="\n".join(map(row, trials)),
        faststream=FASTSTREAM,
    )


if __name__ == "__main__":
    sys.exit(main())
