"""`make demo`: the shop at work, in this process alone, with a table of what each consumer does.

It ends by itself after some seconds (`--forever`: at Ctrl-C or SIGTERM), waits until everything that was ordered is
dealt with, and says what came of it. Exit status 0 if each order has become exactly one invoice, else 1.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import random
import signal
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any, TextIO

from sqlalchemy import func, select

# As a script Python looks for modules in its own folder only; the package `shop` is one above.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from shop import events
from shop.carrier import COUNTRIES

DURATION = 8.0
"""Seconds of ordering."""
RATE, FOREVER_RATE = 1500, 100
"""Orders a second. The in-memory broker keeps whatever it is given, so a demo without an end goes slower."""
TICK = 0.05
MOST_LAG = 2000
"""Messages that the slowest consumer may be behind before the ordering waits for it."""
SETTLING = 8.0
"""Seconds that consumers have for what was ordered, once the ordering has stopped."""
POISON = 1234
"""The order that nobody can deliver."""
ITEMS = ("kettle", "lamp", "chair", "globe", "piano")
CONSUMERS = ("bill", "count", "book", "ship", "complain")


class Stop:
    """Whether somebody has asked for the end; the second time means: at once."""

    def __init__(self) -> None:
        self.asked = asyncio.Event()
        self.impatient = False

    def ask(self) -> None:
        self.impatient = self.asked.is_set()
        self.asked.set()

    async def sleep(self, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                await self.asked.wait()
        except TimeoutError:
            pass


class LastWords(logging.Handler):
    """Keeps the last warning for the table, where lines on standard error would tear it apart."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.text = ""

    def emit(self, record: logging.LogRecord) -> None:
        self.text = record.getMessage()


class Board:
    """What the watcher sees: a table that is drawn over, or a line a second where the output is no terminal."""

    def __init__(self, output: TextIO, words: LastWords) -> None:
        self._output = output
        self._words = words
        self._live = output.isatty()
        self._began = time.monotonic()
        self._drawn = 0
        self._next_line = 0.0
        self._before: list[tuple[float, dict[str, int]]] = []

    def show(self, orders: int, *, last: bool = False) -> None:
        now = time.monotonic()
        counts = {"orders": orders} | {name: events.handled[name] for name in CONSUMERS}
        self._before = [*(then for then in self._before if now - then[0] <= 1.0), (now, counts)]
        if self._live:
            self._draw(now - self._began, counts)
        elif now >= self._next_line or last:
            self._next_line = now + 1.0
            lag = max((status.lag for status in events.app.consumers()), default=0)
            print(
                f"{now - self._began:4.0f} s  orders {orders:,}  invoices {counts['book']:,}  "
                f"statistics {counts['count']:,}  shipped {counts['ship']:,}  retries {events.handled['retries']:,}  "
                f"dead letters {counts['complain']:,}  {self._rate('orders'):,} orders/s  lag {lag:,}",
                file=self._output,
                flush=True,
            )

    def _rate(self, name: str) -> int:
        (first, before), (last, now) = self._before[0], self._before[-1]
        return round((now[name] - before[name]) / (last - first)) if last > first else 0

    def _draw(self, elapsed: float, counts: dict[str, int]) -> None:
        lines = [
            f"{elapsed:.1f} s   {counts['orders']:,} orders, {self._rate('orders'):,} a second",
            "",
            f"{'consumer':<10}{'group':<12}{'topic':<12}{'handled':>10}{'a second':>10}{'in hand':>9}{'lag':>8}",
        ]
        for status in sorted(events.app.consumers(), key=lambda status: CONSUMERS.index(status.name)):
            name = status.name
            lines.append(
                f"{name:<10}{status.group:<12}{status.topic:<12}{counts[name]:>10,}{self._rate(name):>10,}"
                f"{status.in_flight:>9,}{status.lag:>8,}"
            )
        lines += [
            "",
            f"retries {events.handled['retries']:,}   dead letters {counts['complain']:,}"
            f"   turnover {events.turnover.money:,.2f}",
            f"last warning: {self._words.text[:100]}" if self._words.text else "",
        ]
        up = f"\x1b[{self._drawn}A" if self._drawn else ""
        self._output.write(up + "".join(f"\x1b[2K{line}\n" for line in lines))
        self._output.flush()
        self._drawn = len(lines)


class Customers:
    """Order things at a steady pace, but not faster than the shop can work."""

    def __init__(self, rate: int) -> None:
        self._rate = rate
        self.ordered = 0

    async def order_for(self, seconds: float | None, stop: Stop, board: Board) -> None:
        """Order until the time is over or somebody stops it; without seconds, until somebody stops it."""
        began = time.monotonic()
        due = 0.0
        while not stop.asked.is_set() and not events.app.failures:
            elapsed = time.monotonic() - began
            if seconds is not None and elapsed >= seconds:
                return
            due += TICK * self._rate
            if max(status.lag for status in events.app.consumers()) < MOST_LAG:
                wanted = [order(self.ordered + 1 + number) for number in range(int(due))]
                due -= len(wanted)
                await events.to_orders.produce_many([{"payload": payload} for payload in wanted])
                self.ordered += len(wanted)
            else:
                due = 0.0
            board.show(self.ordered)
            await stop.sleep(TICK)


def order(number: int) -> dict[str, Any]:
    """An order; one of them is to nowhere."""
    return {
        "order_id": number,
        "item": random.choice(ITEMS),
        "quantity": random.randint(1, 5),
        "total": Decimal(random.randint(100, 99_999)).scaleb(-2),
        "country": "Atlantis" if number == POISON else random.choice(sorted(COUNTRIES)),
        "placed_at": datetime.now(UTC),
    }


def is_settled(ordered: int) -> bool:
    """Whether every consumer has had every order. Lag alone does not say it: who has not joined yet has none."""
    handled = events.handled
    dealt_with = (handled["bill"], handled["count"], handled["book"], handled["ship"] + handled["complain"])
    return all(number >= ordered for number in dealt_with) and all(
        status.lag == 0 and status.in_flight == 0 for status in events.app.consumers()
    )


async def settle(customers: Customers, stop: Stop, board: Board) -> None:
    """Wait until all that was ordered is dealt with."""
    deadline = time.monotonic() + SETTLING
    while not (is_settled(customers.ordered) or stop.impatient or events.app.failures or time.monotonic() >= deadline):
        board.show(customers.ordered)
        await asyncio.sleep(TICK)
    board.show(customers.ordered, last=True)


async def invoices_in_books() -> int:
    async with events.app.session() as session:
        await events.books(session)
        return await session.scalar(select(func.count()).select_from(events.InvoiceRow)) or 0


async def run(forever: bool, words: LastWords) -> int:
    stop = Stop()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.ask)
    customers = Customers(FOREVER_RATE if forever else RATE)
    with events.app.with_settings({"embedded": True}):
        async with events.app.running():
            board = Board(sys.stdout, words)
            await customers.order_for(None if forever else DURATION, stop, board)
            await settle(customers, stop, board)
            booked = await invoices_in_books()
    ordered = customers.ordered
    print(
        f"orders {ordered:,}  invoices {booked:,}  statistics {events.turnover.orders:,}  "
        f"dead letters {len(events.complaints):,}"
    )
    return report(ordered, booked)


def report(ordered: int, booked: int) -> int:
    """Exit status, and on standard error what is wrong."""
    wrong = [f"{name}: {error}" for name, error in events.app.failures.items()]
    lost = int(ordered >= POISON)
    for what, found, expected in (
        ("invoices written", events.handled["bill"], ordered),
        ("invoices in the books", booked, ordered),
        ("orders in the statistics", events.turnover.orders, ordered),
        ("parcels", len(events.carrier.parcels), ordered - lost),
        ("dead letters", len(events.complaints), lost),
    ):
        if found != expected:
            wrong.append(f"{found:,} {what}, expected {expected:,}")
    for line in wrong:
        print(line, file=sys.stderr)
    return 1 if wrong else 0


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="The shop at work, in memory, with a live table.")
    parser.add_argument("--forever", action="store_true", help="until Ctrl-C instead of some seconds")
    options = parser.parse_args(arguments)
    words = LastWords()
    logging.basicConfig(handlers=[words], level=logging.WARNING)
    return asyncio.run(run(options.forever, words))


if __name__ == "__main__":
    sys.exit(main())
