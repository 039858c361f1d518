"""`/v1/responses`: answers that are kept, each of which can be gone on from, and be asked for again."""

from __future__ import annotations

import time
import uuid
from collections.abc import Generator
from contextlib import ExitStack
from dataclasses import replace
from typing import Annotated, Any

from fastapi import APIRouter, Header, Query
from fastapi.responses import JSONResponse, Response
from pydantic import Field, field_validator

from beacon_memory.errors import SessionConflict
from beacon_memory.server.errors import Refused
from beacon_memory.server.openai.chat import whole_behind
from beacon_memory.server.openai.events import Told, again, core_of_response, events, finished
from beacon_memory.server.openai.items import (
    After,
    Given,
    Include,
    Limit,
    Order,
    calls_in,
    check_calls,
    compaction_item,
    page,
)
from beacon_memory.server.openai.models import check_model
from beacon_memory.server.openai.once import Once, once_of, running, within
from beacon_memory.server.openai.points import (
    COMPACTED,
    PREVIOUS,
    RECORD,
    Following,
    Point,
    bare,
    conversation,
    drop,
    find,
    response_id,
)
from beacon_memory.server.openai.wanted import Asked, Place, ResponseRequest, Wanted, usage_of
from beacon_memory.server.visit import STREAMED, Here, Part, StrictRoute, streamed
from beacon_memory.sessions.memory import BeaconMemory
from beacon_memory.sessions.reply import Reply
from beacon_memory.sessions.rewind import Changed
from beacon_memory.state.head import SessionHead
from beacon_memory.state.info import Usage
from beacon_memory.state.state import BeaconState

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
        wanted, place = await here.aside(lambda: _place(here.memory, wanted, core_of_response(name), once))
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


class CompactRequest(Asked):
    """The body of a compaction."""

    model: str | None
    input: str | list[dict[str, Any]] = Field(default_factory=list)
    # Accepted and ignored: there are no images.
    image: dict[str, Any] | None = None

    @field_validator("input", mode="before")
    @classmethod
    def _none(cls, value: Any) -> Any:
        return [] if value is None else value


@router.post("/compact")
async def compact(asked: CompactRequest, here: Here) -> dict[str, Any]:
    """Fold all that was said up to here, to its end: an item that stands for it.

    That item, in front of what is new, is the input of the next response; so it is if `previous_response_id` says the
    id of this. It is kept until that is deleted.
    """
    if asked.model is not None:
        check_model(here.served, asked.model)
    asked.check_input(here.limits)
    said = Given.of(asked.input, param="input")
    if not (said.messages or said.front or asked.previous(said)[0]):
        raise Refused(400, "there is nothing to fold: give input or previous_response_id", param="input")
    return await here.run(lambda: _compacted(here.memory, asked, said))


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


def _place(memory: BeaconMemory, wanted: Wanted, core: str, once: Once | None) -> tuple[Wanted, Place]:
    """Where the response goes, what it follows, and what it says behind that. Raises Refused, InputError."""
    asked, talk = wanted.asked, wanted.asked.talk
    of, said = _behind(memory, asked, wanted.said, checked=talk is None)
    before, stands = ((), 0) if of is None else (of.system, of.place + 1)
    if talk is not None:
        before, known, stands = conversation(memory, talk, calls=bool(said.unknown))
        check_calls(said.unknown, known, param="input")
    if not said.messages:
        raise Refused(400, "there is nothing to answer: say something in input", param="input")
    return Wanted(asked, said), Place(core, before, once, of, stands)


def _behind(memory: BeaconMemory, asked: Asked, said: Given, *, checked: bool = True) -> tuple[Point | None, Given]:
    """What is gone on from, and what is said behind that; `checked`: all its calls are known. Raises Refused."""
    previous, param = asked.previous(said)
    of = None if previous is None else find(memory, previous, param=param, whole=bool(said.unknown or said.front))
    if of is not None:
        said = said.behind(of.messages, of.system)
    if checked:
        check_calls(said.unknown, set() if of is None else calls_in(of.messages), param="input")
    return of, said


def _compacted(memory: BeaconMemory, asked: CompactRequest, said: Given) -> dict[str, Any]:
    """Fold to its end what was said up to here, and keep it as a response of its own. Raises Refused, InputError."""
    of, said = _behind(memory, asked, said)
    session = Following(memory, f"resp_{uuid.uuid4().hex}", of=of, note=said.note, ratio=asked.ratio)
    told: dict[str, Any] = {"id": session.id, "object": COMPACTED, "created_at": int(time.time())}

    def change(head: SessionHead, state: BeaconState) -> Changed:
        past = [] if of is None else find(memory, str(of.record["id"]), param=PREVIOUS, whole=True).messages
        if len(past) != head.messages:
            raise SessionConflict(f"what {session.id!r} goes on from is being changed: try again")
        changed, after, _ = session.extended(head, state, said.messages, close=True)
        held, whole = (sum(len(segment.ids) for segment in one.segments) for one in (state, after))
        told["usage"] = usage_of(
            Usage(whole, held, whole - held, answer=0, slots=after.slots, prefill=0, ratio=head.ratio)
        )
        *before, last = [*map(bare, past), *said.messages]
        record = {**told, **said.told, "chain": session.resident}
        changed, pages = replace(changed, pages=(), recent=()).with_messages([*before, {**last, RECORD: record}])
        return changed, after, pages

    session.change(change)
    return {**told, "output": [compaction_item(session.id)]}
