"""What revisions are made of. As they must not change, these must go on meaning what they mean."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import context, op
from sqlalchemy.dialects import mysql

from deimos_async.errors import DatabaseError

__all__ = ["create_table", "drop_table", "exact_text"]


def create_table(name: str, *parts: sa.schema.SchemaItem) -> None:
    """Make a table unless it exists. Offline SQL always makes it, and fails where it exists.

    Raises:
        DatabaseError: It exists and lacks columns, so it is somebody else's.
    """
    if not _exists(name, offline=False):
        op.create_table(name, *parts)
        return
    there = {column["name"] for column in sa.inspect(op.get_bind()).get_columns(name)}
    wanted = [part.name for part in parts if isinstance(part, sa.Column)]
    if missing := [column for column in wanted if column not in there]:
        raise DatabaseError(
            f"table {name!r} exists, and lacks the columns {', '.join(missing)}: it is not the framework's; "
            "rename it, or give the framework another database or search path"
        )


def drop_table(name: str) -> None:
    """Drop a table, with its rows, if it exists. Offline SQL always drops it."""
    if _exists(name, offline=True):
        op.drop_table(name)


def exact_text(length: int) -> sa.types.TypeEngine[str]:
    """VARCHAR whose case counts: the usual collations of MySQL and MariaDB take `A` for `a`."""
    binary = mysql.VARCHAR(length, charset="utf8mb4", collation="utf8mb4_bin")
    return sa.String(length).with_variant(binary, "mysql", "mariadb")


def _exists(name: str, *, offline: bool) -> bool:
    # Not by IF NOT EXISTS, which MySQL and MariaDB answer with a warning, and drivers pass that on as Python's.
    return offline if context.is_offline_mode() else sa.inspect(op.get_bind()).has_table(name)
