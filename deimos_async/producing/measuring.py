"""What producers tell to the metrics: one call for each topic of a send; durations are sampled."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from deimos_async.telemetry import names
from deimos_async.telemetry.protocol import Metrics
from deimos_async.telemetry.sampling import SampledHistogram

__all__ = ["SendMeasurements"]


class SendMeasurements:
    """Figures of all producers of one running application. Topics by their names in Kafka."""

    __slots__ = ("_encode", "_metrics", "_send", "_tags")

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._tags: dict[tuple[str, str | None], dict[str, str]] = {}
        self._encode: dict[str, SampledHistogram] = {}
        self._send: dict[tuple[str, str | None], SampledHistogram] = {}

    def encoded(self, topic: str, seconds: float) -> None:
        """One message took so long to be coerced and encoded (sampled)."""
        histogram = self._encode.get(topic)
        if histogram is None:
            histogram = self._encode[topic] = SampledHistogram(self._metrics, names.ENCODE_TIME, {"topic": topic})
        histogram.record(seconds)

    def sent(self, topic: str, count: int, error: BaseException | None = None) -> None:
        """So many messages were acknowledged, taken by the buffer, or have failed."""
        self._metrics.increment(names.SENT, by=count, tags=self._sending(topic, _name(error)))

    def answered(self, topic: str, seconds: float, error: BaseException | None = None) -> None:
        """The brokers took so long to acknowledge one call's messages, or to fail (sampled)."""
        key = topic, _name(error)
        histogram = self._send.get(key)
        if histogram is None:
            histogram = self._send[key] = SampledHistogram(self._metrics, names.OPERATION_DURATION, self._sending(*key))
        histogram.record(seconds)

    def not_delivered(self, topics: Iterable[str]) -> None:
        """The brokers did not acknowledge a message of each of these topics, which may be named many times."""
        for topic, count in Counter(topics).items():
            self._metrics.increment(names.DELIVERY_FAILURES, by=count, tags={"topic": topic})

    def _sending(self, topic: str, error: str | None) -> dict[str, str]:
        found = self._tags.get((topic, error))
        if found is None:
            found = self._tags[topic, error] = names.messaging_tags("send", topic, error=error)
        return found


def _name(error: BaseException | None) -> str | None:
    return None if error is None else type(error).__name__
