"""The tools over HTTP, at `/mcp` of the server: with the same keys, and for each key its own namespace."""

from __future__ import annotations

import asyncio
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from typing import Any

from fastapi import FastAPI, Request
from mcp.server.streamable_http_manager import StreamableHTTPSessionManager
from starlette.routing import Route
from starlette.types import Message, Receive, Scope, Send

from beacon_memory.server.limits import Limits
from beacon_memory.server.mcp.tools import make_tools
from beacon_memory.server.visit import Visit, visit

PATH = "/mcp"


def mount(app: FastAPI, limits: Limits) -> AbstractAsyncContextManager[None]:
    """Serve the tools at `/mcp` of an app, for as long as what this gives is open.

    No request belongs to a session of the protocol's: any server over the same store answers the next one.
    """
    manager = StreamableHTTPSessionManager(
        make_tools(_visitor), stateless=True, max_request_body_size=limits.body_bytes
    )
    app.router.routes.append(Route(PATH, _Guarded(manager), include_in_schema=False))
    return manager.run()


class _Guarded:
    """Requests with a key that is good, before anything of theirs is read."""

    def __init__(self, manager: StreamableHTTPSessionManager) -> None:
        self._manager = manager

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await visit(Request(scope))  # raises Refused
        await self._manager.handle_request(scope, receive, send)


async def _visitor(request: Any) -> Visit:
    """Whose memory a request is about. That its client leaves is seen by the protocol, which then cancels the tool."""
    return replace(await visit(request), request=staying())


def staying() -> Request:
    """A request whose client never leaves."""

    async def receive() -> Message:
        await asyncio.Event().wait()
        raise AssertionError

    return Request({"type": "http"}, receive)
