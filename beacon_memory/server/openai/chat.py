"""`POST /v1/chat/completions`: whole or in pieces, with tools, in a given form, remembered where a session is named."""

from __future__ import annotations

import json
import logging
import time
import uuid
from collections.abc import AsyncIterator, Callable, Generator, Iterable, Iterator, Mapping
from contextlib import ExitStack, aclosing
from dataclasses import asdict, dataclass
from typing import Annotated, Any, TypeVar

from fastapi import APIRouter, Header
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel

from beacon_memory.errors import SessionNotFound
from beacon_memory.models.generation import Answer, Pieces
from beacon_memory.server.errors import body_of
from beacon_memory.server.openai.asked import ChatRequest, header_of
from beacon_memory.server.openai.models import check_model
from beacon_memory.server.openai.once import Once, asked_by, once_of, running, within
from beacon_memory.server.openai.points import Said, said_in
from beacon_memory.server.visit import STREAMED, Here, StrictRoute, streamed
from beacon_memory.sessions.memory import BeaconMemory
from beacon_memory.sessions.reply import Reply
from beacon_memory.state.info import Usage
from beacon_memory.talk import tools
from beacon_memory.talk.tools import CALL_CLOSE, CALL_OPEN, NamedCall, as_json, read_said

Made = TypeVar("Made", bound=Pieces)
W = TypeVar("W")

logger = logging.getLogger(__name__)
router = APIRouter(prefix="/v1/chat", tags=["OpenAI"], route_class=StrictRoute)

FIELD = "completion"  # of a message: which request with a key of its own it answers, and how that was answered
DONE = b"data: [DONE]\n\n"  # the last event of a stream


class Answered(BaseModel):
    """How a request with a key of its own was answered, as `FIELD` says it."""

    key: str
    asked: str
    about: dict[str, Any]
    text: str
    finish: str
    usage: Usage


@dataclass(frozen=True)
class Retold:
    """An answer that was given before, with what a completion says of it. Its sources are not kept."""

    said: tools.Said
    calls: list[NamedCall]
    finish: str
    usage: Usage
    about: dict[str, Any]
    session: str

    @property
    def physical(self) -> dict[str, Any]:
        """What it took beside logical tokens."""
        cost = {"beacon_tokens": self.usage.slots, "raw_tokens": self.usage.prefill, "ratio": self.usage.ratio}
        return {"session_id": self.session, **cost, "sources": []}


Whole = Reply | Retold
Told = str | Whole  # pieces of an answer, and behind them the whole of it


@router.post("/completions", responses=STREAMED)
async def complete(
    asked: ChatRequest,
    here: Here,
    x_session_id: Annotated[str | None, Header()] = None,
    idempotency_key: Annotated[str | None, Header()] = None,
) -> Response:
    """An answer to a message list; with a session, both are remembered once it is whole.

    The session is named by the header `X-Session-Id`, else by `session_id`, `metadata.session` or `user` in the body;
    without one nothing is remembered. Send the whole list or only what is new. With a session and an `Idempotency-Key`
    it is answered once.
    """
    check_model(here.served, asked.model)
    asked.check(here.limits)
    session = asked.session(x_session_id)
    headers = {} if session is None else {"X-Session-Id": header_of(session)}
    about = {"id": f"chatcmpl-{uuid.uuid4().hex}", "created": int(time.time()), "model": here.served.name}

    once = None if session is None else once_of(idempotency_key, f"chat {session}", asked)
    with ExitStack() as held:
        held.enter_context(running(here, once))
        if session is not None and once is not None:
            found = await here.aside(lambda: retold(here.memory, session, once, calling=asked.calling))
            if found is not None:
                text: Told = found.said.text if asked.stream else found
                return _answered(asked, found.about, text, _pieces(found), headers)

        def begin() -> Generator[Told, None, None]:
            how: dict[str, Any] = {} if once is None else {"once": is_answered(once), "about": kept_beside(once, about)}
            return whole_behind(lambda: asked.reply(here.memory, session, here.limits, **how), lambda reply: reply)

        if not asked.stream:
            pieces = await here.all(begin)
            return _answered(asked, about, pieces[-1], _pieces(), headers)
        told: AsyncIterator[Told] = within(held.pop_all(), here.stream(begin))
        first: Told = await anext(told)  # what can be refused is refused with a status, before the stream begins
        return _answered(asked, about, first, told, headers)


def _answered(
    asked: ChatRequest, about: dict[str, Any], first: Told, told: AsyncIterator[Told], headers: dict[str, str]
) -> Response:
    if not asked.stream:
        return JSONResponse(_completion(about, first), headers=headers)
    usage = bool(asked.stream_options and asked.stream_options.include_usage)
    return streamed(_events(about, first, told, usage=usage), headers)


async def _pieces(*pieces: Told) -> AsyncIterator[Told]:
    for piece in pieces:
        yield piece


def whole_behind(make: Callable[[], Made], whole: Callable[[Made], W]) -> Generator[str | W, None, None]:
    """An answer in pieces, and behind them the whole of it."""
    reply = make()
    try:
        yield from reply
    finally:
        reply.close()
    yield whole(reply)


def _completion(about: dict[str, Any], reply: Told) -> dict[str, Any]:
    assert not isinstance(reply, str)
    calls = _calls(reply)
    content = reply.said.text + broken_calls(reply)
    message: dict[str, Any] = {"role": "assistant", "content": content or (None if calls else ""), "refusal": None}
    if calls:
        message["tool_calls"] = calls
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": reply.finish}
    return {
        **about,
        "object": "chat.completion",
        "choices": [choice],
        "usage": _usage(reply),
        "beacon": reply.physical,
    }


def _events(about: dict[str, Any], first: Told, told: AsyncIterator[Told], *, usage: bool) -> AsyncIterator[bytes]:
    """The answer as server-sent events. One that fails ends in an event with the error."""
    chunk = {**about, "object": "chat.completion.chunk"}

    def event(delta: dict[str, Any], finish: str | None = None, **more: Any) -> bytes:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
        return event_of({**chunk, "choices": [choice], **({"usage": None} if usage else {}), **more})

    def end(reply: Whole) -> Iterator[bytes]:
        if broken := broken_calls(reply):
            yield event({"content": broken})
        for n, call in enumerate(_calls(reply)):
            yield event({"tool_calls": [{"index": n, **call}]})
        yield event({}, reply.finish, beacon=reply.physical)
        if usage:
            yield event_of({**chunk, "choices": [], "usage": _usage(reply)})
        yield DONE

    begun = [event({"role": "assistant", "content": ""})]
    return sent(first, told, begun, say=lambda piece: [event({"content": piece})] if piece else [], end=end)


async def sent(
    first: object,
    answer: AsyncIterator[object],
    begun: Iterable[bytes] = (),
    *,
    say: Callable[[str], Iterable[bytes]],
    end: Callable[[Any], Iterable[bytes]],
    fail: Callable[[dict[str, Any]], bytes] | None = None,
) -> AsyncIterator[bytes]:
    """The events of an answer: those that begin it, of each of its pieces, and of the whole of it; one that fails ends
    in that of its error.
    """
    async with aclosing(answer):  # type: ignore[type-var]
        for event in begun:
            yield event
        try:
            piece = first
            while isinstance(piece, str):
                for event in say(piece):
                    yield event
                piece = await anext(answer)
        except Exception as exc:
            status, body = body_of(exc)
            logger.error("a stream ended with %d %s", status, type(exc).__name__)
            yield (fail or event_of)(body)
            return
        for event in end(piece):
            yield event


def event_of(body: dict[str, Any]) -> bytes:
    """A server-sent event of JSON."""
    return b"data: " + json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace") + b"\n\n"


def _calls(reply: Whole) -> list[dict[str, Any]]:
    return [
        {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": as_json(call.arguments)}}
        for call in reply.calls
    ]


def broken_calls(reply: Whole) -> str:
    """What began as a call and is none, in the words in which the model wrote it."""
    return "".join(f"\n{CALL_OPEN}{body}{CALL_CLOSE}" for body in reply.said.broken)


def _usage(reply: Whole) -> dict[str, Any]:
    usage = reply.usage
    return {
        "prompt_tokens": usage.tokens,
        "completion_tokens": usage.answer,
        "total_tokens": usage.tokens + usage.answer,
        "prompt_tokens_details": {"cached_tokens": usage.read, "cache_write_tokens": usage.folded},
    }


def is_answered(once: Once) -> Said:
    """Whether a message is the newest of a turn that answered this request."""
    return lambda message: asked_by(message, FIELD, Answered).get("key") == once.key


def kept_beside(once: Once, about: dict[str, Any]) -> Callable[[Answer, Usage], dict[str, Any]]:
    """What is kept beside an answer, so that it can be told again."""

    def field(answer: Answer, usage: Usage) -> dict[str, Any]:
        told = {"text": answer.text, "finish": answer.finish, "usage": asdict(usage)}
        return {FIELD: {"key": once.key, "asked": once.asked, "about": about, **told}}

    return field


def retold(memory: BeaconMemory, session: str, once: Once, *, calling: bool) -> Retold | None:
    """What a request with this key was answered in a session or one of its branches; None if it was not.

    Raises Refused where the key was used for another body.
    """
    opened, said = memory.session(session), is_answered(once)
    try:
        message: Mapping[str, Any] | None = memory.view(
            opened.id, lambda head: said_in(memory, head, said), any_model=True
        )[0]
        if message is None:
            parted = (message for branch in opened.branches() for message in branch.messages if said(message))
            message = next(parted, None)
    except SessionNotFound:
        return None
    if message is None:
        return None
    told, named = message[FIELD], message.get("tool_calls") or ()
    once.check(told["asked"])
    found = read_said(told["text"]) if calling else tools.Said(told["text"])
    calls = [NamedCall(a["id"], b.name, dict(b.arguments)) for a, b in zip(named, found.calls, strict=False)]
    finish = "tool_calls" if found.calls else told["finish"]
    return Retold(found, calls, finish, Usage(**told["usage"]), told["about"], session)
