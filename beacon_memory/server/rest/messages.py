"""What was said in a session: read, looked through, added without an answer, edited, deleted."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

from fastapi import APIRouter, Query
from pydantic import Field

from beacon_memory.server.errors import Refused
from beacon_memory.server.rest.shapes import Body, Limit, read_text, told
from beacon_memory.server.visit import Here, Part, StrictRoute, Visit
from beacon_memory.sessions.looking.contents import text_of
from beacon_memory.sessions.session import Session
from beacon_memory.state.head import DOCUMENT

router = APIRouter(prefix="/v1/sessions/{session}", tags=["messages"], route_class=StrictRoute)


class Said(Body):
    """Messages to remember."""

    messages: list[dict[str, Any]] = Field(min_length=1)
    ratio: int | None = None
    budget: int | None = None


class Text(Body):
    """Another text for a message."""

    content: str


class Read(Body):
    """A text to read into a session."""

    name: str = Field(min_length=1, max_length=512)
    text: str
    ratio: int | None = None
    budget: int | None = None


@router.get("/messages")
async def messages(
    session: Part,
    here: Here,
    query: Annotated[str, Query(description="only messages that contain this, in whatever case")] = "",
    after: Annotated[int, Query(ge=-1, description="only messages behind this place")] = -1,
    limit: Limit = 100,
) -> dict[str, Any]:
    """The transcript, oldest first, each message with its place; a document stands in it as a note."""
    everything = await here.aside(lambda: here.memory.session(session).messages())
    later = [
        {"place": place, **message}
        for place, message in enumerate(everything)
        if place > after and query.casefold() in str(message["content"]).casefold()
    ]
    shown = later[:limit]
    return {
        "object": "list",
        "data": shown,
        "has_more": len(later) > limit,
        "last_place": shown[-1]["place"] if shown else None,
    }


@router.post("/messages", status_code=201)
async def add(session: Part, asked: Said, here: Here) -> dict[str, Any]:
    """Remember messages without an answer: all of them, or none when one is bad."""
    return await _changed(session, asked, here, lambda opened: opened.add(asked.messages))


@router.put("/messages")
async def replace(session: Part, asked: Said, here: Here) -> dict[str, Any]:
    """Make these messages all that was said; their common beginning is not read again, and documents stay."""
    return await _changed(session, asked, here, lambda opened: opened.set(asked.messages))


async def _changed(session: str, asked: Said, here: Visit, change: Callable[[Session], None]) -> dict[str, Any]:
    """What a session is once it was changed. Raises Refused for too many messages."""
    if len(asked.messages) > here.limits.messages:
        raise Refused(400, f"at most {here.limits.messages} messages a request", param="messages")

    def act() -> dict[str, Any]:
        opened = here.memory.session(session, ratio=asked.ratio, budget=asked.budget)
        change(opened)
        return told(opened)

    return await here.run(act)


@router.get("/newest")
async def newest(session: Part, here: Here) -> dict[str, Any]:
    """The messages from the user's newest one on, and how many stand before it."""
    before, messages = await here.aside(lambda: here.memory.session(session).newest())
    return {"object": "list", "before": before, "data": messages, "has_more": False}


@router.post("/documents", status_code=201)
async def read(session: Part, asked: Read, here: Here) -> dict[str, Any]:
    """Read a text into the session as a document; deleting it goes by its name, as for a message."""

    def act() -> dict[str, Any]:
        opened = here.memory.session(session, ratio=asked.ratio, budget=asked.budget)
        opened.add_text(asked.text, name=asked.name)
        return told(opened)

    return await here.run(act)


@router.get("/documents/{document}")
async def text(session: Part, document: Part, here: Here) -> dict[str, Any]:
    """The text of a document that the session has read."""
    found = await here.aside(lambda: text_of(here.memory, here.memory.session(session).id, document))
    return read_text(document, found)


@router.patch("/messages/{message}")
async def edit(session: Part, message: Part, asked: Text, here: Here) -> dict[str, Any]:
    """Give a message another text; it keeps its place, role and id. What was folded behind it is folded again."""

    def act() -> dict[str, Any]:
        opened = here.memory.session(session, create=False)
        opened.edit(_which(opened, message), asked.content)
        return told(opened)

    return await here.run(act)


@router.delete("/messages/{message}")
async def delete(session: Part, message: Part, here: Here) -> dict[str, Any]:
    """Forget one message, by its id or place, or one document of the session by its name."""

    def act() -> dict[str, Any]:
        opened = here.memory.session(session, create=False)
        opened.delete(_which(opened, message))
        return told(opened)

    return await here.run(act)


def _which(session: Session, named: str) -> str | int:
    """A message's id, a document's name, or a place. Raises Refused for none, InputError for several."""
    there = session.messages()
    names = [said.get("id") for said in there] + [said["content"] for said in there if said["role"] == DOCUMENT]
    if named in names:
        return named
    if named.isascii() and named.isdecimal() and int(named[:20]) < len(there):
        return int(named)
    raise Refused(404, f"session {session.id!r} has no message {named!r:.80}", code="message_not_found")
