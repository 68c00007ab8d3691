"""Orders of the topic are rows."""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest
from sqlalchemy import select
from tables.one_table import CopyOrders, OrderCopy, app

from deimos_async import Deimos
from deimos_async.testing import DeimosHarness


@pytest.fixture
def deimos_app() -> Deimos:
    return app


def order(number: int, item: str) -> dict[str, Any]:
    return {
        "order_id": number,
        "item": item,
        "total": Decimal("9.50"),
        "country": "CA",
        "placed_at": datetime(2026, 1, 1, tzinfo=UTC),
    }


async def items() -> dict[int, str]:
    async with app.session() as session:
        return {row.order_id: row.item for row in await session.scalars(select(OrderCopy))}


async def test_the_last_message_of_an_order_is_its_row_and_a_tombstone_deletes_it(deimos: DeimosHarness) -> None:
    await deimos.consume_batch(CopyOrders, [order(1, "lamp"), order(2, "globe"), order(1, "kettle")], keys=[1, 2, 1])
    assert await items() == {1: "kettle", 2: "globe"}
    await deimos.consume_batch(CopyOrders, [None], keys=[2])
    assert await items() == {1: "kettle"}
