"""What a route is given: who asks, and the memory, threads and limits that this request may use."""

from __future__ import annotations

import json
from collections.abc import AsyncIterable, AsyncIterator, Callable, Coroutine, Iterable, Iterator, Mapping
from contextlib import aclosing
from dataclasses import dataclass, field
from ipaddress import ip_address
from typing import Annotated, Any, TypeVar
from urllib.parse import unquote, urlsplit

from fastapi import Depends, Path, Request, Response
from fastapi.responses import StreamingResponse
from fastapi.routing import APIRoute
from pydantic import AfterValidator

from beacon_memory.server.desk import Desk
from beacon_memory.server.errors import Refused
from beacon_memory.server.limits import Limits
from beacon_memory.server.operations.metrics import Metrics
from beacon_memory.server.operations.traces import Traces, spoken
from beacon_memory.server.tenants import Tenants
from beacon_memory.sessions.memory import BeaconMemory
from beacon_memory.sessions.reply import Reply
from beacon_memory.sessions.turn import Usage
from beacon_memory.talk.messages import whole

T = TypeVar("T")


@dataclass(frozen=True)
class Served:
    """What all requests share."""

    name: str  # under which the model is asked for
    tenants: Tenants
    desk: Desk
    limits: Limits
    made: int  # when the server began, in seconds since 1970
    metrics: Metrics
    traces: Traces = field(default_factory=Traces)
    running: set[tuple[int, str]] = field(default_factory=set)  # requests with a key of their own, by memory


@dataclass(frozen=True)
class Spoken:
    """What an answer took, behind its pieces, where no `Reply` says it."""

    usage: Usage
    finish: str


@dataclass(frozen=True)
class Visit:
    """One request with its tenant's memory."""

    request: Request
    served: Served
    memory: BeaconMemory
    tenant: str | None = None  # the namespace of its key; None where there are no keys

    @property
    def limits(self) -> Limits:
        """The server's limits."""
        return self.served.limits

    async def aside(self, act: Callable[[], T]) -> T:
        """The result of what needs a store and no model."""
        return await self.served.desk.aside(act)

    async def run(self, act: Callable[[], T]) -> T:
        """The result of what may need the model. Raises EngineBusy."""
        return await self.served.desk.run(self.request, act, tenant=self.tenant)

    async def stream(self, begin: Callable[[], Iterator[T]]) -> AsyncIterator[T]:
        """What an iterator gives that needs the model. Raises EngineBusy."""
        pieces = self.served.desk.stream(self.request, begin, tenant=self.tenant)
        with self.served.traces.answer(self.served.name) as traced:
            async with aclosing(pieces):  # type: ignore[type-var]
                async for piece in pieces:
                    self._tell(piece, traced)
                    yield piece

    async def all(self, begin: Callable[[], Iterator[T]]) -> list[T]:
        """The same as a list."""
        with self.served.traces.answer(self.served.name) as traced:
            pieces = await self.served.desk.all(self.request, begin, tenant=self.tenant)
            for piece in pieces:
                self._tell(piece, traced)
        return pieces

    def _tell(self, piece: object, traced: dict[str, Any]) -> None:
        """Count and trace an answer that is whole."""
        if isinstance(piece, Reply | Spoken):
            usage = piece.usage
            self.served.metrics.told(tokens=usage.tokens, held=usage.read, raw=usage.prefill, answer=usage.answer)
            traced.update(spoken(usage, piece.finish))


def served(request: Request) -> Served:
    """What the app of a request shares."""
    found: Served = request.app.state.served
    return found


async def visit(request: Request) -> Visit:
    """The request's tenant. Raises Refused for a key that is none, and for a web page of elsewhere."""
    shared = served(request)
    namespace = namespace_of(request, shared.tenants)
    memory = shared.tenants.opened(namespace)
    if memory is None:  # its store is opened by another thread
        memory = await shared.desk.aside(lambda: shared.tenants.memory(namespace))
    return Visit(request, shared, memory, namespace)


Here = Annotated[Visit, Depends(visit)]


def namespace_of(request: Request, tenants: Tenants) -> str | None:
    """The namespace that a request's key opens; None where the server has no keys. Raises Refused."""
    if tenants.keys is None:
        _check_local(request)
        return None
    scheme, _, secret = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not secret.strip():
        raise Refused(401, "no API key: send Authorization: Bearer sk-beacon-…", code="missing_api_key")
    namespace = tenants.keys.namespace(secret.strip())
    if namespace is None:
        raise Refused(401, "this API key is unknown here, or was revoked", code="invalid_api_key")
    return namespace


def _check_local(request: Request) -> None:
    """Raises Refused where a web page of another place has made the browser ask (also by a name that it gave us)."""
    names = [urlsplit(f"//{request.headers.get('host', '')}").hostname]
    if (origin := request.headers.get("origin")) is not None:
        names.append(urlsplit(origin).hostname)
    for name in names:
        if not is_loopback(name or ""):
            raise Refused(403, "without API keys this server answers this machine alone, by localhost or 127.0.0.1")


def is_loopback(host: str) -> bool:
    """Whether a host's name or address means this machine and no other.

    >>> is_loopback("localhost"), is_loopback("127.0.0.1"), is_loopback("::1"), is_loopback("0.0.0.0")
    (True, True, True, False)
    """
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


class JsonRequest(Request):
    """A request whose body is strict JSON: no NaN and no infinity, which could not be sent back, no half letters."""

    async def json(self) -> Any:
        body = await self.body()
        try:
            found = json.loads(body, parse_constant=_no_number)
            return json.loads(whole(json.dumps(found, ensure_ascii=False))) if b"\\ud" in body.lower() else found
        except (UnicodeDecodeError, RecursionError) as exc:
            raise json.JSONDecodeError(f"{exc}", "", 0) from exc


class StrictRoute(APIRoute):
    """A route whose requests are strict JSON."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def strict(request: Request) -> Response:
            return await handle(JsonRequest(request.scope, request.receive))

        return strict


def _no_number(word: str) -> Any:
    raise json.JSONDecodeError(f"{word} is no JSON", word, 0)


def _unquoted(part: str) -> str:
    try:
        return unquote(part, errors="strict")
    except UnicodeDecodeError as exc:
        raise ValueError("not UTF-8, percent-encoded") from exc


# As OpenAPI describes an answer: whole, or in pieces where `stream` asks for that.
STREAMED: dict[int | str, dict[str, Any]] = {200: {"content": {"application/json": {}, "text/event-stream": {}}}}


def streamed(
    events: AsyncIterable[bytes] | Iterable[bytes], headers: Mapping[str, str] | None = None
) -> StreamingResponse:
    """Server-sent events, each on its way as soon as it is made."""
    at_once = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
    return StreamingResponse(events, media_type="text/event-stream", headers={**(headers or {}), **at_once})


# Routes match the path as it was sent: an id may contain a slash, percent-encoded.
Part = Annotated[str, Path(), AfterValidator(_unquoted)]
