"""Baskets and their items are rows of two tables."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import select
from tables.two_tables import BasketRow, CopyBaskets, ItemRow, app

from deimos_async import Deimos
from deimos_async.testing import DeimosHarness


@pytest.fixture
def deimos_app() -> Deimos:
    return app


def basket(number: int, customer: str, **items: int) -> dict[str, Any]:
    lines = [{"product": product, "quantity": quantity} for product, quantity in items.items()]
    return {"basket_id": number, "customer": customer, "items": lines}


async def rows() -> tuple[dict[int, str], set[tuple[int, str, int]]]:
    async with app.session() as session:
        baskets = {row.basket_id: row.customer for row in await session.scalars(select(BasketRow))}
        items = {(row.basket_id, row.product, row.quantity) for row in await session.scalars(select(ItemRow))}
    return baskets, items


async def test_a_basket_brings_its_items_and_takes_them_along(deimos: DeimosHarness) -> None:
    await deimos.consume_batch(
        CopyBaskets, [basket(1, "Ada", lamp=1, globe=2), basket(2, "Grace", piano=1)], keys=[1, 2]
    )
    assert await rows() == ({1: "Ada", 2: "Grace"}, {(1, "lamp", 1), (1, "globe", 2), (2, "piano", 1)})
    await deimos.consume_batch(CopyBaskets, [basket(1, "Ada", globe=3, chair=1)], keys=[1])
    assert await rows() == ({1: "Ada", 2: "Grace"}, {(1, "globe", 3), (1, "chair", 1), (2, "piano", 1)})
    await deimos.consume_batch(CopyBaskets, [basket(2, "Grace"), None], keys=[2, 1])
    assert await rows() == ({2: "Grace"}, set())
