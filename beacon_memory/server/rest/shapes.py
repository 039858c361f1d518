"""How memory's own interface tells of things: lists with a cursor, sessions, messages, documents."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Annotated, Any

from fastapi import Query
from pydantic import BaseModel, ConfigDict

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


def told(session: Session, *, kind: str = "session", name: str | None = None) -> dict[str, Any]:
    """What a session holds and costs. Raises SessionNotFound."""
    info = asdict(session.info())
    del info["session"]
    # As text: JSON's readers keep 53 bits of a number.
    return {"id": name or session.id, "object": kind, **info, "version": str(info["version"])}
