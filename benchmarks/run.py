"""Runs the benchmarks: every case in a fresh process, the cases of an area in turn, round after round.

Machines are shared and noisy: read ratios within a table, not absolute figures. A ratio is the median, over the
rounds, of ours against the other of the same round, for each message; above 1 ours is cheaper or quicker.
Writes `results.json` with the raw rounds, and `README.md` from `README.in.md`.

Other frameworks run in an environment of their own, `.venv-peers`. What cannot run there is left out, and both the end
of the output and the table say so.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import uuid
from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

HERE = Path(__file__).parent
RESULTS = HERE / "results.json"
README = HERE / "README.md"
PEERS_PYTHON = HERE.parent / ".venv-peers" / "bin" / "python"

By = Literal["cpu", "rate", "memory"]


@dataclass(frozen=True, slots=True)
class Comparison:
    """A row: `ours` and `other` are cases. `by`: what `target`, and so the ratio, is about."""

    area: str
    name: str
    ours: str
    other: str
    against: str
    target: float | None = None
    by: By = "cpu"

    @property
    def id(self) -> tuple[str, str, str]:
        return self.area, self.name, self.against


@dataclass(frozen=True, slots=True)
class Peer:
    """A case that peers.py runs, and what it needs there."""

    packages: tuple[str, ...]
    count: int


MEMORY_LIMIT_MB = 20.0
MEMORY_FLOOR_MB = 1.0
"""Growth below this is taken as this: a page more or less says nothing."""

_FASTAVRO = "fastavro with a parsed schema"
_GETMANY = "aiokafka getmany, fastavro where Avro"
_SEND_BATCH = "aiokafka send_batch, fastavro where Avro"
_WITHOUT = "the same without them"
_LIMIT = f"a limit of {MEMORY_LIMIT_MB:.0f} MB"
_LOOP = "aiokafka getmany, fastavro"
_KEPT = "PostgreSQL, at least once"
_MESSAGE, _MESSAGE_AVRO, _BATCH_AVRO = "message mode, plain", "message mode, Avro", "batch mode, Avro"

COMPARISONS = [
    Comparison("codec", "encode, every value checked", "codec-encode", "codec-encode-raw", _FASTAVRO),
    Comparison("codec", "coerce into a copy, then encode", "codec-coerce", "codec-encode-raw", _FASTAVRO),
    Comparison("codec", "decode", "codec-decode", "codec-decode-raw", _FASTAVRO),
    Comparison("consume", _MESSAGE, "consume-plain", "consume-plain-raw", _GETMANY, 0.7),
    Comparison("consume", _MESSAGE, "consume-plain", "faststream-plain", "FastStream, logger=None", 15),
    Comparison("consume", _MESSAGE, "consume-plain", "faststream-plain-tuned", "FastStream tuned"),
    Comparison("consume", _MESSAGE_AVRO, "consume-avro", "consume-avro-raw", _GETMANY, 0.85),
    Comparison("consume", _BATCH_AVRO, "consume-avro-batch", "consume-avro-raw", _GETMANY, 0.95),
    Comparison(
        "consume",
        "metrics and tracing on, message mode, Avro",
        "consume-avro-telemetry",
        "consume-avro",
        _WITHOUT,
        0.87,
    ),
    Comparison("consume", _MESSAGE_AVRO, "consume-avro", "faststream-avro", "FastStream + fastavro, logger=None", 8),
    Comparison(
        "consume", _MESSAGE_AVRO, "consume-avro", "faststream-avro-decoder", "FastStream, fastavro in its decoder"
    ),
    Comparison("consume", _MESSAGE_AVRO, "consume-avro", "faststream-avro-tuned", "FastStream tuned + fastavro"),
    Comparison("consume", _MESSAGE_AVRO, "consume-avro", "kstreams-avro", "kstreams + fastavro", 1.5),
    Comparison("consume", _MESSAGE_AVRO, "consume-avro", "quixstreams-avro", "quixstreams + fastavro", 1.5),
    Comparison("produce", "produce_many, plain", "produce-plain", "produce-plain-raw", _SEND_BATCH),
    Comparison("produce", "produce_many, Avro", "produce-avro", "produce-avro-raw", _SEND_BATCH, 0.85),
    Comparison(
        "produce",
        "produce_many, Avro",
        "produce-avro",
        "confluent-avro",
        "confluent-kafka + fastavro, delivery callbacks",
        1,
    ),
    Comparison(
        "handlers",
        'handlers of 10 ms, ordering="key", concurrency=32',
        "handlers-by-key",
        "handlers-in-turn",
        "one after another",
        20,
        "rate",
    ),
    Comparison("upsert", _KEPT, "upsert-postgres", "upsert-postgres-raw", f"{_LOOP}, COPY and merge", 0.8, "rate"),
    Comparison(
        "upsert",
        _KEPT,
        "upsert-postgres",
        "faststream-upsert-row",
        "FastStream + SQLAlchemy, a row a message",
        25,
        "rate",
    ),
    Comparison(
        "upsert",
        _KEPT,
        "upsert-postgres",
        "faststream-upsert-executemany",
        "FastStream in batches + SQLAlchemy executemany",
        2.2,
        "rate",
    ),
    Comparison(
        "upsert",
        _KEPT,
        "upsert-postgres",
        "faststream-upsert-executemany-tuned",
        "FastStream tuned in batches + SQLAlchemy executemany",
        by="rate",
    ),
    Comparison(
        "upsert",
        _KEPT,
        "upsert-postgres",
        "faststream-upsert-copy",
        "FastStream in batches + COPY and merge",
        1.15,
        "rate",
    ),
    Comparison(
        "upsert",
        _KEPT,
        "upsert-postgres",
        "faststream-upsert-copy-tuned",
        "FastStream tuned in batches + COPY and merge",
        by="rate",
    ),
    Comparison(
        "upsert",
        "PostgreSQL, effectively once",
        "upsert-postgres-once",
        "upsert-postgres",
        "ours, at least once",
        0.91,
        "rate",
    ),
    Comparison(
        "upsert",
        "MariaDB, at least once",
        "upsert-mariadb",
        "upsert-mariadb-raw",
        f"{_LOOP}, LOAD DATA and merge",
        0.7,
        "rate",
    ),
    Comparison(
        "upsert",
        "SQLite, at least once",
        "upsert-sqlite",
        "upsert-sqlite-raw",
        f"{_LOOP}, aiosqlite executemany",
        0.7,
        "rate",
    ),
    Comparison(
        "outbox",
        "storing, 1,000 encoded messages a transaction, PostgreSQL",
        "enqueue-postgres",
        "enqueue-postgres-raw",
        "asyncpg, INSERT of the same rows by unnest",
        0.77,
        "rate",
    ),
    Comparison(
        "outbox",
        "storing, 1,000 encoded messages a transaction, MariaDB",
        "enqueue-mariadb",
        "enqueue-mariadb-raw",
        "aiomysql, INSERT of the same rows by many values",
        0.77,
        "rate",
    ),
    Comparison(
        "outbox",
        "storing, 1,000 encoded messages a transaction, SQLite",
        "enqueue-sqlite",
        "enqueue-sqlite-raw",
        "aiosqlite executemany of the same rows",
        0.77,
        "rate",
    ),
    Comparison(
        "poller",
        "by time, Avro, PostgreSQL",
        "poll-postgres",
        "poll-postgres-raw",
        "a loop: asyncpg pages, fastavro, send_batch",
        0.5,
        "rate",
    ),
    Comparison(
        "poller",
        "by time, Avro, MariaDB",
        "poll-mariadb",
        "poll-mariadb-raw",
        "a loop: aiomysql pages, fastavro, send_batch",
        0.5,
        "rate",
    ),
    Comparison(
        "memory",
        "5,000 topics, 1,000,000 messages, broker in memory",
        "memory-topics",
        "memory-topics",
        _LIMIT,
        1,
        "memory",
    ),
    Comparison("memory", "1 topic, 1,000,000 messages, Kafka", "memory-kafka", "memory-kafka", _LIMIT, 1, "memory"),
    Comparison(
        "memory",
        "a table, 1,000,000 messages, Kafka and PostgreSQL",
        "memory-upsert",
        "memory-upsert",
        _LIMIT,
        1,
        "memory",
    ),
]
AREAS = tuple(dict.fromkeys(comparison.area for comparison in COMPARISONS))
_FASTSTREAM = Peer(("faststream", "aiokafka"), 25_000)
_FASTSTREAM_AVRO = Peer(("faststream", "aiokafka", "fastavro"), 25_000)
_FASTSTREAM_TABLE = Peer(("faststream", "aiokafka", "fastavro", "sqlalchemy", "asyncpg"), 100_000)
PEERS = {
    "faststream-plain": _FASTSTREAM,
    "faststream-plain-tuned": _FASTSTREAM,
    "faststream-avro": _FASTSTREAM_AVRO,
    "faststream-avro-decoder": _FASTSTREAM_AVRO,
    "faststream-avro-tuned": _FASTSTREAM_AVRO,
    "faststream-upsert-row": replace(_FASTSTREAM_TABLE, count=2_000),
    "faststream-upsert-executemany": _FASTSTREAM_TABLE,
    "faststream-upsert-executemany-tuned": _FASTSTREAM_TABLE,
    "faststream-upsert-copy": _FASTSTREAM_TABLE,
    "faststream-upsert-copy-tuned": _FASTSTREAM_TABLE,
    "kstreams-avro": Peer(("kstreams", "aiokafka", "fastavro"), 50_000),
    "quixstreams-avro": Peer(("quixstreams", "confluent-kafka", "fastavro"), 50_000),
    "confluent-avro": Peer(("confluent-kafka", "fastavro"), 80_000),
}
_AREA_COUNTS = {
    "codec": 50_000,
    "consume": 100_000,
    "produce": 80_000,
    "upsert": 100_000,
    "outbox": 100_000,
    "poller": 50_000,
    "memory": 1_000_000,
}
_COUNTS = {"handlers-by-key": 8_000, "handlers-in-turn": 300}
_FILLED = 100_000
"""Messages in a topic to read from. A topic that becomes a table has as many as are read."""
_DATABASES = {
    "postgres": ("upsert-postgres", "faststream-upsert", "memory-upsert", "enqueue-postgres", "poll-postgres"),
    "mariadb": ("upsert-mariadb", "enqueue-mariadb", "poll-mariadb"),
}
"""Servers that not every case needs, and how the names of those begin that do."""
_SHOWN = ("aiokafka", "fastavro", "SQLAlchemy", "asyncpg", "aiomysql", "aiosqlite")
"""Packages whose versions the page tells."""
_CASE_TIMEOUT = 900
_PEER_TIMEOUT = 180


def run_case(case: str, topic: str, count: int) -> dict[str, float]:
    """One case in a process of its own."""
    program = [str(PEERS_PYTHON), "peers.py"] if case in PEERS else [sys.executable, "cases.py"]
    done = subprocess.run(
        [*program, case, "--topic", topic, "--count", str(count)],
        cwd=HERE,
        stdout=subprocess.PIPE,
        check=True,
        timeout=_PEER_TIMEOUT if case in PEERS else _CASE_TIMEOUT,
    )
    measured: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return {name: round(value, 6) for name, value in measured.items()}


def peer_versions() -> dict[str, dict[str, str]]:
    """What peers.py says of each package: its `version`, or its `problem`."""
    packages = {package for peer in PEERS.values() for package in peer.packages}
    try:
        done = subprocess.run(
            [str(PEERS_PYTHON), "peers.py", "versions"],
            cwd=HERE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,  # warnings about each other
            check=True,
            timeout=60,
        )
    except (OSError, subprocess.SubprocessError) as error:
        problem = "there is no .venv-peers; `make bench` makes it" if isinstance(error, OSError) else _short(error)
        return {package: {"problem": problem} for package in packages}
    found: dict[str, dict[str, str]] = json.loads(done.stdout.splitlines()[-1])
    return found


def impossible(versions: dict[str, dict[str, str]]) -> dict[str, str]:
    """Cases that cannot run, and why: packages of the others, or a database, are not there."""
    found = {
        case: f"{package}: {problem}"
        for case, peer in PEERS.items()
        for package in reversed(peer.packages)
        if (problem := versions[package].get("problem"))
    }
    for case in dict.fromkeys(case for row in COMPARISONS for case in (row.ours, row.other)):
        for server, names in _DATABASES.items():
            variable = f"DEIMOS_TEST_{server.upper()}"
            if case.startswith(names) and not os.environ.get(variable):
                found[case] = os.environ.get(f"{variable}_MISSING") or f"{variable} is not set"
    return found


def measure(area: str, rounds: int, run: str, left_out: dict[str, str]) -> dict[str, list[dict[str, float]]]:
    """Every case of an area, `rounds` times in turn. A peer that fails joins `left_out`."""
    cases = list(dict.fromkeys(case for row in COMPARISONS if row.area == area for case in (row.ours, row.other)))
    measured: dict[str, list[dict[str, float]]] = {case: [] for case in cases}
    counts = {case: PEERS[case].count if case in PEERS else _COUNTS.get(case) or _AREA_COUNTS[area] for case in cases}
    topics = {case: _topic(area, case, run, counts[case]) for case in cases}
    if area in ("consume", "handlers", "produce"):
        for topic in dict.fromkeys(topics.values()):
            run_case(
                "produce-avro" if "avro" in topic else "produce-plain", topic, 10 if area == "produce" else _FILLED
            )
    if area == "upsert":
        for topic, count in {topics[case]: counts[case] for case in cases}.items():
            run_case("upsert-fill", topic, count)
    for number in range(1 if area == "memory" else rounds):
        for case in cases if number % 2 == 0 else reversed(cases):
            if case in left_out:
                continue
            count = counts[case]
            try:
                result = run_case(case, topics[case], count)
            except subprocess.SubprocessError as error:
                if case not in PEERS:
                    raise
                left_out[case] = _short(error)
                _say(f"{case} failed and is left out: {left_out[case]}")
                continue
            measured[case].append(result)
            figure = result["cpu"] / count * 1e6
            print(f"  {area} round {number + 1}: {case} {figure:.2f} us, {count / result['wall']:,.0f}/s", flush=True)
    return measured


def _topic(area: str, case: str, run: str, count: int) -> str:
    if area == "memory":
        return f"bench-{run}-{case}"
    if area == "upsert":
        return f"bench-{run}-{area}-{count}"
    kind = "avro" if "avro" in case else "plain"
    return f"bench-{run}-{area}-{kind}"


def summarise(area: str, measured: dict[str, list[dict[str, float]]], left_out: dict[str, str]) -> list[dict[str, Any]]:
    """Rows as kept in `results.json`."""
    rows = []
    for comparison in COMPARISONS:
        if comparison.area != area:
            continue
        row: dict[str, Any] = {
            "area": area,
            "name": comparison.name,
            "against": comparison.against,
            "ratio": None,
            "target": comparison.target,
            "by": comparison.by,
        }
        reason = left_out.get(comparison.other) or left_out.get(comparison.ours)
        if reason is not None:
            row["left_out"] = reason
        elif comparison.by == "memory":
            row |= _of_memory(measured[comparison.ours])
        else:
            row |= _of_speed(comparison, measured)
        row["rounds"] = {case: measured[case] for case in dict.fromkeys((comparison.ours, comparison.other))}
        rows.append(row)
    return rows


def _of_memory(measured: list[dict[str, float]]) -> dict[str, Any]:
    grown = statistics.median(result["most"] - result["first"] for result in measured)
    return {
        "ratio": round(MEMORY_LIMIT_MB / max(grown, MEMORY_FLOOR_MB), 3),
        "first_mb": round(statistics.median(result["first"] for result in measured), 1),
        "grown_mb": round(grown, 1),
    }


def _of_speed(comparison: Comparison, measured: dict[str, list[dict[str, float]]]) -> dict[str, Any]:
    mine, theirs = measured[comparison.ours], measured[comparison.other]

    def each(what: str, results: Iterable[dict[str, float]]) -> list[float]:
        return [result[what] / result["count"] for result in results]

    def ratio(what: str) -> float:
        pairs = zip(each(what, mine), each(what, theirs), strict=True)
        return round(statistics.median(other / own for own, other in pairs), 3)

    cpu_ratio, rate_ratio = ratio("cpu"), ratio("wall")
    return {
        "ratio": rate_ratio if comparison.by == "rate" else cpu_ratio,
        "cpu_ratio": cpu_ratio,
        "rate_ratio": rate_ratio,
        "cpu_us": round(statistics.median(each("cpu", mine)) * 1e6, 2),
        "cpu_us_against": round(statistics.median(each("cpu", theirs)) * 1e6, 2),
        "rate": round(1 / statistics.median(each("wall", mine))),
        "rate_against": round(1 / statistics.median(each("wall", theirs))),
    }


def table(rows: list[dict[str, Any]]) -> str:
    lines = [
        "| area | what | against | CPU ratio | rate ratio | target | us a message | against | messages/s | against |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    lines += [f"| {row['area']} | {row['name']} | {row['against']} | {_figures(row)} |" for row in rows]
    return "\n".join(lines)


def _figures(row: dict[str, Any]) -> str:
    target = "-" if row["target"] is None else f"{row['target']:g}"
    if row["ratio"] is None:
        return f"left out | left out | {target} | - | - | - | -"
    if row["target"] is not None and row["ratio"] < row["target"]:
        target += ", missed"
    if row["by"] == "memory":
        return f"- | - | {target} | **{row['ratio']:.2f}**: {row['grown_mb']} MB after {row['first_mb']} MB | - | - | -"
    cpu, rate = f"{row['cpu_ratio']:.2f}", f"{row['rate_ratio']:.2f}"
    ratios = f"{cpu} | **{rate}**" if row["by"] == "rate" else f"**{cpu}** | {rate}"
    return (
        f"{ratios} | {target} | {row['cpu_us']} | {row['cpu_us_against']} | {row['rate']:,} | {row['rate_against']:,}"
    )


def left_out_text(rows: list[dict[str, Any]]) -> str:
    """Why rows have no figures; empty when all have."""
    reasons = [
        f"- **{row['name']}, against {row['against']}, was left out**: {row['left_out']}"
        for row in rows
        if row["ratio"] is None
    ]
    return "".join(f"\n{reason}" for reason in reasons) + ("\n" if reasons else "")


def _short(error: Exception) -> str:
    match error:
        case subprocess.CalledProcessError():
            return f"it ended with status {error.returncode}"
        case subprocess.TimeoutExpired():
            return f"it did not end within {error.timeout:.0f} s"
        case _:
            return f"{type(error).__name__}: {error}"


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--area", action="append", choices=AREAS)
    arguments = parser.parse_args()
    run = uuid.uuid4().hex[:8]
    kept = json.loads(RESULTS.read_text()) if RESULTS.exists() else []
    before = {(row["area"], row["name"], row["against"]): row for row in kept}
    versions = peer_versions()
    left_out = impossible(versions)
    for case, reason in left_out.items():
        _say(f"{case} cannot run and is left out: {reason}")
    rows: list[dict[str, Any]] = []
    for area in arguments.area or AREAS:
        rows += summarise(area, measure(area, arguments.rounds, run, left_out), left_out)
    print("\n" + table(rows))
    for row in rows:
        old = before.get((row["area"], row["name"], row["against"]))
        if row["ratio"] and old is not None and old["ratio"] and row["ratio"] < old["ratio"] * 0.85:
            print(
                f"SLOWER than the kept table: {row['area']}, {row['name']}, against {row['against']}: "
                f"{row['ratio']} after {old['ratio']}"
            )
    for row in rows:
        if row["ratio"] is None:
            _say(f"LEFT OUT: {row['area']}, {row['name']}, against {row['against']}: {row['left_out']}")
    now = {(row["area"], row["name"], row["against"]): row for row in rows}
    all_rows = [now.get(row.id) or before.get(row.id) for row in COMPARISONS]
    shown = [row for row in all_rows if row is not None]
    RESULTS.write_text(json.dumps(shown, indent=1) + "\n")
    README.write_text(
        (HERE / "README.in.md")
        .read_text()
        .format(
            date=f"{datetime.now(UTC):%Y-%m-%d}",
            rounds=arguments.rounds,
            python=platform.python_version(),
            packages=", ".join(f"{name} {version(name)}" for name in _SHOWN),
            cores=os.cpu_count(),
            peers=", ".join(f"{name} {found.get('version', '(not here)')}" for name, found in sorted(versions.items())),
            table=table(shown),
            left_out=left_out_text(shown),
            limit=MEMORY_LIMIT_MB,
            floor=MEMORY_FLOOR_MB,
        )
    )


if __name__ == "__main__":
    main()
