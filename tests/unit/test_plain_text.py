"""Text that others have written, as one printable line."""

from __future__ import annotations

from typing import Any

import pytest

from deimos_async.errors import DecodeError
from deimos_async.plain_text import class_path, described, escaped, escaped_lines


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Ordnung: größer als 5 €, 注文 🙂", "Ordnung: größer als 5 €, 注文 🙂"),
        ("\x1b[2J\x07", r"\x1b[2J\x07"),
        ("a\nb\r\tc", r"a\nb\r\tc"),
        ("\u202egpj.exe", r"\u202egpj.exe"),  # shown from right to left
        ("\u2028\x85\xa0", r"\u2028\x85\xa0"),
        ("\ud800", r"\ud800"),
        ("\U000e0001", r"\U000e0001"),
        ("", ""),
    ],
)
def test_what_is_not_printable_is_escaped(text: str, expected: str) -> None:
    assert escaped(text) == expected
    assert escaped(escaped(text)) == expected


def test_line_feeds_stay_in_text_of_several_lines() -> None:
    assert escaped_lines("a\x1b\nb\r\n") == "a\\x1b\nb\\r\n"


class NoText(Exception):
    def __init__(self, answer: Any) -> None:
        self.answer = answer

    def __str__(self) -> str:
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer  # type: ignore[no-any-return]


class Willful(str):
    """Text that answers as it likes."""

    __slots__ = ()

    def split(self, *given: Any) -> Any:
        raise RuntimeError("no")

    def __getitem__(self, index: Any) -> Any:
        raise RuntimeError("no")

    def isprintable(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (ValueError("bad  name\n second\tline "), "bad name second line"),
        (ValueError("\x1b]0;owned\x07"), r"\x1b]0;owned\x07"),
        (ValueError("\ud800"), r"\ud800"),
        (ValueError(), ""),
        (NoText(RuntimeError("no")), "(no text: its __str__ raised RuntimeError)"),
        (NoText(RecursionError()), "(no text: its __str__ raised RecursionError)"),
        (NoText(None), "(no text: its __str__ raised TypeError)"),
        (NoText(b"x"), "(no text: its __str__ raised TypeError)"),
        (NoText(Willful("a\nb")), "a b"),
    ],
)
def test_text_of_an_error_is_one_printable_line_whatever_it_is(error: Exception, expected: str) -> None:
    assert described(error) == expected


@pytest.mark.parametrize("text", ["x" * 100_000, "\x1b" * 100_000, "x " * 100_000])
def test_text_of_an_error_is_cut(text: str) -> None:
    assert len(described(ValueError(text))) == 1000
    assert len(described(ValueError(text), limit=10)) == 10


def test_class_is_named_by_where_it_can_be_imported() -> None:
    assert class_path(ValueError()) == "builtins.ValueError"
    assert class_path(DecodeError("x", topic="orders")) == "deimos_async.DecodeError"


@pytest.mark.parametrize(("attribute", "value"), [("__module__", None), ("__qualname__", "a\nb\ud800")])
def test_class_with_a_broken_name_has_one_that_can_be_shown(attribute: str, value: Any) -> None:
    broken = type("Broken", (Exception,), {})
    setattr(broken, attribute, value)
    name = class_path(broken())
    assert name in {"?.Broken", rf"{__name__}.a\nb\ud800"}
