"""How the framework's own tables come to be and change: Alembic revisions, and what runs them for `migrate`.

What belongs here: revisions in `versions/`, and their runner. What does not: the tables themselves, as the code of this
version uses them (`database/tables.py`); tests hold the two together. This module loads no Alembic.
"""

from __future__ import annotations

from deimos_async.database.tables import metadata

__all__ = ["VERSION_TABLE", "is_framework_table"]

VERSION_TABLE = "deimos_alembic_version"
"""Where `migrate` keeps how far a database is. Not Alembic's usual name: users have a history of their own there."""


def is_framework_table(name: str | None) -> bool:
    """Whether a table is the framework's, so that a user's own `alembic revision --autogenerate` leaves it alone.

    def include_name(name, type_, parent_names):
        return type_ != "table" or not is_framework_table(name)
    """
    return name is not None and (name == VERSION_TABLE or name in metadata.tables)
