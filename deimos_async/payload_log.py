"""What log lines show of messages: their payloads, headers, keys, or only how many they are."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Protocol

from deimos_async.topics import PayloadLog

__all__ = ["Loggable", "payload_view"]


class Loggable(Protocol):
    """A message that was read or is sent, not encoded."""

    @property
    def key(self) -> Any: ...
    @property
    def payload(self) -> Any: ...
    @property
    def headers(self) -> Iterable[tuple[str, bytes | None]]: ...


def payload_view(messages: Sequence[Loggable], mode: PayloadLog) -> dict[str, Any]:
    """The part of a log line that speaks of messages.

    `full`: `payloads` with payload and key of each; `headers`: `payload_headers`; `keys`: `payload_keys`;
    `count`: `payloads_count`. A message without a key is shown by its `message_id`, where it has one.
    """
    match mode:
        case "count":
            return {"payloads_count": len(messages)}
        case "keys":
            return {"payload_keys": [_key(message) for message in messages]}
        case "headers":
            return {"payload_headers": [list(message.headers) for message in messages]}
        case _:
            return {"payloads": [{"payload": message.payload, "key": _key(message)} for message in messages]}


def _key(message: Loggable) -> Any:
    key = message.key
    if key is None and isinstance(message.payload, dict):
        return message.payload.get("message_id")
    return key
