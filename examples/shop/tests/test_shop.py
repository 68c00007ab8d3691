"""How handlers are tested: no Kafka, no registry, no server."""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest
from shop import events
from shop.carrier import Carrier, CarrierBusyError, UnknownCountryError
from sqlalchemy import select

from deimos_async.errors import EncodeError
from deimos_async.testing import DeimosHarness


def order(number: int, **more: Any) -> dict[str, Any]:
    return {
        "order_id": number,
        "item": "kettle",
        "total": Decimal("9.50"),
        "country": "CA",
        "placed_at": datetime(2026, 1, 1, tzinfo=UTC),
    } | more


@pytest.fixture
def carrier(monkeypatch: pytest.MonkeyPatch) -> Carrier:
    """A fresh one that is busy at each second call."""
    fresh = Carrier(every=2)
    monkeypatch.setattr(events, "carrier", fresh)
    return fresh


async def test_an_order_becomes_an_invoice(deimos: DeimosHarness) -> None:
    await deimos.consume_message(events.bill, order(1), key=1)
    deimos.assert_sent("invoices", {"order_id": 1, "amount": Decimal("9.50")}, key={"order_id": 1})


async def test_an_order_without_a_total_is_refused_with_the_field(deimos: DeimosHarness) -> None:
    incomplete = order(1)
    del incomplete["total"]
    with pytest.raises(EncodeError, match="total"):
        await deimos.consume_message(events.bill, incomplete, key=1)
    deimos.assert_not_sent("invoices")


async def test_a_batch_is_added_up(deimos: DeimosHarness) -> None:
    before = events.turnover.orders, events.turnover.money
    await deimos.consume_batch(events.count, [order(1), order(2, total=Decimal("0.50"))], keys=[1, 2])
    assert (events.turnover.orders - before[0], events.turnover.money - before[1]) == (2, Decimal("10.00"))


async def test_an_invoice_that_comes_twice_is_in_the_books_once(deimos: DeimosHarness) -> None:
    invoice = {"order_id": 7, "amount": Decimal("9.50")}
    for _ in range(2):
        await deimos.consume_batch(events.book, [invoice], keys=[{"order_id": 7}])
    async with events.app.session() as session:
        rows = list(await session.scalars(select(events.InvoiceRow)))
    assert [(row.order_id, row.amount) for row in rows] == [(7, Decimal("9.50"))]


async def test_a_parcel_goes_to_the_carrier(deimos: DeimosHarness, carrier: Carrier) -> None:
    await deimos.consume_message(events.ship, order(3), key=3)
    assert carrier.parcels == {3}


async def test_a_busy_carrier_and_an_unknown_country_are_errors(deimos: DeimosHarness, carrier: Carrier) -> None:
    with pytest.raises(UnknownCountryError):
        await deimos.consume_message(events.ship, order(4, country="Atlantis"), key=4)
    with pytest.raises(CarrierBusyError):
        await deimos.consume_message(events.ship, order(5), key=5)
    assert carrier.parcels == set()


@pytest.mark.deimos(settings={"consumers.reraise_errors": False})
async def test_an_order_to_nowhere_is_invoiced_and_becomes_a_complaint(deimos: DeimosHarness, carrier: Carrier) -> None:
    await events.to_orders.produce(order(9, country="Atlantis"))
    await deimos.run_until_idle()
    deimos.assert_sent_including("invoices", {"order_id": 9}, key={"order_id": 9})
    assert events.complaints[-1] == "order 9: nobody delivers to Atlantis"
