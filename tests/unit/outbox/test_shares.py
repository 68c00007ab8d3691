"""Fair shares: all slots are owned, nobody has more than one too many, and only those of the dead are taken."""

from __future__ import annotations

import random

import pytest

from deimos_async.database.outbox.protocol import LeaseTable, SlotRow, WorkerRow
from deimos_async.outbox.shares import Decision, Take, decide, fair_share


def table(owners: list[str | None], *workers: WorkerRow, expired: tuple[int, ...] = ()) -> LeaseTable:
    slots = [
        SlotRow(number, owner, 10 + number, owner is not None and number not in expired)
        for number, owner in enumerate(owners)
    ]
    return LeaseTable(slots, workers)


def alive(*ids: str) -> list[WorkerRow]:
    return [WorkerRow(id_, True, False) for id_ in ids]


def choose(me: str, seen: LeaseTable, *, now: float = 0.0, suspects: dict[str, float] | None = None) -> Decision:
    return decide(me, seen, now=now, suspects=suspects or {}, grace=0.5)


@pytest.mark.parametrize("workers", range(1, 12))
def test_shares_add_up_and_differ_by_one_at_most(workers: int) -> None:
    ids = [f"w{number}" for number in range(workers)]
    shares = [fair_share(id_, ids, 8) for id_ in ids]
    assert sum(shares) == 8
    assert max(shares) - min(shares) <= 1


def test_first_worker_takes_everything() -> None:
    decision = choose("a", table([None] * 4, *alive("a")))
    assert sorted(decision.take) == [Take(number, None, 10 + number) for number in range(4)]
    assert not decision.give


def test_worker_that_is_not_in_the_table_yet_counts_itself() -> None:
    assert len(choose("b", table([None] * 4, *alive("a"))).take) == 2


def test_who_has_too_much_gives_a_little_at_a_time() -> None:
    decision = choose("a", table(["a"] * 8, *alive("a", "b")))
    assert (list(decision.take), list(decision.give)) == ([], [6, 7])
    assert list(choose("a", table(["a"] * 5 + ["b"] * 3, *alive("a", "b"))).give) == [4]
    assert not choose("a", table(["a"] * 4 + ["b"] * 4, *alive("a", "b"))).give


def test_slots_of_others_are_left_alone_while_their_leases_last() -> None:
    assert not choose("a", table(["b"] * 4, *alive("a", "b"))).take


def test_expired_leases_are_taken_as_they_were_seen() -> None:
    seen = table(["b"] * 4, WorkerRow("a", True, False), WorkerRow("b", False, False), expired=(0, 1, 2, 3))
    assert sorted(choose("a", seen).take) == [Take(number, "b", 10 + number) for number in range(4)]


def test_lease_of_our_own_that_has_expired_is_not_taken_from_ourselves() -> None:
    assert not choose("a", table(["a"] * 4, *alive("a"), expired=(0, 1))).take


def test_free_lock_makes_a_suspect_and_after_its_grace_a_dead_worker() -> None:
    seen = table(["a", "b"], WorkerRow("a", True, False), WorkerRow("b", True, True))
    first = choose("a", seen, now=10.0)
    assert (list(first.take), dict(first.suspects)) == ([], {"b": 10.0})
    soon = choose("a", seen, now=10.4, suspects=dict(first.suspects))
    assert not soon.take
    later = choose("a", seen, now=10.5, suspects=dict(soon.suspects))
    assert list(later.take) == [Take(1, "b", 11)]


def test_suspect_whose_lock_is_back_is_none_any_more() -> None:
    seen = table(["a", "b"], *alive("a", "b"))
    assert not choose("a", seen, now=99.0, suspects={"b": 1.0}).suspects


def test_own_lock_makes_nobody_suspect_itself() -> None:
    seen = table(["a", "a"], WorkerRow("a", True, True))
    assert not choose("a", seen, now=99.0, suspects={"a": 1.0}).suspects


def test_any_number_of_workers_that_come_and_go_end_with_fair_shares() -> None:
    chance = random.Random(3)
    owners: list[str | None] = [None] * 8
    workers: list[str] = []
    for step in range(60):
        if step % 12 == 0:
            count = chance.randint(1, 6)
            workers = [f"w{chance.randrange(1000)}" for _ in range(count)]
            owners = [owner if owner in workers else None for owner in owners]
        for me in chance.sample(workers, len(workers)):
            decision = choose(me, table(owners, *alive(*workers)))
            for take in decision.take:
                assert owners[take.slot] is None
                owners[take.slot] = me
            for slot in decision.give:
                owners[slot] = None
        if step % 12 == 11:
            counts = [owners.count(me) for me in workers]
            assert None not in owners
            assert max(counts) - min(counts) <= 1
