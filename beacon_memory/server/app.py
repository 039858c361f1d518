"""The app: routes, errors, health, metrics."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter, Depends, FastAPI, Request, Response
from fastapi.security import HTTPBearer
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from beacon_memory.errors import BeaconError
from beacon_memory.server.desk import Desk
from beacon_memory.server.errors import FAILURES, Refused, answer_errors, shaped, too_large
from beacon_memory.server.keys import Keys
from beacon_memory.server.limits import Limits
from beacon_memory.server.openai import chat, completions, conversations, models, responses
from beacon_memory.server.operations.metrics import Metrics
from beacon_memory.server.operations.traces import Traces
from beacon_memory.server.operations.watched import Watched
from beacon_memory.server.page import files
from beacon_memory.server.rest import documents, messages, sessions
from beacon_memory.server.tenants import MakeElsewhere, Tenants
from beacon_memory.server.visit import Served, namespace_of, served
from beacon_memory.serving.engine import BeaconEngine
from beacon_memory.stores import StateStore
from beacon_memory.version import __version__

if TYPE_CHECKING:
    from opentelemetry.trace import Tracer


def make_app(
    engine: BeaconEngine,
    *,
    name: str | None = None,
    keys: Keys | None = None,
    place: Callable[[str], StateStore] | None = None,
    limits: Limits | None = None,
    tracer: Tracer | None = None,
    elsewhere: MakeElsewhere | None = None,
) -> FastAPI:
    """An app that serves a model, under a name, and its store. Its end closes the store.

    With `keys`, `place` opens the store of a namespace; without, everyone who reaches the app is one tenant. With a
    `tracer` requests are traced. `elsewhere` makes what answers in the model's place (vLLM). Raises ConfigError, and
    what loading the model raises.
    """
    limits, metrics, traces = limits or Limits(), Metrics(), Traces(tracer)
    if elsewhere is not None:
        engine.widen(limits.waiting)
    tenants = Tenants(engine, keys=keys, place=place, metrics=metrics, elsewhere=elsewhere)
    desk = Desk(engine, limits)
    shared = Served(name or engine.name, tenants, desk, limits, int(time.time()), metrics, traces)
    own = tenants.memory(None)  # a model that cannot be loaded, and a store that cannot be opened, are told now
    metrics.watch(desk, own.model.running, tenants.all, most=limits.waiting)

    @asynccontextmanager
    async def life(app: FastAPI) -> AsyncIterator[None]:
        async with AsyncExitStack() as stack:
            if tools is not None:
                await stack.enter_async_context(tools)
            yield
        shared.desk.close()
        shared.tenants.close()

    app = FastAPI(title="beacon-memory", version=__version__, lifespan=life, redirect_slashes=False, responses=FAILURES)
    app.state.served = shared
    app.add_middleware(_Outside, limits=limits)
    app.add_middleware(Watched, metrics=metrics, traces=traces)
    answer_errors(app)
    openai = (models.router, models.tokens, chat.router, completions.router, responses.router, conversations.router)
    for router in (health, files.router):
        app.include_router(router)
    told = [] if keys is None else [Depends(HTTPBearer(auto_error=False))]  # for OpenAPI; `visit` reads the key
    for router in (*openai, sessions.router, messages.router, documents.router):
        app.include_router(router, dependencies=told)
    tools = _tools(app, limits)
    return app


def _tools(app: FastAPI, limits: Limits) -> AbstractAsyncContextManager[None] | None:
    """MCP's tools at `/mcp`, where its package is installed."""
    if find_spec("mcp") is None:
        return None
    from beacon_memory.server.mcp.mounted import mount

    return mount(app, limits)


class _Outside:
    """What is done before any route: paths are matched as they were sent, percent-encoded, since a session's id may
    contain a slash; and a body that is too large is refused, unread where it says so itself.
    """

    def __init__(self, app: ASGIApp, limits: Limits) -> None:
        self._app, self._limits = app, limits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        if raw := scope.get("raw_path"):
            scope["path"] = raw.decode("latin-1")  # in place: what is outside reads which route it was
        most = self._limits.archive_bytes if scope["path"] == sessions.IMPORT else self._limits.body_bytes
        said, read = Headers(scope=scope).get("content-length", ""), 0
        if said.isdecimal() and int(said[:20]) > most:
            await shaped(too_large(most))(scope, receive, send)
            return

        async def counted() -> Message:
            nonlocal read
            message = await receive()
            read += len(message.get("body", b""))
            if read > most:
                raise HTTPException(413, str(too_large(most)))
            return message

        await self._app(scope, counted, send)


health = APIRouter(tags=["health"])
READER = "metrics"  # the namespace whose key reads the metrics, where the server has keys


@health.get("/health")
async def alive() -> dict[str, str]:
    """Whether the process answers; it does so while the model works."""
    return {"status": "ok"}


@health.get("/ready")
async def ready(request: Request) -> Any:
    """Whether the model is loaded, the stores answer, and the line has room."""
    shared = served(request)
    try:
        await shared.desk.aside(shared.tenants.check)
    except BeaconError as exc:
        return shaped(exc)
    return {"status": "ready", "model": shared.name, "waiting": shared.desk.busy}


@health.get("/metrics", responses={200: {"content": {"text/plain": {}}}})
async def metrics(request: Request) -> Response:
    """What Prometheus reads; where there are keys, for those of the namespace `metrics` alone. Raises Refused."""
    shared = served(request)
    if namespace_of(request, shared.tenants) not in (None, READER):
        raise Refused(403, f"metrics are for a key of the namespace {READER}: `beacon-memory keys add {READER}`")
    return Response(shared.metrics.text(), media_type=CONTENT_TYPE_LATEST)
