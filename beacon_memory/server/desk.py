"""Where requests wait: a line of bounded length for the model, and threads for what needs no model.

The event loop never waits for either, so that health checks are answered while a session is folded.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing, contextmanager
from typing import TypeVar

from fastapi import Request

from beacon_memory.errors import EngineBusy
from beacon_memory.server.errors import Left
from beacon_memory.server.fair import Fair
from beacon_memory.server.limits import Limits
from beacon_memory.serving.engine import BeaconEngine

T = TypeVar("T")
STORE_THREADS = 8


class Desk:
    """The work of all requests, on the engine's threads or on threads of its own. `tenant` is whose request it is."""

    def __init__(self, engine: BeaconEngine, limits: Limits) -> None:
        self._engine, self._limits = engine, limits
        self._threads = ThreadPoolExecutor(STORE_THREADS, thread_name_prefix="beacon-store")
        self._fair = Fair(engine.threads)
        self._of: Counter[str | None] = Counter()  # requests that wait for the model or use it, by tenant

    @property
    def busy(self) -> int:
        """How many requests wait for the model or use it."""
        return self._of.total()

    @property
    def waiting(self) -> int:
        """How many of them wait for a thread."""
        return self._fair.waiting

    async def aside(self, act: Callable[[], T]) -> T:
        """The result of what needs a store and no model."""
        context = contextvars.copy_context()
        return await asyncio.get_running_loop().run_in_executor(self._threads, context.run, act)

    async def run(self, request: Request, act: Callable[[], T], *, tenant: str | None = None) -> T:
        """The result of what needs the model. Raises EngineBusy, Left, TimeoutError."""

        async def done() -> T:
            async with self._fair.place(tenant):
                return await self._engine.run(act)

        with self._place(tenant):
            return await self._awaited(request, done())

    async def stream(
        self, request: Request, begin: Callable[[], Iterator[T]], *, tenant: str | None = None
    ) -> AsyncIterator[T]:
        """What an iterator gives that needs the model; it is read on one of the engine's threads.

        Until the first piece is there, it ends with Left when the client goes. After it the response's own reader sees
        that, and closes this. Closing frees the place. Raises EngineBusy, Left, TimeoutError.
        """
        ends = asyncio.get_running_loop().time() + self._limits.seconds
        with self._place(tenant):
            async with aclosing(self._pieces(begin, tenant)) as pieces:  # type: ignore[type-var]
                try:
                    yield await self._awaited(request, anext(pieces))
                    while True:
                        async with asyncio.timeout_at(ends):
                            piece = await anext(pieces)
                        yield piece
                except StopAsyncIteration:
                    return

    async def all(self, request: Request, begin: Callable[[], Iterator[T]], *, tenant: str | None = None) -> list[T]:
        """All that an iterator gives; it is left where it is when the client goes. Raises what `stream` raises."""

        async def read() -> list[T]:
            async with aclosing(self._pieces(begin, tenant)) as pieces:  # type: ignore[type-var]
                return [piece async for piece in pieces]

        with self._place(tenant):
            return await self._awaited(request, read())

    def close(self) -> None:
        """Let the threads go, after what they do."""
        self._threads.shutdown()

    async def _pieces(self, begin: Callable[[], Iterator[T]], tenant: str | None) -> AsyncIterator[T]:
        async with self._fair.place(tenant), aclosing(self._engine.stream(begin)) as pieces:  # type: ignore[type-var]
            async for piece in pieces:
                yield piece

    @contextmanager
    def _place(self, tenant: str | None) -> Iterator[None]:
        most = self._limits.waiting
        if self.busy >= most:
            raise EngineBusy(f"{most} requests wait for the model or are being answered: try again in a moment")
        if tenant is not None and self._of[tenant] >= max(most // 2, 1):
            raise EngineBusy(f"{self._of[tenant]} requests of this key's namespace wait already: try again in a moment")
        self._of[tenant] += 1
        try:
            yield
        finally:
            self._of[tenant] -= 1

    async def _awaited(self, request: Request, act: Awaitable[T]) -> T:
        """The result of an act, which is cancelled when the client goes or time is over."""
        working, leaving = asyncio.ensure_future(act), asyncio.ensure_future(_gone(request))
        try:
            await asyncio.wait({working, leaving}, timeout=self._limits.seconds, return_when=asyncio.FIRST_COMPLETED)
            if working.done():
                return working.result()
            raise Left if leaving.done() else TimeoutError
        finally:
            working.cancel()
            leaving.cancel()
            await asyncio.gather(working, leaving, return_exceptions=True)


async def _gone(request: Request) -> None:
    """Returns when the client has closed the connection; the request's body is read by then."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
