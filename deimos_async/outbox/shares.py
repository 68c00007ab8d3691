"""Who should own which slots: fair shares over the workers that live, and whose slots may be taken.

A worker lives while its row in the lease table has not expired, by the database's clock. Where the database has locks
of a session, each worker holds one: it goes with the connection at once when a process dies, which is seen long before
the row expires. Such a lock that is free makes its worker a suspect; a suspect that is one still after a moment's grace
counts as dead. That is a hint only: a worker that is wrongly taken for dead finds its lease gone at its next renewal,
as one whose lease expired would.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from deimos_async.database.outbox.protocol import LeaseTable

__all__ = ["Decision", "Take", "decide", "fair_share"]

_MOST_GIVEN = 2
"""Slots given up in one decision, so that not everything moves at once when workers come."""


class Take(NamedTuple):
    """A slot to be taken from whoever had it, as it was seen."""

    slot: int
    owner: str | None
    epoch: int


class Decision(NamedTuple):
    """What a worker should do."""

    take: Sequence[Take]
    give: Sequence[int]
    """Slots to be drained and released."""
    suspects: Mapping[str, float]
    """Workers whose lock is free, and since when; to be passed to the next decision."""


def fair_share(me: str, alive: Iterable[str], slots: int) -> int:
    """How many slots a worker should own: all shares together are `slots`, and no two differ by more than one."""
    ranked = sorted({me, *alive})
    each, rest = divmod(slots, len(ranked))
    return each + (ranked.index(me) < rest)


def decide(
    me: str,
    table: LeaseTable,
    *,
    now: float,
    suspects: Mapping[str, float],
    grace: float,
) -> Decision:
    """What to take and to give up.

    Args:
        me: This worker, which lives whatever its row says.
        table: As it was read.
        now: Any clock that only goes forward, in seconds; `suspects` are by it.
        suspects: Of the decision before.
        grace: Seconds for which a lock must have been free.
    """
    still = {
        worker.id: suspects.get(worker.id, now)
        for worker in table.workers
        if worker.id != me and worker.is_alive and worker.is_unlocked
    }
    dead = {id for id, since in still.items() if now - since >= grace}
    alive = {worker.id for worker in table.workers if worker.is_alive} - dead
    share = fair_share(me, alive, len(table.slots))
    owned = [slot.number for slot in table.slots if slot.owner == me]
    free = [
        Take(slot.number, slot.owner, slot.epoch)
        for slot in table.slots
        if slot.owner != me and (slot.owner is None or not slot.is_leased or slot.owner in dead)
    ]
    # Workers that start together begin at different ones, and collide less.
    ranked = sorted({me, *alive})
    first = ranked.index(me) * len(free) // len(ranked)
    turned = free[first:] + free[:first]
    take = turned[: max(0, share - len(owned))]
    surplus = min(_MOST_GIVEN, max(0, len(owned) - share))
    give = sorted(owned)[len(owned) - surplus :] if surplus else []
    return Decision(take, give, still)
