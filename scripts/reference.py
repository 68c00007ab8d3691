"""Writes docs/settings.md from the classes of `deimos_async.settings`; with `--check` it only compares.

`python scripts/reference.py` after a change of the settings; the tests compare the page with the classes.
"""

import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

from annotated_types import Ge, Gt
from pydantic import BaseModel, SecretStr
from pydantic.fields import FieldInfo

from deimos_async.settings import Settings, variable_name

PAGE = Path(__file__).parents[1] / "docs" / "settings.md"

_INTRODUCTION = """\
# Settings

Made by `python scripts/reference.py` from the classes in `deimos_async/settings.py`; change those, not this page.

Sources, the first that says something wins:

1. arguments: `Deimos({"kafka.bootstrap_servers": "kafka:9092"})`, dotted or nested;
2. variables: `DEIMOS_` and the name in upper case, groups joined by two underscores
   (`DEIMOS_KAFKA__BOOTSTRAP_SERVERS`); with `_FILE` at the end the variable names a file that holds the value, for
   secrets (`DEIMOS_SCHEMA__PASSWORD_FILE=/run/secrets/registry`); a whole group or a mapping may be one variable, as a
   JSON object;
3. `deimos.toml` in the working directory, or where `DEIMOS_CONFIG` says: a table for each group (`[kafka]`);
4. the defaults below.

All mistakes are reported together when the application is made, by the names of setting and variable, never with a
value. Durations are seconds. Secrets are shown by no repr, log line or error."""

_TYPES: dict[Any, str] = {
    str: "text",
    bool: "true or false",
    int: "whole number",
    float: "number",
    SecretStr: "secret text",
}


def page() -> str:
    """The whole page."""
    parts = [_INTRODUCTION]
    single: list[tuple[tuple[str, ...], FieldInfo]] = []
    for name, field in Settings.model_fields.items():
        group = _group(field.annotation)
        if group is not None:
            parts.append(f"## {name}\n\n{_first_paragraph(group)}\n\n{_table(_settings(group, (name,)))}")
        elif (inner := _group_of_mapping(field.annotation)) is not None:
            parts.append(
                f"## {name}\n\n{field.description} `{name}.<name>.*` has the settings of "
                f"`{_name_of(inner)}.*`, with variables `{variable_name((name,))}__<NAME>__...`; names are lower case."
            )
        else:
            single.append(((name,), field))
    if single:
        parts.append(f"## Others\n\n{_table(iter(single))}")
    return "\n\n".join(parts) + "\n"


def _settings(group: type[BaseModel], above: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], FieldInfo]]:
    for name, field in group.model_fields.items():
        inner = _group(field.annotation)
        if inner is not None:
            yield from _settings(inner, (*above, name))
        else:
            yield (*above, name), field


def _table(settings: Iterator[tuple[tuple[str, ...], FieldInfo]]) -> str:
    rows = ["| setting | variable | takes | default | meaning |", "|---|---|---|---|---|"]
    for path, field in settings:
        cells = (
            f"`{'.'.join(path)}`",
            f"`{variable_name(path)}`",
            _type(field.annotation, field),
            _default(field),
            " ".join((field.description or "").split()),
        )
        rows.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(rows)


def _type(annotation: Any, field: FieldInfo) -> str:
    choices = get_args(annotation)
    if get_origin(annotation) is Literal:
        return ", ".join(f"`{choice}`" for choice in choices)
    if get_origin(annotation) in (Union, types.UnionType):
        # None is what a setting is when nobody says anything; nobody can write it into a variable.
        return " or ".join(_type(choice, field) for choice in choices if choice is not types.NoneType)
    if get_origin(annotation) is dict:
        return "mapping"
    text = _TYPES[annotation]
    for limit in field.metadata:
        if isinstance(limit, Gt):
            text += f" above {limit.gt}"
        elif isinstance(limit, Ge):
            text += f" from {limit.ge}"
    return text


def _default(field: FieldInfo) -> str:
    value = field.get_default(call_default_factory=True)
    if value is None:
        return "none"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return "empty" if value in ("", {}) else f"`{value}`"


def _first_paragraph(group: type[BaseModel]) -> str:
    return " ".join((group.__doc__ or "").split("\n\n")[0].split())


def _group(annotation: Any) -> type[BaseModel] | None:
    return annotation if isinstance(annotation, type) and issubclass(annotation, BaseModel) else None


def _group_of_mapping(annotation: Any) -> type[BaseModel] | None:
    return _group(get_args(annotation)[1]) if get_origin(annotation) is dict else None


def _name_of(group: type[BaseModel]) -> str:
    return next(name for name, field in Settings.model_fields.items() if field.annotation is group)


def main(arguments: list[str]) -> int:
    if arguments not in ([], ["--check"]):
        print("usage: python scripts/reference.py [--check]", file=sys.stderr)
        return 2
    if not arguments:
        PAGE.write_text(page(), encoding="utf-8")
        return 0
    if not PAGE.exists() or PAGE.read_text(encoding="utf-8") != page():
        print(f"{PAGE.name} is not what the settings say; run python scripts/reference.py", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
