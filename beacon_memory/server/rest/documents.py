"""Documents under a name, as `context_id` puts them in front of an answer: put, listed, replaced, deleted."""

from __future__ import annotations

from typing import Annotated, Any, Self

from fastapi import APIRouter, Query
from pydantic import Field, model_validator

from beacon_memory.errors import SessionConflict
from beacon_memory.server.errors import Refused
from beacon_memory.server.limits import Ratio
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
    ratio: Ratio | None = None  # of what is folded under this name from now on


class Named(Body):
    """A document with its key."""

    key: Key
    text: str
    metadata: dict[str, Any] = Field(default_factory=dict)
    hash: str = ""  # of its owner's: an equal one means an equal document


class Many(Body):
    """Documents that are put together, all or none."""

    documents: list[Named] = Field(max_length=10_000)
    new: bool = False  # whether a key that is there already is refused
    delete_missing: bool = False  # whether documents that are not given go, but those of `keep`
    keep: list[str] = Field(default_factory=list)
    expected: str | None = None  # the version that the name must be at
    ratio: Ratio | None = None
    budget: int | None = None

    @model_validator(mode="after")
    def _some(self) -> Self:
        if not self.documents and "delete_missing" not in self.model_fields_set:
            raise ValueError("documents: at least one, where nothing is said of those that are missing")
        return self


class Keys(Body):
    """Documents by their keys."""

    keys: list[str] = Field(max_length=10_000)


class Name(Body):
    """Another name."""

    id: str


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
async def documents(
    name: Part, here: Here, texts: Annotated[bool, Query(description="whether their texts are told too")] = False
) -> dict[str, Any]:
    """The documents of a name, in the order in which they are read, with what is kept beside each."""

    def act() -> list[dict[str, Any]]:
        shelf = _documents(here, name)
        about, read = shelf.about(), shelf.texts() if texts else {}
        return [
            {
                "key": one.key,
                "object": "document",
                "hash": one.hash,
                "tokens": one.tokens,
                "slots": one.slots,
                "metadata": about.get(one.key, {}),
                **({"text": read.get(one.key, "")} if texts else {}),
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
    return await _put(here, name, asked)


@router.put("/{name}/documents/{key}")
async def put(name: Part, key: Part, asked: Put, here: Here) -> dict[str, Any]:
    """Put one document; an equal one stays as it is."""
    one = Named(key=key, text=asked.text, metadata=asked.metadata)
    return await _put(here, name, Many(documents=[one], ratio=asked.ratio))


@router.post("/{name}/documents/remove")
async def remove(name: Part, asked: Keys, here: Here) -> dict[str, Any]:
    """Take several documents out, all or none; nothing is folded."""

    def act() -> dict[str, Any]:
        _documents(here, name).remove(*asked.keys)
        return {"object": "documents.deleted", "context": name, "keys": asked.keys}

    return await here.run(act)


@router.post("/{name}/rename")
async def rename(name: Part, asked: Name, here: Here) -> dict[str, Any]:
    """Keep the documents under another name; the old one is gone."""

    def act() -> dict[str, Any]:
        check_session(asked.id)
        _documents(here, name).rename(asked.id)
        return _told(here, asked.id)

    return await here.aside(act)


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


async def _put(here: Visit, name: str, asked: Many) -> dict[str, Any]:
    given = [Document(one.key, one.text, one.metadata, one.hash) for one in asked.documents]
    shelf = _documents(here, name, ratio=asked.ratio, budget=asked.budget)
    how: dict[str, Any] = {"new": asked.new, "delete_missing": asked.delete_missing, "keep": asked.keep}

    def alone() -> dict[str, Any]:
        if asked.expected is not None and asked.expected != str(shelf.version):
            raise SessionConflict(f"{name!r} is not at version {asked.expected} any more: read it again and retry")
        written = shelf.put(given, **how)
        return {
            "object": "documents.written",
            "context": name,
            "changed": [one.key for one, changed in zip(given, written.changed, strict=True) if changed],
            "windows": written.windows,
            "version": str(shelf.version),
        }

    def act() -> dict[str, Any]:
        return alone() if asked.expected is None else shelf.alone(alone)

    return await here.run(act)


def _documents(here: Visit, name: str, *, ratio: int | None = None, budget: int | None = None) -> Documents:
    """The documents of a name. Raises InputError."""
    check_session(name)
    return Documents(here.memory, name, ratio=ratio, budget=budget)


def _told(here: Visit, name: str) -> dict[str, Any]:
    return told(here.memory.context(name), kind="context", name=name)
