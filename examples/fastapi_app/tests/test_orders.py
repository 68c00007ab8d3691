"""The web application's tests: each half alone by the plugin, and both together, embedded."""

from __future__ import annotations

import asyncio
from typing import Any

from fastapi_app.main import OrderRow, api, app, pack

from deimos_async import Deimos
from deimos_async.testing import DeimosHarness

ORDER = {"item": "lamp", "total": "19.99", "country": "CA"}


async def test_placing_an_order_keeps_a_row_and_sends_a_message(deimos: DeimosHarness, client: Any) -> None:
    answer = await client.post("/orders", json=ORDER)
    assert answer.status_code == 201
    number = answer.json()["order_id"]
    deimos.assert_sent_including("orders", {"order_id": number, "item": "lamp", "country": "CA"}, key=number)
    assert (await client.get(f"/orders/{number}")).json() == ORDER | {"order_id": number, "state": "placed"}


async def test_an_order_that_is_not_valid_sends_nothing(deimos: DeimosHarness, client: Any) -> None:
    answer = await client.post("/orders", json=ORDER | {"total": "-1"})
    assert answer.status_code == 422
    deimos.assert_not_sent("orders")


async def test_an_order_that_is_rolled_back_sends_nothing(deimos: DeimosHarness, client: Any) -> None:
    async with app.session() as session:
        session.add(OrderRow(**ORDER | {"total": 5, "order_id": 9}))
        await session.flush()
    await deimos.run_until_idle()
    deimos.assert_not_sent("orders")
    assert (await client.get("/orders/9")).status_code == 404


async def test_cancelling_an_order_sends_a_tombstone(deimos: DeimosHarness, client: Any) -> None:
    number = (await client.post("/orders", json=ORDER)).json()["order_id"]
    assert (await client.delete(f"/orders/{number}")).status_code == 204
    deimos.assert_sent("orders", None, key=number)
    assert (await client.get(f"/orders/{number}")).status_code == 404


async def test_cancelling_what_is_not_there_sends_nothing(deimos: DeimosHarness, client: Any) -> None:
    assert (await client.delete("/orders/77")).status_code == 404
    deimos.assert_not_sent("orders")


async def test_an_order_is_packed_and_invoiced_once_however_often_it_is_told(
    deimos: DeimosHarness, client: Any
) -> None:
    number = (await client.post("/orders", json=ORDER)).json()["order_id"]
    [placed] = deimos.sent_messages("orders")
    await deimos.consume_message(pack, placed.payload, key=placed.key)
    await deimos.consume_message(pack, placed.payload, key=placed.key)
    assert (await client.get(f"/orders/{number}")).json()["state"] == "packed"
    assert [message.key for message in deimos.sent_messages("invoices")] == [number]
    assert len(deimos.sent_messages("orders")) == 1


async def test_what_is_stored_is_sent_and_packed(deimos: DeimosHarness, client: Any) -> None:
    kept = (await client.post("/orders", json=ORDER)).json()["order_id"]
    cancelled = (await client.post("/orders", json=ORDER)).json()["order_id"]
    await client.delete(f"/orders/{cancelled}")
    await deimos.run_until_idle()
    assert (await client.get(f"/orders/{kept}")).json()["state"] == "packed"
    assert [message.key for message in deimos.sent_messages("invoices")] == [kept]


async def test_an_order_is_packed_by_the_running_application(deimos_app: Deimos, client: Any) -> None:
    with deimos_app.with_settings({"embedded": True}):
        async with asyncio.timeout(60), api.router.lifespan_context(api):
            number = (await client.post("/orders", json=ORDER)).json()["order_id"]
            while (await client.get(f"/orders/{number}")).json()["state"] != "packed":
                pass
    assert not deimos_app.failures
