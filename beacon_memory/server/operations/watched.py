"""Every request counted, timed, logged and traced, by its route."""

from __future__ import annotations

import logging
import time

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from beacon_memory.server.operations.metrics import Metrics
from beacon_memory.server.operations.traces import Traces

logger = logging.getLogger(__name__)

METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS")
PLAIN = ("/mcp",)  # routes that say no template of theirs
LEFT = 499  # the status of a request whose client left before it was answered
FAILED = 500  # and of one that ended in an error that nobody expected


class Watched:
    """Counts what an app answers. A path may hold names, so its template stands for it, in counts, log and traces."""

    def __init__(self, app: ASGIApp, metrics: Metrics, traces: Traces) -> None:
        self._app, self._metrics, self._traces = app, metrics, traces

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        method = scope["method"] if scope["method"] in METHODS else "other"
        begun, status, first = time.perf_counter(), LEFT, None

        async def counted(message: Message) -> None:
            nonlocal status, first
            if message["type"] == "http.response.start":
                status = message["status"]
            elif first is None:
                first = time.perf_counter() - begun
            await send(message)

        with self._traces.request(method, scope["path"], Headers(scope=scope)) as traced:
            try:
                await self._app(scope, receive, counted)
            except Exception:
                status = FAILED
                raise
            finally:
                seconds, route = time.perf_counter() - begun, _template(scope)
                self._metrics.answered(method, route, status, seconds=seconds, first=first)
                about = {"method": method, "route": route, "status": status, "seconds": round(seconds, 4)}
                logger.info("answered", extra={"about": about})
                traced.update(about)


def _template(scope: Scope) -> str:
    """The template of the route that a request took; one for all that took none."""
    found = getattr(scope.get("route"), "path", None)
    if found is not None:
        return str(found)
    return scope["path"] if scope["path"] in PLAIN else "none"
