"""The framework's own tables, in a metadata of their own. `migrate` makes them; embedded runs do so by themselves.

Names are Deimos's where it has the table. Times are UTC. Text columns that are part of an index are as short as Kafka's
own limits allow: a group's name has no limit there, and has one here. Who changes a table adds a revision to
`migrations/versions`.
"""

from __future__ import annotations

from sqlalchemy import BigInteger, Column, DateTime, Integer, MetaData, String, Table
from sqlalchemy.dialects import mysql
from sqlalchemy.types import TypeEngine

from deimos_async.database.protocol import LONGEST_GROUP

__all__ = ["LONGEST_GROUP", "kafka_offsets", "metadata"]

metadata = MetaData()


def _exact(length: int) -> TypeEngine[str]:
    """Text whose case counts, as it does in Kafka: the usual collations of MySQL and MariaDB take `A` for `a`."""
    binary = mysql.VARCHAR(length, charset="utf8mb4", collation="utf8mb4_bin")
    return String(length).with_variant(binary, "mysql", "mariadb")


kafka_offsets = Table(
    "kafka_offsets",
    metadata,
    Column("consumer_group", _exact(LONGEST_GROUP), primary_key=True),
    Column("topic", _exact(249), primary_key=True),
    Column("topic_partition", Integer, primary_key=True, autoincrement=False),
    Column("topic_id", _exact(36), nullable=True),
    Column("next_offset", BigInteger, nullable=False),
    Column("updated_at", DateTime(timezone=True), nullable=False),
)
"""Where a consumer with `delivery="effectively_once"` goes on: written in the transaction of what was handled.

`topic_id` is Kafka's id of the topic, by which one that was deleted and made anew is told from the old one.
"""
