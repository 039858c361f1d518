"""Where requests wait: one line of bounded length for the model, and threads for what needs no model.

The event loop never waits for either, so that health checks are answered while a session is folded.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing, contextmanager
from typing import TypeVar

from fastapi import Request

from beacon_memory.errors import EngineBusy
from beacon_memory.server.errors import Left
from beacon_memory.server.limits import Limits
from beacon_memory.serving.engine import BeaconEngine

T = TypeVar("T")
THREADS = 8  # for stores


class Desk:
    """The work of all requests, on the engine's thread or on threads of its own."""

    def __init__(self, engine: BeaconEngine, limits: Limits) -> None:
        self._engine, self._limits = engine, limits
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="beacon-store")
        self.busy = 0  # requests that wait for the model or use it

    async def aside(self, act: Callable[[], T]) -> T:
        """The result of what needs a store and no model."""
        context = contextvars.copy_context()
        return await asyncio.get_running_loop().run_in_executor(self._threads, context.run, act)

    async def run(self, request: Request, act: Callable[[], T]) -> T:
        """The result of what needs the model. Raises EngineBusy, Left, TimeoutError."""
        with self._place():
            return await self._awaited(request, self._engine.run(act))

    async def stream(self, request: Request, begin: Callable[[], Iterator[T]]) -> AsyncIterator[T]:
        """What an iterator gives that needs the model; it is read on the engine's thread.

        Until the first piece is there, it ends with Left when the client goes. After it the response's own reader sees
        that, and closes this. Closing frees the place. Raises EngineBusy, Left, TimeoutError.
        """
        ends = asyncio.get_running_loop().time() + self._limits.seconds
        with self._place():
            async with aclosing(self._engine.stream(begin)) as pieces:  # type: ignore[type-var]
                try:
                    yield await self._awaited(request, anext(pieces))
                    while True:
                        async with asyncio.timeout_at(ends):
                            piece = await anext(pieces)
                        yield piece
                except StopAsyncIteration:
                    return

    async def all(self, request: Request, begin: Callable[[], Iterator[T]]) -> list[T]:
        """All that an iterator gives; it is left where it is when the client goes. Raises what `stream` raises."""

        async def read() -> list[T]:
            async with aclosing(self._engine.stream(begin)) as pieces:  # type: ignore[type-var]
                return [piece async for piece in pieces]

        with self._place():
            return await self._awaited(request, read())

    def close(self) -> None:
        """Let the threads go, after what they do."""
        self._threads.shutdown()

    @contextmanager
    def _place(self) -> Iterator[None]:
        if self.busy >= self._limits.waiting:
            raise EngineBusy(f"{self.busy} requests wait for the model or are being answered: try again in a moment")
        self.busy += 1
        try:
            yield
        finally:
            self.busy -= 1

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
