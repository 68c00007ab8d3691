"""What the pages say works: their programs run, their names exist, their links lead somewhere."""

from __future__ import annotations

import re
import shlex
import shutil
import signal
import sys
from pathlib import Path

import pytest

import deimos_async

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()
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
        (name, text) for language in ("python", "json") for name, text in blocks(README, language) if name is not None
    ]
    assert {name for name, _ in named} == {
        "billing.py",
        "send.py",
        "conftest.py",
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


async def test_program_of_the_guide_starts(launch, tmp_path):
    program = "".join(text for _, text in blocks((ROOT / "docs" / "guide.md").read_text(), "python"))
    (tmp_path / "guide.py").write_text(program)
    shutil.copytree(ROOT / "schemas", tmp_path / "schemas")
    guide = await launch(
        *(sys.executable, "-W", "error", "-m", "deimos_async", "run", "guide:app", "--embedded"), folder=tmp_path
    )
    await guide.says("running producers and consumers")
    assert await guide.ends(signal.SIGTERM) == 0, guide.errors


async def test_functions_of_the_guide_do_what_they_say(launch, tmp_path):
    program = "".join(text for _, text in blocks((ROOT / "docs" / "guide.md").read_text(), "python"))
    (tmp_path / "guide.py").write_text(program)
    shutil.copytree(ROOT / "schemas", tmp_path / "schemas")
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
            print(await guide.to_orders_by_country.produce(order))
            print(await guide.to_parcels.produce("to the moon", key="p1"))

asyncio.run(main())
"""
    calling = await launch(sys.executable, "-W", "error", "-c", calls, folder=tmp_path)
    assert await calling.ends() == 0, calling.errors
    # One of each way, two of `produce_many`, the tombstone, the transaction's; then this one.
    assert re.findall(r"Delivery\(topic='(\w+)', partition=0, offset=(\d+)\)", calling.output) == [
        ("orders", "0"),
        ("orders", "7"),
        ("parcels", "0"),
    ]


def test_reference_lists_exactly_the_public_names():
    reference = (ROOT / "docs" / "reference.md").read_text()
    rows = re.findall(r"^\| (`\w+`(?:, `\w+`)*) \|", reference, re.MULTILINE)
    listed = [name for row in rows for name in re.findall(r"`(\w+)`", row)]
    assert sorted(listed) == sorted(deimos_async.__all__)


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
