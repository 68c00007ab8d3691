"""What the pages say works: their programs run, their names exist, their links lead somewhere."""

from __future__ import annotations

import dataclasses
import inspect
import re
import shlex
import shutil
import signal
import sys
from pathlib import Path

import click
import pytest
import services

import deimos_async
from deimos_async.cli import main as command_line
from deimos_async.router import Declaring
from deimos_async.settings import setting_fields
from deimos_async.topics import TOPIC_OPTION_NAMES, OnError

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()
GUIDE = (ROOT / "docs" / "guide.md").read_text()
OPTIONS = (ROOT / "docs" / "topics.md").read_text()
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]
FENCE = re.compile(r"(?:^`(?P<file>[^`\n]+)`:\n\n)?^```(?P<language>\w+)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(page: str, language: str) -> list[tuple[str | None, str]]:
    """(file name, text) of each block in that language."""
    return [(found["file"], found["text"]) for found in FENCE.finditer(page) if found["language"] == language]


def commands(page: str) -> list[list[str]]:
    """Lines of console blocks as words, without what is said about them."""
    return [
        words
        for _, text in blocks(page, "console")
        for line in text.splitlines()
        if (words := shlex.split(line, comments=True))
    ]


@pytest.fixture
def first_application(tmp_path):
    """The files of the README, as somebody pastes them."""
    named = [
        (name, text)
        for language in ("python", "json", "ini")
        for name, text in blocks(README, language)
        if name is not None
    ]
    assert {name for name, _ in named} == {
        "billing.py",
        "send.py",
        "conftest.py",
        "pytest.ini",
        "test_billing.py",
        "schemas/com/acme/Order.avsc",
        "schemas/com/acme/Invoice.avsc",
    }
    for name, text in named:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path


def our_command(*start: str) -> list[str]:
    """The one command of the README that begins so, with this Python instead of `python`."""
    [found] = [words for words in commands(README) if words[: len(start)] == list(start)]
    return [sys.executable, *found[1:]]


async def test_pasted_application_runs_embedded_until_it_is_stopped(launch, first_application):
    [embedded] = [words for words in commands(README) if "--embedded" in words]
    program = await launch(sys.executable, *embedded[1:], folder=first_application)
    await program.says("running producers and consumers")
    assert await program.ends(signal.SIGTERM) == 0, program.errors


async def test_pasted_test_passes(launch, first_application):
    tests = await launch(*our_command("python", "-m", "pytest"), folder=first_application)
    assert await tests.ends() == 0, tests.output + tests.errors
    assert "1 passed" in tests.output


async def test_pasted_application_prints_an_invoice_on_kafka(
    launch, first_application, kafka_bootstrap, registry_url, unique_name
):
    exported = {words[1].partition("=")[0] for words in commands(README) if words[0] == "export"}
    assert exported == {"DEIMOS_KAFKA__BOOTSTRAP_SERVERS", "DEIMOS_SCHEMA__REGISTRY_URL"}
    environment = {
        "DEIMOS_KAFKA__BOOTSTRAP_SERVERS": kafka_bootstrap,
        "DEIMOS_SCHEMA__REGISTRY_URL": registry_url,
        "DEIMOS_PRODUCERS__TOPIC_PREFIX": f"{unique_name}.",
    }
    creating = await launch(
        *our_command("python", "-m", "deimos_async", "topics"), folder=first_application, environment=environment
    )
    assert await creating.ends() == 0, creating.errors
    [run] = [words for words in commands(README) if words[2:] == ["deimos_async", "run", "billing:app"]]
    program = await launch(sys.executable, *run[1:], folder=first_application, environment=environment)
    await program.says("running producers and consumers")
    sender = await launch(*our_command("python", "send.py"), folder=first_application, environment=environment)
    assert await sender.ends() == 0, sender.errors
    assert f"Delivery(topic='{unique_name}.orders', partition=0, offset=0)" in sender.output
    await program.says("invoice for order 1: 9.50")
    assert await program.ends(signal.SIGTERM) == 0, program.errors


@pytest.fixture
def program_of_the_guide(tmp_path):
    """A folder with what somebody gets who pastes the page: blocks without a name, in order, are `guide.py`."""
    named = {"guide.py": ""}
    for name, text in blocks(GUIDE, "python"):
        named[name or "guide.py"] = named.get(name or "guide.py", "") + text
    assert named.keys() == {"guide.py", "conftest.py", "test_guide.py"}
    for name, text in named.items():
        (tmp_path / name).write_text(text)
    shutil.copytree(ROOT / "schemas", tmp_path / "schemas")
    return tmp_path


async def test_program_of_the_guide_starts(launch, program_of_the_guide):
    guide = await launch(
        *(sys.executable, "-W", "error", "-m", "deimos_async", "run", "guide:app", "--embedded"),
        folder=program_of_the_guide,
    )
    await guide.says("running producers and consumers")
    assert await guide.ends(signal.SIGTERM) == 0, guide.errors


async def test_tests_of_the_guide_pass(launch, program_of_the_guide):
    [ini] = [text for name, text in blocks(README, "ini") if name == "pytest.ini"]
    (program_of_the_guide / "pytest.ini").write_text(ini)
    tests = await launch(sys.executable, "-m", "pytest", "-W", "error", folder=program_of_the_guide)
    assert await tests.ends() == 0, tests.output + tests.errors
    assert "3 passed" in tests.output


async def test_functions_of_the_guide_do_what_they_say(launch, program_of_the_guide):
    calls = """
import asyncio
from datetime import UTC, datetime
import guide

order = {"order_id": 1, "item": "lamp", "total": "9.50", "country": "CA", "placed_at": datetime(2026, 1, 1, tzinfo=UTC)}

async def main():
    with guide.app.with_settings({"embedded": True}):
        await guide.by_hand(order)
        async with guide.app.running(only=["producers"]):
            await guide.examples(order)
            await guide.place(order)
            assert await guide.answer() == 42
            print(await guide.to_orders_by_country.produce(order))
            print(await guide.to_parcels.produce("to the moon", key="p1"))
            await guide.place_order()
            await guide.send_again()
            print(await guide.to_orders_by_country.produce(order))

asyncio.run(main())
"""
    calling = await launch(sys.executable, "-W", "error", "-c", calls, folder=program_of_the_guide)
    assert await calling.ends() == 0, calling.errors
    # One of each way, two of `produce_many`, the tombstone, the transaction's; then this one.
    assert re.findall(r"Delivery\(topic='(\w+)', partition=0, offset=(\d+)\)", calling.output) == [
        ("orders", "0"),
        ("orders", "7"),
        ("parcels", "0"),
        ("orders", "11"),  # made, changed, deleted, and nothing is left to be sent again
    ]


def test_reference_lists_exactly_the_public_names():
    reference = (ROOT / "docs" / "reference.md").read_text()
    rows = re.findall(r"^\| (`\w+`(?:, `\w+`)*) \|", reference, re.MULTILINE)
    listed = [name for row in rows for name in re.findall(r"`(\w+)`", row)]
    assert sorted(listed) == sorted(deimos_async.__all__)


def rows(page: str, heading: str) -> list[list[str]]:
    """Cells of the rows of the first table below a heading, without the table's head."""
    _, _, below = page.partition(f"\n## {heading}\n")
    lines = re.findall(r"^\| .+ \|$", below.split("\n## ")[0], re.MULTILINE)
    return [[cell.strip() for cell in line.strip("| ").split(" | ")] for line in lines[1:]]


def test_page_of_options_has_every_option_of_topics_and_names_settings_that_exist():
    listed = {option.strip("`"): default for option, _, _, default in rows(OPTIONS, "Topics")}
    assert listed.keys() == TOPIC_OPTION_NAMES
    settings = {".".join(path) for path, _ in setting_fields()}
    for default in listed.values():
        if (name := default.strip("`")) not in ("none", "not said", "empty", '"default"'):
            assert any(re.fullmatch(name.replace("*", ".+"), setting) for setting in settings), default


def test_page_of_options_has_every_option_of_consumers_with_its_default():
    parameters = inspect.signature(Declaring.consumer).parameters.values()
    wanted = {
        parameter.name: f"`{parameter.default!r}`"
        for parameter in parameters
        if parameter.name not in ("self", "topic")
    }
    assert {option.strip("`"): default for option, default, _ in rows(OPTIONS, "Consumers")} == wanted


def test_page_of_options_has_every_parameter_of_on_error_with_its_default():
    wanted = {field.name: f"`{field.default!r}`" for field in dataclasses.fields(OnError)}
    assert {name.strip("`"): default for name, default, _ in rows(OPTIONS, "OnError")} == wanted


def commands_below(command: click.Command) -> list[click.Command]:
    if not isinstance(command, click.Group):
        return [command]
    context = click.Context(command)
    below = [command.get_command(context, name) for name in command.list_commands(context)]
    return [found for inner in below if inner is not None for found in commands_below(inner)]


def test_guide_names_every_option_of_the_command_line():
    options = {
        name
        for command in commands_below(command_line)
        for parameter in command.params
        if isinstance(parameter, click.Option)
        for name in parameter.opts
        if name.startswith("--")
    }
    assert {"--embedded", "--dry-run", "--max-seconds"} <= options
    missing = sorted(name for name in options if not re.search(rf"{name}\b", GUIDE))
    assert not missing, f"docs/guide.md does not name {', '.join(missing)}"


@pytest.mark.parametrize("name", ["guarantees.md", "traps.md"])
def test_tests_that_a_page_names_exist(name):
    named = set(re.findall(r"\btest_\w+", (ROOT / "docs" / name).read_text()))
    tests = [path.read_text() for path in (ROOT / "tests").rglob("test_*.py")]
    defined = {found for text in tests for found in re.findall(r"^(?:async )?def (test_\w+)", text, re.MULTILINE)}
    assert named
    assert not named - defined, f"docs/{name} names tests that are not there (any more)"


def test_services_are_shown_as_lines_of_which_the_readme_has_those_for_an_application():
    addresses = {
        "kafka": "127.0.0.1:1",
        "registry": "http://127.0.0.1:2/apis",
        "postgres": "postgresql+asyncpg://u@h/d",
    }
    shown = services.shown(addresses)
    exported = dict(words[1].split("=", 1) for line in shown if (words := shlex.split(line, comments=True)))
    settings = {words[1].partition("=")[0] for words in commands(README) if words[0] == "export"}
    assert {name: exported[name] for name in settings} == {
        "DEIMOS_KAFKA__BOOTSTRAP_SERVERS": addresses["kafka"],
        "DEIMOS_SCHEMA__REGISTRY_URL": addresses["registry"],
    }
    assert {exported[f"DEIMOS_TEST_{name.upper()}"] for name in addresses} == set(addresses.values())
    assert "# export DEIMOS_DATABASE__URL=postgresql+asyncpg://u@h/d" in shown


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_of_a_page_lead_to_files_and_headings(page):
    targets = re.findall(r"\]\((?!https?:)([^)]+)\)", page.read_text())
    for target in targets:
        name, _, heading = target.partition("#")
        path = (page.parent / name).resolve() if name else page
        assert path.exists(), target
        if heading:
            headings = re.findall(r"^#+ (.+)$", path.read_text(), re.MULTILINE)
            anchors = {re.sub(r"[^\w -]", "", text.lower()).replace(" ", "-") for text in headings}
            assert heading in anchors, target
