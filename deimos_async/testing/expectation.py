"""The message that a test expects, and the text of an assertion that failed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from deimos_async.consuming.dead_letters import HEADER_PREFIX, RETRY_PREFIX
from deimos_async.message import HeadersInput
from deimos_async.testing.matching import Difference, differences, shown
from deimos_async.testing.sent import SentMessage, header_values
from deimos_async.topics import UNSET

__all__ = ["Expectation", "explain_missing", "explain_unwanted"]

_TRACE_HEADERS = frozenset({"traceparent", "tracestate", "baggage"})
"""W3C's names. Tracing adds these by itself; they count only where a test names them."""
_LETTER_HEADERS = (HEADER_PREFIX, RETRY_PREFIX)
"""How headers begin that consumers add to what they send away; they count only where a test names them."""

_MOST_SHOWN = 20


@dataclass(frozen=True, slots=True)
class Expectation:
    """What a message should be. UNSET: anything.

    Attributes:
        partial: Whether fields that `payload` lacks do not count.
    """

    payload: Any = UNSET
    key: Any = UNSET
    partition_key: str | bytes | None = UNSET
    headers: HeadersInput | None = UNSET
    partial: bool = False

    def differences(self, message: SentMessage) -> list[Difference]:
        """How a message differs from it; empty if it is as expected."""
        found: list[Difference] = []
        if self.payload is not UNSET:
            payload = self.payload
            if isinstance(message.payload, bytes) and isinstance(payload, str):
                payload = payload.encode()  # a topic without a schema takes text, and gives bytes
            found += differences(payload, message.payload, partial=self.partial, path="payload")
        if self.key is not UNSET:
            different = differences(self.key, message.key, path="key")
            if different and not differences(message.key_as_read(self.key), message.key):
                different = []
            found += different
        if self.partition_key is not UNSET:
            given, sent = self.partition_key, message.partition_key
            if isinstance(given, str) and isinstance(sent, bytes):
                given = given.encode()
            elif isinstance(given, bytes) and isinstance(sent, str):
                sent = sent.encode()
            found += differences(given, sent, path="partition_key")
        if self.headers is not UNSET:
            wanted = header_values(self.headers or ())
            headers = {
                name: value
                for name, value in header_values(message.headers).items()
                if name in wanted or not (name in _TRACE_HEADERS or name.startswith(_LETTER_HEADERS))
            }
            found += differences(wanted, headers, path="headers")
        return found

    def __str__(self) -> str:
        parts = [
            f"{name}={shown(value)}"
            for name in ("payload", "key", "partition_key", "headers")
            if (value := getattr(self, name)) is not UNSET
        ]
        return ("at least " if self.partial else "") + (", ".join(parts) or "any message")


def explain_missing(
    expectation: Expectation, topic: str, sent: Sequence[SentMessage], elsewhere: Mapping[str, int]
) -> str:
    """Why `assert_sent` failed: the closest message of the topic, how it differs, and what else was sent.

    Args:
        sent: Messages of that topic, none of which is as expected.
        elsewhere: How many messages were sent to each other topic.
    """
    lines = [f"expected on topic {topic!r}: {expectation}"]
    if not sent:
        lines.append("nothing was sent to it")
    else:
        closest = min(sent, key=lambda message: sum(each.weight for each in expectation.differences(message)))
        found = expectation.differences(closest)
        number = next(index for index, message in enumerate(sent, 1) if message is closest)
        lines.append(f"the closest message is number {number} of {len(sent)}; {_count(len(found), 'difference')}:")
        lines += [f"  {difference}" for difference in found]
    return "\n".join(lines + _what_was_sent(topic, sent, elsewhere))


def explain_unwanted(
    expectation: Expectation, topic: str, sent: Sequence[SentMessage], elsewhere: Mapping[str, int]
) -> str:
    """Why `assert_not_sent` failed: which messages are as described, and what else was sent."""
    numbers = [str(index) for index, message in enumerate(sent, 1) if not expectation.differences(message)]
    which = f"message {numbers[0]} is" if len(numbers) == 1 else f"messages {', '.join(numbers)} are"
    lines = [f"not expected on topic {topic!r}: {expectation}", f"but {which} such"]
    return "\n".join(lines + _what_was_sent(topic, sent, elsewhere))


def _what_was_sent(topic: str, sent: Sequence[SentMessage], elsewhere: Mapping[str, int]) -> list[str]:
    lines = []
    if sent:
        lines.append(f"sent to {topic!r}:")
        lines += [f"  {number}. {_described(message)}" for number, message in enumerate(sent[:_MOST_SHOWN], 1)]
        if len(sent) > _MOST_SHOWN:
            lines.append(f"  ... and {len(sent) - _MOST_SHOWN} more")
    if elsewhere:
        lines.append("sent to other topics: " + ", ".join(f"{name!r} ({count})" for name, count in elsewhere.items()))
    return lines


def _described(message: SentMessage) -> str:
    parts = [f"payload={shown(message.payload)}", f"key={shown(message.key)}"]
    if message.partition_key is not None and message.partition_key != str(message.key):
        parts.append(f"partition_key={shown(message.partition_key)}")
    if len(message.headers):
        parts.append(f"headers={shown(header_values(message.headers))}")
    return ", ".join(parts)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
