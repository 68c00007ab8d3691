"""From a row of the outbox to the record that is sent."""

from __future__ import annotations

import uuid
from collections.abc import Sequence

from deimos_async.database.outbox.protocol import OutboxRow
from deimos_async.message import OutboundRecord
from deimos_async.outbox.rows import decode_headers

__all__ = ["ENQUEUED_AT", "MESSAGE_ID", "SEQUENCE", "to_record"]

MESSAGE_ID = "deimos-message-id"
"""Header: a UUID, the same however often the row is sent."""
SEQUENCE = "deimos-seq"
"""Header: id of the row. It grows with the messages of a key, so that copies that come late can be told."""
ENQUEUED_AT = "deimos-enqueued-at"
"""Header: when the row was written, ISO 8601 in UTC."""

_OURS = frozenset({MESSAGE_ID, SEQUENCE, ENQUEUED_AT})
_NAMESPACE = uuid.UUID("6d3f1c1e-8f0b-4f43-9d0e-5a7c5b6f2a11")
_new = tuple.__new__


def to_record(row: OutboxRow) -> OutboundRecord:
    """The record of a row, with our headers after those that are stored.

    Raises:
        ValueError: Its headers cannot be read.
    """
    headers: Sequence[tuple[str, bytes | None]] = (
        (MESSAGE_ID, (row.message_id or _derived_id(row)).encode()),
        (SEQUENCE, b"%d" % row.id),
        (ENQUEUED_AT, f"{row.created_at.replace(' ', 'T', 1)}Z".encode()),
    )
    if row.headers is not None:
        # Passed on from another message they would say of this one what was true of that.
        headers = [*(pair for pair in decode_headers(row.headers) if pair[0] not in _OURS), *headers]
    # What OutboundRecord(...) does, at a third of its cost.
    return _new(
        OutboundRecord,
        (row.topic, row.key, row.message, headers, row.partition, row.partition_key, row.timestamp_ms),
    )


def _derived_id(row: OutboxRow) -> str:
    """Of a row that a Deimos has written, which gives none: always the same one."""
    return str(uuid.uuid5(_NAMESPACE, f"{row.topic}/{row.id}/{row.created_at}"))
