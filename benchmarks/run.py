"""Runs the benchmarks: every case in a fresh process, the cases of a table in turn, round after round.

Machines are shared and noisy: read ratios within a table, not absolute figures. A ratio is the median, over the
rounds, of ours against the other of the same round, by CPU time for each message; above 1 ours is cheaper.
Writes `results.json` with the raw rounds, and the tables of `README.md`.
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
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
RESULTS = HERE / "results.json"
README = HERE / "README.md"

TABLES: dict[str, list[tuple[str, str, str]]] = {
    "codec": [
        ("encode, every value checked", "codec-encode", "codec-encode-raw"),
        ("coerce into a copy, then encode", "codec-coerce", "codec-encode-raw"),
        ("decode", "codec-decode", "codec-decode-raw"),
    ],
    "consume": [
        ("message mode, plain", "consume-plain", "consume-plain-raw"),
        ("message mode, Avro", "consume-avro", "consume-avro-raw"),
        ("batch mode, Avro", "consume-avro-batch", "consume-avro-raw"),
        ("metrics and tracing on, message mode, Avro", "consume-avro-telemetry", "consume-avro"),
    ],
    "produce": [
        ("produce_many, plain", "produce-plain", "produce-plain-raw"),
        ("produce_many, Avro", "produce-avro", "produce-avro-raw"),
    ],
}
"""area -> (name, our case, the case by hand)."""
TARGETS = {
    ("consume", "message mode, plain"): 0.7,
    ("consume", "message mode, Avro"): 0.85,
    ("consume", "batch mode, Avro"): 0.95,
    ("consume", "metrics and tracing on, message mode, Avro"): 0.87,
    ("produce", "produce_many, Avro"): 0.85,
}
AGAINST = {
    "codec": "fastavro with a parsed schema",
    "consume": "aiokafka getmany, fastavro where Avro",
    "produce": "aiokafka send_batch, fastavro where Avro",
}
COUNTS = {"codec": 50_000, "consume": 100_000, "produce": 50_000}


PAGE = """# Benchmarks

`make bench` runs them; it starts the servers that it needs. Each case runs in a fresh process, the cases of a table in
turn, round after round. Ratios are medians over the rounds of ours against the same done by hand with the client alone;
above 1 ours is cheaper (CPU) or quicker (rate). Machines are shared and noisy: read ratios, not absolute figures. The
raw rounds are in `results.json`.

Last run: {date}, {rounds} rounds, Python {python}, {packages}, {cores} cores shared with the servers. Avro records of
about 180 bytes with their frame, keys, one partition. By hand means: `getmany(max_records=500)` and a plain `await` of
the handler; `create_batch` and `send_batch` of 128 KB, idempotent, with aiokafka's murmur2; `schemaless_reader` and
`schemaless_writer` with a parsed schema, without coercion or checks.

{table}
"""


def run_case(case: str, topic: str, count: int) -> dict[str, float]:
    """One case in a process of its own."""
    done = subprocess.run(
        [sys.executable, str(HERE / "cases.py"), case, "--topic", topic, "--count", str(count)],
        stdout=subprocess.PIPE,
        check=True,
        timeout=600,
    )
    result: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return result


def measure(area: str, rounds: int, run: str) -> dict[str, list[dict[str, float]]]:
    """Every case of a table, `rounds` times in turn."""
    count = COUNTS[area]
    cases = list(dict.fromkeys(case for _, ours, raw in TABLES[area] for case in (ours, raw)))
    raw: dict[str, list[dict[str, float]]] = {case: [] for case in cases}
    if area == "consume":
        for kind in ("plain", "avro"):
            run_case(f"fill-{kind}", f"bench-{run}-{kind}", count)
    for number in range(rounds):
        for case in cases if number % 2 == 0 else reversed(cases):
            topic = f"bench-{run}-avro" if "avro" in case else f"bench-{run}-plain"
            if area == "produce":
                topic += "-sink"
                if number == 0 and not raw[case]:
                    run_case("fill-avro" if "avro" in case else "fill-plain", topic, 10)
            raw[case].append(run_case(case, topic, count))
            print(f"  {area} round {number + 1}: {case} {raw[case][-1]['cpu'] / count * 1e6:.2f} us", flush=True)
    return raw


def summarise(area: str, raw: dict[str, list[dict[str, float]]]) -> list[dict[str, Any]]:
    """Rows as kept in `results.json`."""
    rows = []
    for name, ours, other in TABLES[area]:
        pairs = list(zip(raw[ours], raw[other], strict=True))
        rows.append(
            {
                "area": area,
                "name": name,
                "against": "the same without them" if other == "consume-avro" else AGAINST[area],
                "ratio": round(statistics.median(theirs["cpu"] / mine["cpu"] for mine, theirs in pairs), 3),
                "rate_ratio": round(statistics.median(theirs["wall"] / mine["wall"] for mine, theirs in pairs), 3),
                "target": TARGETS.get((area, name)),
                "cpu_us": round(statistics.median(mine["cpu"] / mine["count"] for mine, _ in pairs) * 1e6, 2),
                "cpu_us_against": round(statistics.median(them["cpu"] / them["count"] for _, them in pairs) * 1e6, 2),
                "rate": round(statistics.median(mine["count"] / mine["wall"] for mine, _ in pairs)),
                "rate_against": round(statistics.median(them["count"] / them["wall"] for _, them in pairs)),
                "rounds": {ours: raw[ours], other: raw[other]},
            }
        )
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    lines = [
        "| area | what | against | CPU ratio | target | rate ratio | us a message | against | messages/s | against |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {row['area']} | {row['name']} | {row['against']} | {row['ratio']:.2f} "
        f"| {row['target'] or '-'} | {row['rate_ratio']:.2f} "
        f"| {row['cpu_us']} | {row['cpu_us_against']} | {row['rate']:,} | {row['rate_against']:,} |"
        for row in rows
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--area", action="append", choices=sorted(TABLES))
    arguments = parser.parse_args()
    run = uuid.uuid4().hex[:8]
    before = {(row["area"], row["name"]): row for row in json.loads(RESULTS.read_text())} if RESULTS.exists() else {}
    rows: list[dict[str, Any]] = []
    for area in arguments.area or TABLES:
        rows += summarise(area, measure(area, arguments.rounds, run))
    print("\n" + table(rows))
    for row in rows:
        old = before.get((row["area"], row["name"]))
        if old is not None and row["ratio"] < old["ratio"] * 0.85:
            print(f"SLOWER than the kept table: {row['area']} {row['name']}: {row['ratio']} after {old['ratio']}")
    kept = {**before, **{(row["area"], row["name"]): row for row in rows}}
    RESULTS.write_text(json.dumps(list(kept.values()), indent=1) + "\n")
    packages = ", ".join(f"{name} {version(name)}" for name in ("aiokafka", "fastavro"))
    README.write_text(
        PAGE.format(
            date=f"{datetime.now(UTC):%Y-%m-%d}",
            rounds=arguments.rounds,
            python=platform.python_version(),
            packages=packages,
            cores=os.cpu_count(),
            table=table(list(kept.values())),
        )
    )


if __name__ == "__main__":
    main()
