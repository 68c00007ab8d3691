"""Somebody else's service, as the shop sees it: it is busy now and then, and does not deliver everywhere."""

from __future__ import annotations

import asyncio

COUNTRIES = frozenset({"CA", "DE", "FR", "JP", "US"})


class CarrierBusyError(Exception):
    """Try again."""


class UnknownCountryError(Exception):
    """Nobody delivers there, however often one asks."""


class Carrier:
    """Takes parcels.

    Attributes:
        every: Each so many calls it is busy.
        parcels: Order numbers that it has taken. A second call for one of them changes nothing, so that a message
            may be handled twice.
    """

    def __init__(self, every: int = 500) -> None:
        self.every = every
        self.parcels: set[int] = set()
        self._calls = 0

    async def book(self, order_id: int, country: str) -> None:
        """Take a parcel. Raises CarrierBusyError or UnknownCountryError."""
        await asyncio.sleep(0)  # a real one is asked over the network
        self._calls += 1
        if self._calls % self.every == 0:
            raise CarrierBusyError(f"the carrier is busy, order {order_id} must wait")
        if country not in COUNTRIES:
            raise UnknownCountryError(f"order {order_id}: nobody delivers to {country}")
        self.parcels.add(order_id)
