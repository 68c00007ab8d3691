"""From a payload to an acknowledged record: the pipeline that encodes, and the backends that send.

What belongs here: what a producer does. What does not: how records cross the network (see `brokers`).
"""
