"""The revisions, one line of them. What a revision must keep to:

- It is never changed once it was released, so it spells its tables out and imports none of `database/tables.py`.
- It can be run again: MySQL and MariaDB commit with each statement, and a process may die between two of them. Hence
  `create_table` of `deimos_async.database.migrations.steps`.
- Nothing that exists is dropped to be made anew: the table may be Deimos's, with messages in it.
- It works offline too, where nothing can be asked of the database, and down as well as up.
- Its id begins with `deimos_`, as users may have it in one history with theirs.
"""
