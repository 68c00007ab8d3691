"""Messages that wait in the database: how they are written there, and how they are sent.

What belongs here: rows and shards, what is told of new rows, and the pump that sends them. What does not: statements
of each database (`deimos_async.database.outbox`), and how a message is encoded (`deimos_async.producing`).
"""
