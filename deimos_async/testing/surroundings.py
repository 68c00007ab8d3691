"""Where the application under test runs: in memory, or on a real broker and registry that are left as they were."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from deimos_async.app import Deimos
from deimos_async.running import kafka_settings

if TYPE_CHECKING:  # start-up time: clients are loaded where a test run asks for them
    from deimos_async.brokers.kafka_disposable import DisposableKafkaBroker
    from deimos_async.settings import Settings

__all__ = ["Surroundings"]

_HEARTBEAT = 0.3
"""Seconds between heartbeats, whose answers tell a member that others have joined."""
_FETCH_WAIT_MS = 50
"""How long a broker holds back the answer to a fetch, and with it answers to later questions by the same connection."""


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What `--deimos-kafka` and `--deimos-registry` say. None: in memory.

    Attributes:
        kafka: `host:port[,host:port...]`; every cluster of the application is there. How to log in, and TLS, are as the
            application's settings say.
        registry: URL; every topic uses it. Credentials likewise, those of `schema.*`.
    """

    kafka: str | None = None
    registry: str | None = None

    @asynccontextmanager
    async def around(self, app: Deimos) -> AsyncIterator[str]:
        """Have a run of the application within the block use them; gives the prefix that is this test's alone.

        The prefix precedes names of topics, groups and subjects, and is empty in memory.

        Raises:
            ConfigurationError: An address is none.
        """
        if self.kafka is None and self.registry is None:
            yield ""
            return
        prefix = f"deimos-test-{uuid.uuid4().hex[:12]}-"
        settings: dict[str, Any] = {"producers.topic_prefix": prefix + app.settings.producers.topic_prefix}
        if self.kafka is not None:
            clusters = {"kafka": app.settings.kafka}
            clusters |= {f"clusters.{name}": cluster for name, cluster in app.settings.clusters.items()}
            for group, cluster in clusters.items():
                settings[f"{group}.bootstrap_servers"] = self.kafka
                settings[f"{group}.extra"] = {**cluster.extra, "fetch_max_wait_ms": _FETCH_WAIT_MS}
            settings["consumers.heartbeat_interval"] = min(app.settings.consumers.heartbeat_interval, _HEARTBEAT)
        if self.registry is not None:
            settings["schema.registry_url"] = self.registry
        before = app._broker_factory, app._registry
        with app.with_settings(settings):
            try:
                if self.kafka is not None:
                    app._broker_factory = _kafka
                if self.registry is not None:
                    app._registry = _registry(app.settings, prefix)
                yield prefix
            finally:
                registry = app._registry
                app._broker_factory, app._registry = before
                if registry is not None and registry is not before[1]:
                    await registry.close()


def _kafka(cluster: str, settings: Settings) -> DisposableKafkaBroker:
    # start-up time: loads aiokafka
    from deimos_async.brokers.kafka_disposable import DisposableKafkaBroker
    from deimos_async.brokers.kafka_options import KafkaOptions

    return DisposableKafkaBroker(cluster, KafkaOptions.from_settings(kafka_settings(settings, cluster)))


def _registry(settings: Settings, prefix: str) -> Any:
    # start-up time: loads the HTTP client
    from deimos_async.schemas.registry_disposable import DisposableSchemaRegistry
    from deimos_async.schemas.registry_options import RegistryOptions

    schema = settings.schema

    def plain(secret: Any) -> str | None:
        return None if secret is None else str(secret.get_secret_value())

    return DisposableSchemaRegistry(
        RegistryOptions(
            urls=tuple(part.strip() for part in schema.registry_url.split(",")),
            user=schema.user,
            password=plain(schema.password),
            token=plain(schema.token),
            ssl_ca=schema.ssl_ca,
            ssl_certificate=schema.ssl_certificate,
            ssl_key=plain(schema.ssl_key),
            request_timeout=schema.request_timeout,
            deadline=schema.deadline,
        ),
        prefix,
    )
