"""Tables and topics: `ModelConsumer` keeps a topic as a table, `KafkaSource` and `ModelProducer` send a table's rows.

What belongs here: from decoded messages to rows, and from changes of rows to messages, by the hooks and settings of a
class. What does not: the statements (`database.upserts`, `database.written_rows`), when to try again and where messages
go that failed (`consuming`), how messages are encoded and leave (`producing`).
"""
