"""The account of an outbox: what transactions committed, against what has arrived in Kafka. Pure."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

Written = Mapping[str, tuple[str, int]]
"""Token of each message that was committed -> its key, and its number among those of the key, from 1."""


class Arrival(NamedTuple):
    """A message in Kafka."""

    topic: str
    partition: int
    offset: int
    key: str
    number: int
    token: str
    message_id: bytes | None
    """Header `deimos-message-id`."""
    sequence: int
    """Header `deimos-seq`."""
    at: float
    """When it was seen, in seconds of `time.monotonic`."""


def duplicates(arrivals: Sequence[Arrival]) -> int:
    """How many arrivals were not the first one of their message."""
    return len(arrivals) - len({arrival.token for arrival in arrivals})


def problems(written: Written, acknowledged: Collection[str], arrivals: Sequence[Arrival]) -> list[str]:
    """Everything that is wrong at the end of a trial; empty when all is well.

    Args:
        written: What the database has committed.
        acknowledged: Tokens whose commit was acknowledged to the writer.
        arrivals: In the order of each partition.
    """
    firsts: dict[str, Arrival] = {}
    for arrival in arrivals:
        firsts.setdefault(arrival.token, arrival)
    found = _say("acknowledged and not in the database", set(acknowledged) - written.keys())
    found += _say("lost", written.keys() - firsts.keys())
    found += _say("never committed", firsts.keys() - written.keys())
    found += _say(
        "arrived as something else",
        {each.token for each in arrivals if written.get(each.token) not in (None, (each.key, each.number))},
    )
    found += _say(
        "came again with another id or sequence number",
        {
            each.token
            for each in arrivals
            if (each.message_id, each.sequence) != (firsts[each.token].message_id, firsts[each.token].sequence)
        },
    )
    found += _say("without a message id", {each.token for each in arrivals if not each.message_id})
    found += _say("came after a later one of their key", out_of_order(list(firsts.values())))
    found += _say("written twice under one number", _not_counted(written))
    found += _say("last of their key in the topic, and not the last one written", not_last(arrivals))
    return found


def _say(what: str, tokens: Collection[str]) -> list[str]:
    return [f"{len(tokens)} messages {what}: {', '.join(sorted(tokens)[:10])}"] if tokens else []


def out_of_order(firsts: Sequence[Arrival]) -> list[str]:
    """Tokens of messages that first arrived after one with a higher number, or a higher row, of their key."""
    furthest: dict[tuple[str, str], tuple[int, int]] = {}
    found = []
    for arrival in firsts:
        lane = (arrival.topic, arrival.key)
        number, sequence = furthest.get(lane, (0, 0))
        if arrival.number < number or arrival.sequence < sequence:
            found.append(arrival.token)
        furthest[lane] = max(arrival.number, number), max(arrival.sequence, sequence)
    return found


def not_last(arrivals: Sequence[Arrival]) -> list[str]:
    """Tokens of messages that stand last of their key though later ones were sent: compaction would keep the wrong."""
    last: dict[tuple[str, str], Arrival] = {}
    highest: dict[tuple[str, str], int] = {}
    for arrival in arrivals:
        lane = (arrival.topic, arrival.key)
        last[lane] = arrival
        highest[lane] = max(highest.get(lane, 0), arrival.number)
    return [arrival.token for lane, arrival in last.items() if arrival.number != highest[lane]]


def _not_counted(written: Written) -> list[str]:
    """The writer's own promise: messages of a key are numbered one after another, so that there is an order at all."""
    seen: set[tuple[str, int]] = set()
    found = []
    for token, place in written.items():
        if place in seen:
            found.append(token)
        seen.add(place)
    return found
