"""Whether a message is the expected one, and if not, how a failed assertion says what is different. Pure."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, Final

__all__ = ["Difference", "differences", "plain_form"]


class _Missing:
    """Stands for a field that one side does not have."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "MISSING"


MISSING: Final[Any] = _Missing()

PAYLOAD_KEY = "payload_key"
_LONGEST_VALUE = 300


@dataclass(frozen=True, slots=True)
class Difference:
    """One field that is not as expected.

    Attributes:
        path: As `payload.items[3].price`.
        expected, actual: The values; `MISSING` where a side lacks the field.
        weight: How many fields it stands for, when the closest message is chosen.
    """

    path: str
    expected: Any
    actual: Any
    weight: int = 1

    def __str__(self) -> str:
        where = self.path or "it"
        if self.actual is MISSING:
            return f"{where}: expected {shown(self.expected)}, is missing"
        if self.expected is MISSING:
            return f"{where}: not expected, is {shown(self.actual)}"
        return f"{where}: expected {shown(self.expected)}, is {shown(self.actual)}"


def shown(value: Any) -> str:
    """A value in the text of a failure, cut where it is long."""
    text = repr(value)
    return text if len(text) <= _LONGEST_VALUE else f"{text[:_LONGEST_VALUE]}... ({len(text)} characters)"


def plain_form(value: Any) -> Any:
    """Dataclasses, pydantic models and objects with `to_dict()` as dicts, enum members as values; one level deep.

    Keys of mappings are text. Everything else, matchers among them, is returned as it is.
    """
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, Mapping):
        return {_name(name): inner for name, inner in value.items()}
    cls = type(value)
    if isinstance(value, type):
        return value
    if dataclasses.is_dataclass(value):
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    # asked of the class, as mocks have every attribute that they are asked for
    for method in ("model_dump", "to_dict"):
        convert = getattr(cls, method, None)
        if callable(convert):
            return plain_form(convert(value))
    return value


def _name(name: Any) -> str:
    return str(name.value if isinstance(name, Enum) else name)


def differences(expected: Any, actual: Any, *, partial: bool = False, path: str = "") -> list[Difference]:
    """Every field that is not as expected; empty if the two match.

    Dicts are compared field by field and lists item by item, at every depth; other values by `expected == actual`, so
    that matchers (`unittest.mock.ANY`, `pytest.approx(...)`) may stand for any of them. `payload_key` does not count
    where it is None.

    Args:
        expected: Its dataclasses and models count as dicts.
        partial: Fields that `expected` lacks do not count, in nested dicts either. Lists still have the same length.
        path: What to call the value.
    """
    expected, actual = plain_form(expected), plain_form(actual)
    if isinstance(expected, Mapping) and isinstance(actual, Mapping):
        return _field_differences(expected, actual, partial, path)
    if isinstance(expected, (list, tuple)) and isinstance(actual, (list, tuple)):
        return _item_differences(expected, actual, partial, path)
    if _is_equal(expected, actual):
        return []
    return [Difference(path, expected, actual, 1 + len(expected) if isinstance(expected, Mapping) else 1)]


def _field_differences(
    expected: Mapping[str, Any], actual: Mapping[str, Any], partial: bool, path: str
) -> list[Difference]:
    found = []
    for name, value in expected.items():
        inner = f"{path}.{name}" if path else name
        if name in actual:
            found += differences(value, actual[name], partial=partial, path=inner)
        elif not (name == PAYLOAD_KEY and value is None):
            found.append(Difference(inner, value, MISSING))
    if not partial:
        found += [
            Difference(f"{path}.{name}" if path else name, MISSING, value)
            for name, value in actual.items()
            if name not in expected and not (name == PAYLOAD_KEY and value is None)
        ]
    return found


def _item_differences(expected: Sequence[Any], actual: Sequence[Any], partial: bool, path: str) -> list[Difference]:
    found = []
    for index in range(max(len(expected), len(actual))):
        inner = f"{path}[{index}]"
        if index >= len(actual):
            found.append(Difference(inner, expected[index], MISSING))
        elif index >= len(expected):
            found.append(Difference(inner, MISSING, actual[index]))
        else:
            found += differences(expected[index], actual[index], partial=partial, path=inner)
    return found


def _is_equal(expected: Any, actual: Any) -> bool:
    # the expected value is asked, as it may be a matcher
    if expected == actual:
        return True
    return isinstance(expected, float) and isinstance(actual, float) and expected != expected and actual != actual
