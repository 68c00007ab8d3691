"""How records reach and leave Kafka: one port (`protocol`), the adapter on aiokafka (`kafka`), and a broker in memory.

What belongs here: transports and their error tables. What does not: decoding, ordering, retries (see `consuming`).
"""
