"""Alembic runs this file for each command of `migrator.py`, which says in `config.attributes` where it works.

`connection`: with a transaction begun, which whoever gave it commits. `dialect`: name of one, for offline SQL.
`on_version_apply`: told of each step. To write a revision use the environment of the project, in the folder `alembic`.
"""

from __future__ import annotations

from alembic import context

from deimos_async.database.migrations import VERSION_TABLE

_given = context.config.attributes

if context.is_offline_mode():
    # Else a dialect's usual parameter style would double percent signs in the text.
    context.configure(
        dialect_name=_given["dialect"],
        dialect_opts={"paramstyle": "named"},
        literal_binds=True,
        version_table=VERSION_TABLE,
    )
else:
    context.configure(
        connection=_given["connection"],
        version_table=VERSION_TABLE,
        on_version_apply=_given["on_version_apply"],
    )
with context.begin_transaction():
    context.run_migrations()
