"""The checker sees what it is there for. Pure: no brokers, no members."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from fault_ledger import Fault, Ledger, Line, fate, problems

FINE = next(number for number in range(100) if fate("k", number) == "fine")
POISON = next(number for number in range(100_000) if fate("k", number) == "poison")
FLAKY = next(number for number in range(100_000) if fate("k", number) == "flaky")


def line(
    offset: int, at: int, *, group: str = "partition", key: str = "k", member: str = "m1", number: int = FINE
) -> Line:
    return Line(group, 0, offset, key, number, at, member)


def account(
    lines: Sequence[Line],
    *,
    written: Sequence[int],
    group: str = "partition",
    faults: Sequence[Fault] = (),
    numbers: dict[int, int] | None = None,
) -> list[str]:
    """Problems of a trial with one partition; message numbers are `FINE` but for those given by offset."""
    ledger = Ledger([group], 1, faults=list(faults))
    for offset in written:
        ledger.acknowledged[0, offset] = "k", (numbers or {}).get(offset, FINE)
    for each in lines:
        ledger.handled(each)
    return problems(ledger, fails=True)


def killed(member: str, *, began: int, ended: int, committed: int) -> Fault:
    return Fault("killed", began, ended, member, {"partition": {0: committed}, "key": {0: committed}})


def test_everything_handled_once_in_order_is_no_problem() -> None:
    assert account([line(0, 1), line(1, 2)], written=[0, 1]) == []


@pytest.mark.parametrize(
    ("lines", "problem"),
    [
        ([line(0, 1)], "1 messages lost: [0]@1"),
        ([line(0, 1), line(1, 2), line(2, 3)], "1 messages never written: [0]@2"),
        ([line(1, 1), line(0, 2)], "1 messages handled before an earlier one: [0]@0"),
        ([line(0, 1), line(1, 2), line(1, 3)], "1 messages handled again without a reason: [0]@1"),
        ([line(0, 1), line(1, 2, number=FINE + 7)], "1 messages handled as something else: [0]@1"),
    ],
)
def test_what_must_not_be_is_found(lines: Sequence[Line], problem: str) -> None:
    assert account(lines, written=[0, 1]) == [f"group 'partition': {problem}"]


def test_order_is_that_of_the_key_for_the_group_by_key() -> None:
    assert account([line(1, 1, group="key"), line(0, 2, group="key")], written=[0, 1], group="key") != []
    ledger = Ledger(["key"], 1)
    ledger.acknowledged = {(0, 0): ("a", FINE), (0, 1): ("b", FINE)}
    ledger.handled(line(1, 1, group="key", key="b"))
    ledger.handled(line(0, 2, group="key", key="a"))
    assert problems(ledger, fails=False) == []


@pytest.mark.parametrize(
    ("fault", "is_explained"),
    [
        (killed("m1", began=5, ended=6, committed=0), True),
        (killed("m1", began=5, ended=6, committed=1), False),  # it had been committed
        (killed("m3", began=5, ended=6, committed=0), False),  # it was somebody else
        (killed("m1", began=11, ended=12, committed=0), False),  # it came afterwards
    ],
)
def test_fault_explains_only_what_was_uncommitted_in_the_hands_of_its_member(fault: Fault, is_explained: bool) -> None:
    lines = [line(0, 1), line(0, 10, member="m2")]
    assert (account(lines, written=[0], faults=[fault]) == []) is is_explained


def test_message_behind_one_that_waits_for_its_next_attempt_may_come_again_by_key_only() -> None:
    numbers = {0: FLAKY}
    for group, is_explained in (("key", True), ("partition", False)):
        lines = [
            line(1, 1, group=group, key="other"),
            line(1, 5, group=group, key="other", member="m2"),
            line(0, 6, group=group, number=FLAKY),
        ]
        ledger = Ledger([group], 1)
        ledger.acknowledged = {(0, 0): ("k", numbers[0]), (0, 1): ("other", FINE)}
        for each in lines:
            ledger.handled(each)
        found = [problem for problem in problems(ledger, fails=True) if "again" in problem]
        assert (found == []) is is_explained


def test_poison_must_be_put_aside_and_nothing_else_may_be() -> None:
    numbers = {1: POISON}
    assert account([line(0, 1)], written=[0, 1], numbers=numbers) == [
        "group 'partition': 1 messages lost: [0]@1",
        "group 'partition': 1 messages not put aside though they always fail: [0]@1",
    ]
    ledger = Ledger(["partition"], 1)
    ledger.acknowledged = {(0, 0): ("k", FINE), (0, 1): ("k", POISON)}
    ledger.put_aside("partition", 0, 0)
    ledger.put_aside("partition", 0, 1)
    assert problems(ledger, fails=True) == ["group 'partition': 1 messages put aside though they were good: [0]@0"]


def test_commit_above_a_gap_is_seen() -> None:
    ledger = Ledger(["partition"], 1)
    ledger.handled(line(0, 1))
    ledger.handled(line(2, 2))
    assert ledger.covers({"partition": {0: 1}})
    assert not ledger.covers({"partition": {0: 3}})
    ledger.put_aside("partition", 0, 1)
    assert ledger.covers({"partition": {0: 3}})
