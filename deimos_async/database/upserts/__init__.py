"""Rows into a table in bulk: upserts, plain inserts and deletes, each database by the fastest statement it has.

What belongs here: everything between "these rows, in this transaction" and the driver. What does not: what the rows
are, when to try again and which row of a failed batch is the bad one (the caller bisects, within savepoints).

PostgreSQL (asyncpg): one statement over `unnest`, and from about a thousand rows COPY into a temporary table and a
merge. MySQL and MariaDB (aiomysql, asyncmy): multi-row statements with ON DUPLICATE KEY UPDATE. SQLite (aiosqlite):
`executemany`. All run on the driver's connection, within the transaction that SQLAlchemy holds.
"""

from deimos_async.database.upserts.driver import ensure_begun
from deimos_async.database.upserts.plan import UpsertPlan, WriteResult, insert_plan, upsert_plan

__all__ = ["UpsertPlan", "WriteResult", "ensure_begun", "insert_plan", "upsert_plan"]
