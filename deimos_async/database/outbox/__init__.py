"""What the outbox keeps in the database: its rows, and the leases of who sends them.

What belongs here: the statements of each dialect. What does not: who takes which slot, what is sent and what waits (see
`deimos_async.outbox`). Statements go to the driver as they are: they run all the time.
"""
