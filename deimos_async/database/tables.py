"""The framework's own tables, in a metadata of their own. `migrate` makes them; embedded runs do so by themselves.

Names are Deimos's where it has the table. Times are UTC. Text columns that are part of an index are as short as Kafka's
own limits allow: a group's name has no limit there, and has one here. Who changes a table adds a revision to
`migrations/versions`.
"""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    DateTime,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    SmallInteger,
    String,
    Table,
    Text,
)
from sqlalchemy.dialects import mysql
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.elements import ColumnElement
from sqlalchemy.types import TypeEngine

from deimos_async.database.protocol import LONGEST_GROUP

__all__ = [
    "LONGEST_CLASS",
    "LONGEST_ERROR",
    "LONGEST_GROUP",
    "deimos_poll_failures",
    "deimos_poll_info",
    "kafka_messages",
    "kafka_offsets",
    "kafka_parked_messages",
    "kafka_retries",
    "kafka_topic_info",
    "metadata",
    "utc_now",
]

LONGEST_CLASS = 255
"""Most characters of the name of an error's class that are kept."""
LONGEST_ERROR = 1000
"""Most characters of what an error says that are kept."""

metadata = MetaData()


def _exact(length: int) -> TypeEngine[str]:
    """Text whose case counts, as it does in Kafka: the usual collations of MySQL and MariaDB take `A` for `a`."""
    binary = mysql.VARCHAR(length, charset="utf8mb4", collation="utf8mb4_bin")
    return String(length).with_variant(binary, "mysql", "mariadb")


def _bytes() -> TypeEngine[bytes]:
    """Bytes of any length: the plain type of MySQL and MariaDB ends at 64 KiB."""
    return LargeBinary().with_variant(mysql.LONGBLOB(), "mysql", "mariadb")


def _moment() -> TypeEngine[datetime]:
    """A time to the microsecond, in UTC: the plain type of MySQL and MariaDB has whole seconds only."""
    return DateTime(timezone=True).with_variant(mysql.DATETIME(fsp=6), "mysql", "mariadb")


def _text() -> TypeEngine[str]:
    """Text of any length that is used."""
    long = mysql.MEDIUMTEXT(charset="utf8mb4", collation="utf8mb4_bin")
    return Text().with_variant(long, "mysql", "mariadb")


def _plain_moment() -> TypeEngine[datetime]:
    """A time in UTC that does not say so, as Deimos's tables have it."""
    return DateTime().with_variant(mysql.DATETIME(fsp=6), "mysql", "mariadb")


def _number() -> TypeEngine[int]:
    """64 bits; SQLite numbers rows by itself only for its own INTEGER."""
    return BigInteger().with_variant(Integer, "sqlite")


class utc_now(ColumnElement[datetime]):  # noqa: N801 - a function of SQL
    """The database's time in UTC as a plain moment, at the start of the statement or of the transaction."""

    inherit_cache = True


@compiles(utc_now, "postgresql")
def _utc_now_postgresql(element: object, compiler: object, **options: object) -> str:
    return "(CURRENT_TIMESTAMP AT TIME ZONE 'UTC')"


@compiles(utc_now, "mysql", "mariadb")
def _utc_now_mysql(element: object, compiler: object, **options: object) -> str:
    return "(UTC_TIMESTAMP(6))"  # its CURRENT_TIMESTAMP is in the session's zone


@compiles(utc_now, "sqlite")
def _utc_now_sqlite(element: object, compiler: object, **options: object) -> str:
    return "CURRENT_TIMESTAMP"


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

kafka_retries = Table(
    "kafka_retries",
    metadata,
    Column("consumer_group", _exact(LONGEST_GROUP), primary_key=True),
    Column("topic", _exact(249), primary_key=True),
    Column("topic_partition", Integer, primary_key=True, autoincrement=False),
    Column("record_offset", BigInteger, primary_key=True, autoincrement=False),
    Column("topic_id", _exact(36), nullable=True),
    Column("key_hash", BigInteger, nullable=True),
    Column("record_key", _bytes(), nullable=True),
    Column("record_value", _bytes(), nullable=True),
    Column("record_headers", _bytes(), nullable=False),
    Column("record_timestamp", BigInteger, nullable=True),
    Column("attempts", Integer, nullable=False),
    Column("next_at", _moment(), nullable=False),
    Column("first_failed_at", _moment(), nullable=True),
    Column("error_class", _exact(LONGEST_CLASS), nullable=True),
    Column("error_message", _exact(LONGEST_ERROR), nullable=True),
)
"""Messages that wait for their next attempt with `then="retry_keyed"`, and those of the same keys behind them.

Key and value are the record's bytes, unchanged; `record_headers` is JSON, a list of pairs of name and value, the value
in base64 or null. `key_hash` is null for messages without a key, which wait alone. `attempts` are those that have
failed, the ones before the row was made included; with 0 the message has only queued behind another one.
"""


def _message() -> list[Column[object]]:
    """What a stored message is made of. Deimos's columns first; those that it does not have may be NULL."""
    return [
        Column("topic", _exact(255), nullable=False),
        Column("message", _bytes()),
        Column("key", _bytes()),
        Column("partition_key", _exact(255)),
        Column("created_at", _plain_moment(), nullable=False, server_default=utc_now()),
        Column("updated_at", _plain_moment(), nullable=False, server_default=utc_now()),
        Column("shard", SmallInteger),
        Column("order_hash", Integer),
        Column("order_key", _bytes()),
        Column("headers", _text()),
        Column("kafka_partition", Integer),
        Column("timestamp_ms", BigInteger),
        Column("message_id", _exact(36)),
        Column("size", Integer),
    ]


kafka_messages = Table(
    "kafka_messages",
    metadata,
    Column("id", _number(), primary_key=True, autoincrement=True),
    *_message(),
    Index("index_kafka_messages_on_shard_and_id", "shard", "id"),
    sqlite_autoincrement=True,
)
"""The outbox: messages that wait to be sent. A row goes when its message was acknowledged.

`message` is the encoded payload, NULL for a tombstone; `topic` has its prefix. What chooses the partition: the number
`kafka_partition`, else `order_key`, else the text `partition_key`, else `key`. What keeps its order together has the
same `order_hash` and `shard` (see `deimos_async/outbox/shards.py`); rows that a Deimos has written have neither until
the pump gives them both. `headers` is JSON: a list of pairs of name and value, the value a text, null, or
`{"base64": "..."}` where it is no UTF-8. `message_id` is a UUID; `timestamp_ms` NULL stands for the time of sending;
`size` counts the bytes of key, payload and headers.
"""

kafka_parked_messages = Table(
    "kafka_parked_messages",
    metadata,
    Column("id", BigInteger, primary_key=True, autoincrement=False),
    *_message(),
    Column("error_code", _exact(64)),
    Column("error_text", _exact(LONGEST_ERROR)),
    Column("attempts", Integer, nullable=False),
    Column("parked_at", _moment(), nullable=False),
    Column("releases_key", Boolean, nullable=False),
)
"""Rows of the outbox that could not be sent and were put aside, by their ids there.

`releases_key`: whether later messages of the same key go on without it.
"""

kafka_topic_info = Table(
    "kafka_topic_info",
    metadata,
    Column("id", _number(), primary_key=True, autoincrement=True),
    Column("topic", _exact(255), nullable=False),
    Column("locked_by", _exact(255)),
    Column("locked_at", _plain_moment()),
    Column("error", Boolean, nullable=False, server_default="0"),
    Column("retries", Integer, nullable=False, server_default="0"),
    Column("last_processed_at", _plain_moment()),
    Column("epoch", BigInteger, nullable=False, server_default="0"),
    Column("expires_at", _moment()),
    Index("index_kafka_topic_info_on_topic", "topic", unique=True),
    sqlite_autoincrement=True,
)
"""Who sends the outbox. Rows whose `topic` is `slot-N`: leases of the slots, with the owner in `locked_by`, valid until
`expires_at` by the database's clock; `epoch` grows with each owner. Rows `worker-ID`: workers that live, likewise. The
row `layout`: in `locked_by` by which rules rows are put into shards. All others are Deimos's.
"""

deimos_poll_info = Table(
    "deimos_poll_info",
    metadata,
    Column("id", _number(), primary_key=True, autoincrement=True),
    Column("producer", _exact(255), nullable=False),
    Column("last_sent", _plain_moment()),
    Column("last_sent_id", BigInteger),
    Column("name", _exact(LONGEST_GROUP)),
    Column("chunk", Integer),
    Column("range_from", _text()),
    Column("range_to", _text()),
    Column("cursor_time", _text()),
    Column("cursor_key", _text()),
    Column("state", _exact(32)),
    Column("owner", _exact(64)),
    Column("epoch", BigInteger, nullable=False, server_default="0"),
    Column("expires_at", _moment()),
    Index("index_deimos_poll_info_on_name_and_chunk", "name", "chunk", unique=True),
    sqlite_autoincrement=True,
)
"""How far pollers are. Rows without `name` are Deimos's.

`chunk` 0 is the whole table, others are parts of a backfill, from `range_from` to `range_to`. Cursors and bounds are
text, so that they may be of any type, with all their digits. `last_sent` is then the end of the last run. `owner` has
the lease, valid until `expires_at` by the database's clock; `epoch` grows with each owner.
"""

deimos_poll_failures = Table(
    "deimos_poll_failures",
    metadata,
    Column("id", _number(), primary_key=True, autoincrement=True),
    Column("poller", _exact(LONGEST_GROUP), nullable=False),
    Column("record_key", _text(), nullable=False),
    Column("producers", _text(), nullable=False),
    Column("attempts", Integer, nullable=False),
    Column("next_at", _moment(), nullable=False),
    Column("first_failed_at", _moment(), nullable=False),
    Column("error_class", _exact(LONGEST_CLASS)),
    Column("error_message", _exact(LONGEST_ERROR)),
    Index("index_deimos_poll_failures_on_poller", "poller"),
    sqlite_autoincrement=True,
)
"""Rows that a poller could not send, whose page went on without them.

`record_key` is the row's primary key, as cursors are written; `producers` those that have not sent it, as JSON: a list
of `Class:topic`. At `next_at` the row is read again and sent as it is then.
"""
