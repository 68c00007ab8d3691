"""docs/observability.md lists the metrics of `telemetry/names.py`, and only constants name them in the code."""

from __future__ import annotations

import ast
from pathlib import Path

import deimos_async
from deimos_async.telemetry import names
from deimos_async.telemetry.names import METRICS, Metric

PACKAGE = Path(deimos_async.__file__).parent
PAGE = PACKAGE.parent / "docs" / "observability.md"
HEAD = ["| metric | kind | unit | tags | in Deimos | meaning |", "|---|---|---|---|---|---|"]


def row(metric: Metric) -> str:
    tags = ", ".join(f"`{tag}`" for tag in metric.tags)
    alias = "" if metric.alias is None else f"`{metric.alias.name}`"
    return f"| `{metric.name}` | {metric.kind} | `{metric.unit}` | {tags} | {alias} | {metric.help} |"


def test_page_has_a_row_for_every_metric_as_the_module_says() -> None:
    wanted = "\n".join([*HEAD, *map(row, METRICS.values())])
    assert wanted in PAGE.read_text("utf-8"), f"docs/observability.md must hold:\n{wanted}"


def test_every_constant_has_a_metric_and_every_metric_a_constant() -> None:
    constants = {value for name, value in vars(names).items() if name.isupper() and isinstance(value, str)}
    assert constants == METRICS.keys()


def test_aliases_take_tags_that_their_metric_has() -> None:
    for metric in METRICS.values():
        if metric.alias is not None:
            assert set(metric.alias.tags) <= set(metric.tags), metric.name


def test_callers_name_metrics_by_constants() -> None:
    literals = [
        f"{path.relative_to(PACKAGE)}:{node.lineno}"
        for path in sorted(PACKAGE.rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr in ("increment", "gauge", "histogram", "time")
        and node.args
        and isinstance(node.args[0], ast.Constant)
        and isinstance(node.args[0].value, str)
    ]
    assert not literals, "use a constant of telemetry/names.py"
