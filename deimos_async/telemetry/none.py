"""No telemetry at all: `Deimos(metrics=None, tracing=None)`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from deimos_async.telemetry.protocol import Metrics, Span, Tracing

__all__ = ["NoTelemetry"]


class NoTelemetry:
    """Provider, metrics, tracing and span in one: every call does nothing."""

    enabled = False

    def metrics(self) -> Metrics:
        return self

    def tracing(self) -> Tracing:
        return self

    def increment(self, name: str, *, by: int = 1, tags: Mapping[str, str] | None = None) -> None: ...

    def gauge(self, name: str, value: float, *, tags: Mapping[str, str] | None = None) -> None: ...

    def histogram(self, name: str, value: float, *, tags: Mapping[str, str] | None = None) -> None: ...

    def time(self, name: str, *, tags: Mapping[str, str] | None = None) -> AbstractContextManager[None]:
        return nullcontext()

    def samples(self, headers: Sequence[tuple[str, bytes | None]]) -> bool:
        return False

    def unsampled(self) -> AbstractContextManager[object]:
        return nullcontext()

    def produce_span(self, topic: str, *, count: int = 1) -> AbstractContextManager[Span]:
        return nullcontext(self)

    def consume_span(
        self,
        name: str,
        *,
        topic: str,
        group: str,
        partition: int,
        headers: Sequence[Sequence[tuple[str, bytes | None]]],
        attributes: Mapping[str, Any] | None = None,
        drawn: bool = False,
    ) -> AbstractContextManager[Span]:
        return nullcontext(self)

    def inject(self) -> list[tuple[str, bytes]]:
        return []

    def current_trace_id(self) -> str | None:
        return None

    def set_attribute(self, name: str, value: Any) -> None: ...

    def set_error(self, error: BaseException) -> None: ...
