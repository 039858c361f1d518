"""Sessions: listed, described, forked, rewound, searched, forgotten, and moved between servers as files."""

from __future__ import annotations

import tempfile
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import quote

from fastapi import APIRouter, Query, Request
from fastapi.responses import FileResponse
from pydantic import Field
from starlette.background import BackgroundTask

from beacon_memory.errors import CodecError, InputError
from beacon_memory.server.rest.shapes import After, Body, Limit, laid_open, named, sources, told
from beacon_memory.server.visit import Here, Part, StrictRoute
from beacon_memory.sessions.looking.contents import contents_of

IMPORT = "/v1/sessions/import"  # its bodies may be larger
router = APIRouter(prefix="/v1/sessions", tags=["sessions"], route_class=StrictRoute)


class Fork(Body):
    """A new session that begins where another stands."""

    id: str


class Rewind(Body):
    """How many of a session's first messages stay."""

    messages: int = Field(ge=0)


class Checkout(Body):
    """A branch to go back to."""

    branch: str


class Search(Body):
    """What is looked for."""

    query: str
    limit: int = Field(5, ge=1, le=100)


@router.get("")
async def listed(
    here: Here, prefix: Annotated[str, Query()] = "", limit: Limit = 100, after: After = None
) -> dict[str, Any]:
    """The sessions whose ids begin with `prefix`, sorted."""
    names = await here.aside(here.memory.sessions)
    return named(names, "session", prefix=prefix, limit=limit, after=after)


@router.get("/{session}")
async def info(session: Part, here: Here) -> dict[str, Any]:
    """What a session holds and costs."""
    return await here.aside(lambda: told(here.memory.session(session)))


@router.delete("/{session}")
async def forget(session: Part, here: Here) -> dict[str, Any]:
    """Forget a session, with its branches, and every byte that no other session names."""
    left = await here.aside(lambda: here.memory.session(session, create=False).forget())
    return {"id": session, "object": "session.deleted", "deleted": True, "left_to_do": left}


@router.post("/{session}/fork", status_code=201)
async def fork(session: Part, asked: Fork, here: Here) -> dict[str, Any]:
    """A new session that begins where this one stands."""
    return await here.aside(lambda: told(here.memory.session(session).fork(here.memory.session(asked.id).id)))


@router.post("/{session}/rewind")
async def rewind(session: Part, asked: Rewind, here: Here) -> dict[str, Any]:
    """Go back to the session's first messages, documents counted; what came later is forgotten."""

    def act() -> dict[str, Any]:
        opened = here.memory.session(session, create=False)
        opened.rewind(asked.messages)
        return told(opened)

    return await here.run(act)


@router.get("/{session}/contents")
async def contents(
    session: Part,
    here: Here,
    kind: Annotated[Literal["message", "document"] | None, Query(description="only these")] = None,
    after: Annotated[int, Query(ge=-1, description="only what stands behind this place")] = -1,
    limit: Limit = 100,
) -> dict[str, Any]:
    """Each message and document with its tokens, and how many of them are raw or folded at which ratio."""
    found = await here.run(lambda: contents_of(here.memory, here.memory.session(session).id))
    kept = [one for one in found if kind is None or (one.document is None) == (kind == "message")]
    return laid_open(kept, after=after, limit=limit)


@router.get("/{session}/branches")
async def branches(session: Part, here: Here) -> dict[str, Any]:
    """What the session was before a message list parted from it, oldest first."""
    found = await here.aside(lambda: here.memory.session(session).branches())
    data = [{"id": one.name, "object": "branch", "messages": list(one.messages)} for one in found]
    return {"object": "list", "data": data, "has_more": False}


@router.post("/{session}/checkout")
async def checkout(session: Part, asked: Checkout, here: Here) -> dict[str, Any]:
    """Go back to a branch; where the session stands now becomes one in its place."""

    def act() -> dict[str, Any]:
        opened = here.memory.session(session, create=False)
        opened.checkout(asked.branch)
        return told(opened)

    return await here.aside(act)


@router.post("/{session}/search")
async def search(session: Part, asked: Search, here: Here) -> dict[str, Any]:
    """The passages of what was folded that a question is about, the best first; the model needs a finder."""
    found = await here.run(lambda: here.memory.session(session).search(asked.query, limit=asked.limit))
    return sources(found)


@router.get("/{session}/export", response_class=FileResponse, responses={200: {"content": {"application/zip": {}}}})
async def export(session: Part, here: Here) -> FileResponse:
    """The whole session as a file, for an import here or elsewhere."""
    folder = tempfile.TemporaryDirectory(prefix="beacon-export-")
    path = Path(folder.name) / "session.beacon"
    try:
        await here.aside(lambda: here.memory.session(session).export(path))
    except BaseException:
        folder.cleanup()
        raise
    name = f"{quote(session, safe='')[:100]}.beacon"
    return FileResponse(path, media_type="application/zip", filename=name, background=BackgroundTask(folder.cleanup))


@router.post(
    "/import",
    status_code=201,
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
        }
    },
)
async def import_(
    request: Request, here: Here, id: Annotated[str | None, Query(description="another id for it")] = None
) -> dict[str, Any]:
    """A session from a file that `export` gave, which is the body, under its own id or another."""
    with tempfile.TemporaryDirectory(prefix="beacon-import-") as folder:
        path = Path(folder) / "session.beacon"
        with path.open("wb") as file:
            async for piece in request.stream():
                await here.aside(partial(file.write, piece))

        def act() -> dict[str, Any]:
            try:
                return told(here.memory.import_session(path, name=id))
            except CodecError as exc:
                raise InputError(f"this is no session that can be imported: {exc}") from exc

        return await here.run(act)
