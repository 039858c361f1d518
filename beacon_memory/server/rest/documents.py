"""Documents under a name, as `context_id` puts them in front of an answer: put, listed, replaced, deleted."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Query
from pydantic import Field

from beacon_memory.server.errors import Refused
from beacon_memory.server.rest.sessions import Search
from beacon_memory.server.rest.shapes import After, Body, Limit, laid_open, named, read_text, sources, told
from beacon_memory.server.visit import Here, Part, StrictRoute, Visit
from beacon_memory.sessions.documents import Document, Documents
from beacon_memory.sessions.looking.contents import contents_of, text_of
from beacon_memory.stores.base import check_session

router = APIRouter(prefix="/v1/contexts", tags=["documents"], route_class=StrictRoute)

Key = Annotated[str, Field(min_length=1, max_length=512)]


class Put(Body):
    """A document's text."""

    text: str
    metadata: dict[str, Any] = Field(default_factory=dict)
    ratio: int | None = None  # of what is folded under this name from now on


class Named(Body):
    """A document with its key."""

    key: Key
    text: str
    metadata: dict[str, Any] = Field(default_factory=dict)


class Many(Body):
    """Documents that are put together, all or none."""

    documents: list[Named] = Field(min_length=1, max_length=10_000)
    new: bool = False  # whether a key that is there already is refused
    ratio: int | None = None


@router.get("")
async def listed(
    here: Here, prefix: Annotated[str, Query()] = "", limit: Limit = 100, after: After = None
) -> dict[str, Any]:
    """The names under which documents are kept, sorted."""
    names = await here.aside(here.memory.contexts)
    return named(names, "context", prefix=prefix, limit=limit, after=after)


@router.get("/{name}")
async def info(name: Part, here: Here) -> dict[str, Any]:
    """What the documents of a name cost."""
    return await here.aside(lambda: _told(here, name))


@router.delete("/{name}")
async def forget(name: Part, here: Here) -> dict[str, Any]:
    """Forget all documents of a name."""
    left = await here.aside(lambda: here.memory.context(name, create=False).forget())
    return {"id": name, "object": "context.deleted", "deleted": True, "left_to_do": left}


@router.get("/{name}/documents")
async def documents(name: Part, here: Here) -> dict[str, Any]:
    """The documents of a name, in the order in which they are read, with what is kept beside each."""

    def act() -> list[dict[str, Any]]:
        shelf = _documents(here, name)
        about = shelf.about()
        return [
            {
                "key": one.key,
                "object": "document",
                "hash": one.hash,
                "tokens": one.tokens,
                "slots": one.slots,
                "metadata": about.get(one.key, {}),
            }
            for one in shelf.info()
        ]

    return {"object": "list", "data": await here.aside(act), "has_more": False}


@router.get("/{name}/contents")
async def contents(
    name: Part,
    here: Here,
    after: Annotated[int, Query(ge=-1, description="only what stands behind this place")] = -1,
    limit: Limit = 100,
) -> dict[str, Any]:
    """Each document with its tokens, and how many of them are folded at which ratio."""
    found = await here.run(lambda: contents_of(here.memory, here.memory.context(name).id))
    return laid_open(found, after=after, limit=limit)


@router.get("/{name}/documents/{key}")
async def text(name: Part, key: Part, here: Here) -> dict[str, Any]:
    """The text of a document."""
    return read_text(key, await here.aside(lambda: text_of(here.memory, here.memory.context(name).id, key)))


@router.post("/{name}/documents")
async def put_many(name: Part, asked: Many, here: Here) -> dict[str, Any]:
    """Put documents, all or none: new ones at the end, others in place of those of the same key."""
    return await _put(here, name, asked.documents, ratio=asked.ratio, new=asked.new)


@router.put("/{name}/documents/{key}")
async def put(name: Part, key: Part, asked: Put, here: Here) -> dict[str, Any]:
    """Put one document; an equal one stays as it is."""
    return await _put(here, name, [Named(key=key, text=asked.text, metadata=asked.metadata)], ratio=asked.ratio)


@router.delete("/{name}/documents/{key}")
async def delete(name: Part, key: Part, here: Here) -> dict[str, Any]:
    """Take one document out; nothing is folded."""

    def act() -> dict[str, Any]:
        shelf = _documents(here, name)
        if key not in {one.key for one in shelf.info()}:
            raise Refused(404, f"{name!r} holds no document {key!r:.80}", code="document_not_found")
        shelf.remove(key)
        return {"key": key, "object": "document.deleted", "deleted": True}

    return await here.run(act)


@router.post("/{name}/search")
async def search(name: Part, asked: Search, here: Here) -> dict[str, Any]:
    """The passages of the documents that a question is about, the best first; the model needs a finder."""
    found = await here.run(lambda: here.memory.context(name).search(asked.query, limit=asked.limit))
    return sources(found)


async def _put(here: Visit, name: str, asked: list[Named], *, ratio: int | None, new: bool = False) -> dict[str, Any]:
    def act() -> dict[str, Any]:
        given = [Document(one.key, one.text, one.metadata) for one in asked]
        written = _documents(here, name, ratio=ratio).put(given, new=new)
        return {
            "object": "documents.written",
            "context": name,
            "changed": [one.key for one, changed in zip(asked, written.changed, strict=True) if changed],
            "windows": written.windows,
        }

    return await here.run(act)


def _documents(here: Visit, name: str, *, ratio: int | None = None) -> Documents:
    """The documents of a name. Raises InputError."""
    check_session(name)
    return Documents(here.memory, name, ratio=ratio)


def _told(here: Visit, name: str) -> dict[str, Any]:
    return told(here.memory.context(name), kind="context", name=name)
