"""Kafka and SQL databases for asyncio: what Deimos does for Rails.

Public are the names below, `deimos_async.errors`, `deimos_async.testing` and the modules called `protocol`; the rest
may change. Names are loaded when they are first used, so that importing the package costs little and starts nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from deimos_async.app import Deimos
    from deimos_async.consuming.consumer import Consumer
    from deimos_async.consuming.on_error import DeadLetter, Retry, Skip
    from deimos_async.errors import (
        BatchWriteError,
        BrokerError,
        BrokerUnavailableError,
        CommitError,
        ConfigurationError,
        DatabaseError,
        DatabaseUnavailableError,
        DecodeError,
        DeimosError,
        DeliveryError,
        EncodeError,
        FieldError,
        HandlerError,
        LifecycleError,
        NotRunningError,
        OffsetOutOfRangeError,
        RegistryError,
        RegistryUnavailableError,
        SchemaError,
        SchemaIncompatibleError,
        SchemaNotFoundError,
        ShutdownTimeoutError,
        TopicNotFoundError,
    )
    from deimos_async.events import Event
    from deimos_async.message import Delivery, Headers, Message, TopicPartition
    from deimos_async.models.consumer import ModelConsumer
    from deimos_async.models.producer import ModelProducer
    from deimos_async.models.source import KafkaConfig, KafkaSource
    from deimos_async.polling.poller import Poller
    from deimos_async.producing.producer import Producer
    from deimos_async.router import Router
    from deimos_async.settings import Settings
    from deimos_async.specs import Depends
    from deimos_async.telemetry.datadog import Datadog
    from deimos_async.telemetry.mock import Mock
    from deimos_async.telemetry.opentelemetry import OpenTelemetry
    from deimos_async.telemetry.prometheus import Prometheus
    from deimos_async.topics import Backoff, Key, OnError, Topic

__version__ = "0.1.0"

_MODULES: dict[str, tuple[str, ...]] = {
    "app": ("Deimos",),
    "consuming.consumer": ("Consumer",),
    "consuming.on_error": ("DeadLetter", "Retry", "Skip"),
    "errors": (
        "BatchWriteError",
        "BrokerError",
        "BrokerUnavailableError",
        "CommitError",
        "ConfigurationError",
        "DatabaseError",
        "DatabaseUnavailableError",
        "DecodeError",
        "DeimosError",
        "DeliveryError",
        "EncodeError",
        "FieldError",
        "HandlerError",
        "LifecycleError",
        "NotRunningError",
        "OffsetOutOfRangeError",
        "RegistryError",
        "RegistryUnavailableError",
        "SchemaError",
        "SchemaIncompatibleError",
        "SchemaNotFoundError",
        "ShutdownTimeoutError",
        "TopicNotFoundError",
    ),
    "events": ("Event",),
    "message": ("Delivery", "Headers", "Message", "TopicPartition"),
    "models.consumer": ("ModelConsumer",),
    "models.producer": ("ModelProducer",),
    "models.source": ("KafkaConfig", "KafkaSource"),
    "polling.poller": ("Poller",),
    "producing.producer": ("Producer",),
    "router": ("Router",),
    "settings": ("Settings",),
    "specs": ("Depends",),
    "telemetry.datadog": ("Datadog",),
    "telemetry.mock": ("Mock",),
    "telemetry.opentelemetry": ("OpenTelemetry",),
    "telemetry.prometheus": ("Prometheus",),
    "topics": ("Backoff", "Key", "OnError", "Topic"),
}
_HOMES = {name: module for module, names in _MODULES.items() for name in names}

__all__ = [
    "Backoff",
    "BatchWriteError",
    "BrokerError",
    "BrokerUnavailableError",
    "CommitError",
    "ConfigurationError",
    "Consumer",
    "DatabaseError",
    "DatabaseUnavailableError",
    "Datadog",
    "DeadLetter",
    "DecodeError",
    "Deimos",
    "DeimosError",
    "Delivery",
    "DeliveryError",
    "Depends",
    "EncodeError",
    "Event",
    "FieldError",
    "HandlerError",
    "Headers",
    "KafkaConfig",
    "KafkaSource",
    "Key",
    "LifecycleError",
    "Message",
    "Mock",
    "ModelConsumer",
    "ModelProducer",
    "NotRunningError",
    "OffsetOutOfRangeError",
    "OnError",
    "OpenTelemetry",
    "Poller",
    "Producer",
    "Prometheus",
    "RegistryError",
    "RegistryUnavailableError",
    "Retry",
    "Router",
    "SchemaError",
    "SchemaIncompatibleError",
    "SchemaNotFoundError",
    "Settings",
    "ShutdownTimeoutError",
    "Skip",
    "Topic",
    "TopicNotFoundError",
    "TopicPartition",
]


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{home}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
