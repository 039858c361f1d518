"""How memory's own interface tells of things: lists with a cursor, sessions, messages, documents."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Annotated, Any

from fastapi import Query
from pydantic import BaseModel, ConfigDict

from beacon_memory.server.errors import Refused
from beacon_memory.sessions.looking.contents import Content
from beacon_memory.sessions.session import Session
from beacon_memory.state.source import Source

Limit = Annotated[int, Query(ge=1, le=1000, description="the most entries of this page")]
After = Annotated[str | None, Query(description="the last entry of the page before")]


class Body(BaseModel):
    """A body that says nothing unknown."""

    model_config = ConfigDict(extra="forbid", strict=True)


def page(entries: Sequence[dict[str, Any]], *, limit: int, after: str | None, by: str = "id") -> dict[str, Any]:
    """A page of a list, from behind the entry `after` on; one that is gone begins where it would stand.

    Entries are sorted by `by`.
    """
    later = [entry for entry in entries if after is None or entry[by] > after]
    shown = later[:limit]
    return {
        "object": "list",
        "data": shown,
        "has_more": len(later) > limit,
        "last_id": shown[-1][by] if shown else None,
    }


def named(names: Sequence[str], kind: str, *, prefix: str, limit: int, after: str | None) -> dict[str, Any]:
    """A page of names that begin with `prefix`, sorted as they are."""
    found = [{"id": name, "object": kind} for name in names if name.startswith(prefix)]
    return page(found, limit=limit, after=after)


def sources(found: Sequence[Source]) -> dict[str, Any]:
    """All passages that were found, as one page."""
    return {"object": "list", "data": [{"object": "source", **one.to_dict()} for one in found], "has_more": False}


def laid_open(found: Sequence[Content], *, after: int, limit: int) -> dict[str, Any]:
    """A page of a session's contents, from behind a place on."""
    later = [one for one in found if one.place > after]
    shown = later[:limit]
    data = [
        {
            "object": "content",
            "place": one.place,
            "document": one.document,
            "tokens": one.tokens,
            "held": [asdict(part) for part in one.held],
        }
        for one in shown
    ]
    last = shown[-1].place if shown else None
    return {"object": "list", "data": data, "has_more": len(later) > limit, "last_place": last}


def read_text(name: str, text: str | None) -> dict[str, Any]:
    """A document with its text. Raises Refused for none."""
    if text is None:
        raise Refused(404, f"there is no document {name!r:.80}, or its text is not kept", code="document_not_found")
    return {"object": "document", "name": name, "text": text}


def told(session: Session, *, kind: str = "session", name: str | None = None) -> dict[str, Any]:
    """What a session holds and costs. Raises SessionNotFound."""
    info = asdict(session.info())
    del info["session"]
    # As text: JSON's readers keep 53 bits of a number.
    return {"id": name or session.id, "object": kind, **info, "version": str(info["version"])}
