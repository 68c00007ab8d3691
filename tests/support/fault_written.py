"""The business tables of a trial of the outbox: who writes to a key holds the key's row, and every message has a row.

The rows are of the transactions that the messages are of. So they say what was committed, whatever became of the answer
to the commit.
"""

from __future__ import annotations

from collections.abc import Sequence

import sqlalchemy as sa

metadata = sa.MetaData()
numbers = sa.Table(
    "trial_numbers",
    metadata,
    sa.Column("name", sa.String(40), primary_key=True),
    sa.Column("number", sa.Integer, nullable=False),
)
"""How many messages of each key were written."""
written = sa.Table(
    "trial_written",
    metadata,
    sa.Column("token", sa.String(40), primary_key=True),
    sa.Column("name", sa.String(40), nullable=False),
    sa.Column("number", sa.Integer, nullable=False),
)
"""Each message: its token, which no other one has, its key, and its number among those of the key."""

KEYS = [f"key-{number}" for number in range(64)]
"""Keys of messages that come all the time: so many that each slot has some."""
LATE = [f"late-{number}" for number in range(4)]
"""Keys of transactions that take long."""
TOO_LARGE, NOWHERE = "too-large", "nowhere"
"""Keys with a message that is too large for its topic, and of a topic that does not exist."""
ALL = [*KEYS, *LATE, TOO_LARGE, NOWHERE]


def first_rows() -> Sequence[dict[str, object]]:
    """What `numbers` holds at the beginning."""
    return [{"name": name, "number": 0} for name in ALL]
