"""From an application's plan and settings to the pump of its outbox."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from deimos_async.assembly import Plan
from deimos_async.brokers.protocol import Broker, ProducerOptions
from deimos_async.database.outbox.protocol import OutboxRow
from deimos_async.events import EventBus
from deimos_async.outbox.pump import OutboxPump, PumpOptions
from deimos_async.outbox.reporting import Describe, Reports
from deimos_async.outbox.shards import LAYOUT, SHARDS, SLOTS
from deimos_async.outbox.signal import CHANNEL, LEASES_NOTICE, OutboxSignal
from deimos_async.telemetry.protocol import Metrics, Tracing

if TYPE_CHECKING:  # start-up time: SQLAlchemy and pydantic are loaded where they are used
    from sqlalchemy.ext.asyncio import AsyncEngine

    from deimos_async.settings import Settings

__all__ = ["build_pump"]


def build_pump(
    engine: AsyncEngine,
    *,
    brokers: Mapping[str, Broker],
    producer: ProducerOptions,
    plan: Plan,
    settings: Settings,
    signal: OutboxSignal,
    metrics: Metrics,
    events: EventBus,
    tracing: Tracing,
) -> OutboxPump:
    """A pump, not started: one worker among all that work on this database.

    Args:
        brokers: By the cluster's name; started.
        signal: What is committed in this process.

    Raises:
        ConfigurationError: The engine's driver is not known, or its sessions share one connection.
    """
    # start-up time: loads SQLAlchemy
    from deimos_async.database.leases import SqlSlotLeases
    from deimos_async.database.outbox.parking import ParkedStore
    from deimos_async.database.outbox.store import SqlOutboxStore

    outbox = settings.outbox
    worker = uuid.uuid4().hex
    clusters = {topic.kafka_name: topic.options.cluster for topic in plan.topics.values()}
    return OutboxPump(
        SqlOutboxStore(engine, shards=SHARDS),
        SqlSlotLeases(
            engine,
            worker=worker,
            slots=SLOTS,
            layout=LAYOUT,
            ttl=outbox.lease_ttl,
            notice=(CHANNEL, LEASES_NOTICE),
        ),
        brokers,
        PumpOptions(
            producer=producer,
            batch_rows=outbox.batch_rows,
            batch_bytes=outbox.batch_bytes,
            max_in_flight=outbox.max_in_flight,
            poll_interval=outbox.poll_interval,
            lease_ttl=outbox.lease_ttl,
            shutdown_timeout=outbox.shutdown_timeout,
            max_blocked_keys=outbox.max_blocked_keys,
            is_compacted=_chosen(outbox.compact_topics),
        ),
        worker=worker,
        cluster_of=lambda topic: clusters.get(topic, "default"),
        signal=signal,
        reports=Reports(
            metrics=metrics,
            events=events,
            tracing=tracing,
            is_logged=_chosen(outbox.log_topics),
            describe=_describe(plan),
            interval=outbox.count_interval,
        ),
        parking=ParkedStore(engine) if outbox.poison == "park" else None,
    )


def _chosen(topics: str) -> Callable[[str], bool]:
    """Whether a topic is one of those that a setting names."""
    if topics.strip() == "all":
        return lambda topic: True
    return frozenset(name.strip() for name in topics.split(",")).__contains__


def _describe(plan: Plan) -> Describe:
    codecs = {topic.kafka_name: topic.codec for topic in plan.topics.values()}

    async def describe(row: OutboxRow) -> object:
        codec = codecs.get(row.topic)
        if codec is None:
            return {"key": row.key, "payload": row.message}
        return {"key": await codec.decode_key(row.key), "payload": await codec.decode_payload(row.message)}

    return describe
