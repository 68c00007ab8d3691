"""Tables kept from topics: `ModelConsumer` and what it does with a batch or a message.

What belongs here: from decoded messages to rows of one table, by the hooks and settings of a class. What does not: the
statements (`database.upserts`), when to try again and where messages go that failed (`consuming`).
"""
