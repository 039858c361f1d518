"""`/v1/responses`: answers that are kept, each of which can be gone on from, and be asked for again."""

from __future__ import annotations

import time
import uuid
from collections.abc import Generator
from contextlib import ExitStack
from typing import Annotated, Any

from fastapi import APIRouter, Header, Query
from fastapi.responses import JSONResponse, Response

from beacon_memory.server.errors import Refused
from beacon_memory.server.openai.chat import whole_behind
from beacon_memory.server.openai.events import Told, again, core_of_response, events, finished
from beacon_memory.server.openai.items import After, Include, Limit, Order, calls_in, check_calls, page
from beacon_memory.server.openai.models import check_model
from beacon_memory.server.openai.once import Once, once_of, running, within
from beacon_memory.server.openai.points import Point, conversation, drop, find, response_id
from beacon_memory.server.openai.wanted import Place, ResponseRequest, Wanted
from beacon_memory.server.visit import STREAMED, Here, Part, StrictRoute, streamed
from beacon_memory.sessions.memory import BeaconMemory
from beacon_memory.sessions.reply import Reply

router = APIRouter(prefix="/v1/responses", tags=["OpenAI"], route_class=StrictRoute)


@router.post("", responses=STREAMED)
async def create(
    asked: ResponseRequest, here: Here, idempotency_key: Annotated[str | None, Header()] = None
) -> Response:
    """An answer, which is kept unless `store` is false.

    It goes on from `previous_response_id`, from whatever response, or in a `conversation`; only what is new is sent.
    With an `Idempotency-Key`, what is kept is answered once.
    """
    check_model(here.served, asked.model)
    asked.check(here.limits)
    wanted = Wanted.of(asked)
    once = once_of(idempotency_key, f"responses {asked.talk or ''}", asked) if asked.kept else None
    with ExitStack() as held:
        held.enter_context(running(here, once))
        name = response_id(uuid.uuid4().hex if once is None else once.key, asked.talk)
        if once is not None and (kept := await here.aside(lambda: _kept(here.memory, name, once))):
            return streamed(again(kept)) if asked.stream else JSONResponse(kept)
        place = await here.aside(lambda: _place(here.memory, wanted, core_of_response(name), once))
        told = asked.told(name, made=int(time.time()))

        def begin() -> Generator[Told, None, None]:
            return whole_behind(lambda: wanted.reply(here.memory, place, told, limits=here.limits), lambda reply: reply)

        if not asked.stream:
            pieces = await here.all(begin)
            reply = pieces[-1]
            assert isinstance(reply, Reply)
            return JSONResponse(finished(told, reply))
        answer = within(held.pop_all(), here.stream(begin))
        first = await anext(answer)  # what can be refused is refused with a status, before the stream begins
        return streamed(events(told, first, answer))


@router.get("/{response}")
async def read(
    response: Part, here: Here, include: Include = None, stream: Annotated[bool | None, Query()] = None
) -> dict[str, Any]:
    """A response as it was answered."""
    if stream:
        raise Refused(400, "a response that is whole is not streamed again: leave stream out", param="stream")
    return (await here.aside(lambda: find(here.memory, response))).response


@router.delete("/{response}")
async def delete(response: Part, here: Here) -> dict[str, Any]:
    """Forget a response. Those that went on from it stay whole; what was said in a conversation stays in it."""
    await here.run(lambda: drop(here.memory, response))
    return {"id": response, "object": "response", "deleted": True}


@router.get("/{response}/input_items")
async def input_items(
    response: Part, here: Here, limit: Limit = 20, order: Order = "desc", after: After = None, include: Include = None
) -> dict[str, Any]:
    """What was said in the request for a response; what went before it belongs to the response before."""
    items = await here.aside(lambda: find(here.memory, response, whole=True).input_items())
    return page(items, limit=limit, order=order, after=after)


def _kept(memory: BeaconMemory, response: str, once: Once) -> dict[str, Any] | None:
    """The response, if a request with this key was answered. Raises Refused where that had another body."""
    try:
        point = find(memory, response)
    except Refused:
        return None
    once.check(point.record.get("asked"))
    return point.response


def _place(memory: BeaconMemory, wanted: Wanted, core: str, once: Once | None) -> Place:
    """Where the response goes, and what it follows. Raises Refused, InputError."""
    asked, unknown = wanted.asked, wanted.unknown
    before: tuple[str, ...] = ()
    of: Point | None = None
    known, stands = set[str](), 0
    if asked.previous_response_id is not None:
        of = find(memory, asked.previous_response_id, param="previous_response_id", whole=bool(unknown))
        before, known, stands = of.system, calls_in(of.messages), of.place + 1
    elif asked.talk is not None:
        before, known, stands = conversation(memory, asked.talk, calls=bool(unknown))
    check_calls(unknown, known, param="input")
    return Place(core, before, once, of, stands)
