"""Who goes next where more wait than there are places: tenants in turn, each one's own requests in order."""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class Fair:
    """So many places, for the coroutines of one event loop.

    >>> async def one(fair):
    ...     async with fair.place("ada"): return "there"
    >>> asyncio.run(one(Fair(1)))
    'there'
    """

    def __init__(self, places: int) -> None:
        self._free = places
        self._waiting: OrderedDict[str | None, deque[asyncio.Future[None]]] = OrderedDict()

    @property
    def waiting(self) -> int:
        """How many coroutines wait for a place."""
        return sum(len(gates) for gates in self._waiting.values())

    @asynccontextmanager
    async def place(self, tenant: str | None) -> AsyncIterator[None]:
        """A place, once it is this tenant's turn. Cancelling leaves the line."""
        if self._free:
            self._free -= 1
        else:
            gate = asyncio.get_running_loop().create_future()
            self._waiting.setdefault(tenant, deque()).append(gate)
            try:
                await gate
            except asyncio.CancelledError:
                if gate.cancelled():
                    self._leave(tenant, gate)
                else:
                    self._hand_on()  # the place came at the same moment
                raise
        try:
            yield
        finally:
            self._hand_on()

    def _leave(self, tenant: str | None, gate: asyncio.Future[None]) -> None:
        if gate in (gates := self._waiting.get(tenant, deque())):
            gates.remove(gate)
        if not gates:
            self._waiting.pop(tenant, None)

    def _hand_on(self) -> None:
        for tenant, gates in list(self._waiting.items()):
            while gates:
                gate = gates.popleft()
                if gates:
                    self._waiting.move_to_end(tenant)  # behind the others
                else:
                    del self._waiting[tenant]
                if not gate.done():  # else it leaves just now
                    gate.set_result(None)
                    return
        self._free += 1
