"""The framework's own tables, in a metadata of their own. `migrate` makes them; embedded runs and tests do by themselves.

Names are Deimos's where it has the table. Times are UTC. Text columns that are part of an index are as short as Kafka's
own limits allow: a group's name has no limit there, and has one here.
"""

from __future__ import annotations

from sqlalchemy import BigInteger, Column, DateTime, Integer, MetaData, String, Table

__all__ = ["LONGEST_GROUP", "kafka_offsets", "metadata"]

LONGEST_GROUP = 191
"""Most characters of a consumer group's name, prefix included, that is kept in a table."""

metadata = MetaData()

kafka_offsets = Table(
    "kafka_offsets",
    metadata,
    Column("consumer_group", String(LONGEST_GROUP), primary_key=True),
    Column("topic", String(249), primary_key=True),
    Column("topic_partition", Integer, primary_key=True, autoincrement=False),
    Column("topic_id", String(36), nullable=True),
    Column("next_offset", BigInteger, nullable=False),
    Column("updated_at", DateTime(timezone=True), nullable=False),
)
"""Where a consumer with `delivery="effectively_once"` goes on: written in the transaction of what was handled.

`topic_id` is Kafka's id of the topic, by which one that was deleted and made anew is told from the old one.
"""
