"""What `dead-letters` prints of letters that say something hostile."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from click.testing import CliRunner

from deimos_async.cli import dead_letters as command
from deimos_async.cli.loading import reporting
from deimos_async.errors import BrokerError
from deimos_async.letters.desk import LetterTopic, Opened
from deimos_async.letters.letter import read_letter
from deimos_async.letters.replay import ReplayReport
from deimos_async.letters.summary import LetterSummary

HOSTILE = "\x1b[2J\x1b]0;owned\x07\nforged/0/0 \u202eright to left"
ESCAPED = r"\x1b[2J\x1b]0;owned\x07\nforged/0/0 \u202eright to left"


class Record:
    topic, partition, offset, timestamp = "orders-dlt", 0, 7, 2**62
    key = HOSTILE.encode()
    value = b'{"a": 1}'
    headers = (
        ("deimos-dlq-group", HOSTILE.encode()),
        ("deimos-dlq-error-class", HOSTILE.encode()),
        ("deimos-dlq-error-message", HOSTILE.encode()),
        ("deimos-dlq-first-failed-at", b"0001-01-01T00:00:00+14:00"),
        ("deimos-dlq-topic", HOSTILE.encode()),
        (HOSTILE, HOSTILE.encode()),
    )


class Source:
    name = kafka_name = "orders"


@pytest.fixture
def answer(monkeypatch: pytest.MonkeyPatch) -> Callable[[Any], None]:
    """What the desk finds, without an application."""

    def set_answer(found: Any) -> None:
        monkeypatch.setattr(command, "_at_desk", lambda app, work: found)

    return set_answer


def printed(*arguments: str) -> str:
    ended = CliRunner().invoke(command.dead_letters, [*arguments])
    assert not isinstance(ended.exception, Exception) or isinstance(ended.exception, SystemExit)
    return ended.output


def only_printable(output: str) -> bool:
    return all(line.isprintable() for line in output.split("\n"))


def test_list_escapes_what_letters_say_and_shows_no_time_where_there_is_none(answer: Callable[[Any], None]) -> None:
    letter, summary = read_letter(Record()), LetterSummary()
    summary.add(letter, replayed=False)
    source: Any = Source()
    answer(({LetterTopic("default", "orders-dlt", source, 1): summary}, [letter]))
    output = printed("list", "shop:app")
    assert only_printable(output)
    assert f"-  orders-dlt/0/7  {ESCAPED}  {ESCAPED}" in output.splitlines()
    assert f"error {ESCAPED}" in output
    (told,) = json.loads(printed("list", "shop:app", "--json"))["letters"]
    assert (told["error"], told["failed_at"]) == (HOSTILE, None)


@pytest.mark.parametrize("reveal", [False, True])
def test_show_escapes_headers_key_and_problems(answer: Callable[[Any], None], reveal: bool) -> None:
    letter = read_letter(Record())
    opened = Opened(key=HOSTILE, problems={"payload": HOSTILE}) if reveal else None
    answer((letter, opened))
    output = printed("show", "shop:app", "orders-dlt/0/7", *(["--reveal"] if reveal else []))
    assert only_printable(output)
    assert f"error message: {ESCAPED}" in output
    assert f"  {ESCAPED}: " in output
    assert (f"  value: {ESCAPED}" in output) is reveal
    assert (f"  problem: {ESCAPED}" in output) is reveal


def test_replay_escapes_its_reasons(answer: Callable[[Any], None]) -> None:
    answer(ReplayReport(passed_over=Counter({HOSTILE: 1}), refused=Counter({HOSTILE: 1})))
    output = printed("replay", "shop:app")
    assert only_printable(output)
    assert f"1 letters left: {ESCAPED}" in output
    assert f"Error: {ESCAPED}" in output


def test_errors_are_escaped_line_by_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit), reporting():
        raise BrokerError("first\nsecond \x1b[2J")
    assert capsys.readouterr().err == "Error: first\nsecond \\x1b[2J\n"
