"""`/v1/conversations`: sessions as OpenAI's clients know them, made of items. Any session is one, whoever made it."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Mapping
from typing import Any

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict, Field

from beacon_memory.server.errors import Refused
from beacon_memory.server.openai.items import (
    After,
    Include,
    Limit,
    Order,
    check_calls,
    check_depth,
    check_metadata,
    items_of,
    numbered,
    page,
    read_items,
    system_items,
    unknown_calls,
)
from beacon_memory.server.openai.points import Note, conversation, known, noted, own
from beacon_memory.server.visit import Here, Part, StrictRoute, Visit
from beacon_memory.sessions.memory import BeaconMemory
from beacon_memory.sessions.rewind import Changed
from beacon_memory.state.head import SessionHead
from beacon_memory.state.state import BeaconState

router = APIRouter(prefix="/v1/conversations", tags=["OpenAI"], route_class=StrictRoute)

Items = tuple[list[str], list[dict[str, Any]]]  # what system items say, and the messages of the others


class Body(BaseModel):
    """A body that says nothing unknown."""

    model_config = ConfigDict(extra="forbid", strict=True)


class Begun(Body):
    """A new conversation."""

    items: list[dict[str, Any]] | None = None
    metadata: dict[str, Any] | None = None


class About(Body):
    """What is kept beside a conversation."""

    metadata: dict[str, Any] | None


class More(Body):
    """Items that were said, and need no answer."""

    items: list[dict[str, Any]] = Field(min_length=1)


@router.post("")
async def create(here: Here, asked: Begun | None = None) -> dict[str, Any]:
    """A new conversation, with what was said in it already."""
    asked = asked or Begun()
    check_metadata(asked.metadata)
    given = _read(here, asked.items or [])
    check_calls(unknown_calls(given[1]), set(), param="items")
    name, about = f"conv_{uuid.uuid4().hex}", {"created_at": int(time.time()), "metadata": asked.metadata or {}}

    def act() -> dict[str, Any]:
        _add(here.memory, name, given, lambda noted: {**noted, **about}, create=True)
        return {"id": name, "object": "conversation", **about}

    return await (here.run(act) if given[1] else here.aside(act))


@router.get("/{conversation}")
async def read(conversation: Part, here: Here) -> dict[str, Any]:
    """What is kept beside a conversation."""
    return await here.aside(lambda: _told(here.memory, conversation))


@router.post("/{conversation}")
async def update(conversation: Part, asked: About, here: Here) -> dict[str, Any]:
    """Put other metadata in the place of a conversation's."""
    check_metadata(asked.metadata)

    def act() -> dict[str, Any]:
        _note(here.memory, conversation, lambda about: {**about, "metadata": asked.metadata or {}})
        return _told(here.memory, conversation)

    return await here.aside(act)


@router.delete("/{conversation}")
async def delete(conversation: Part, here: Here) -> dict[str, Any]:
    """Forget a conversation, with its items and responses."""

    def act() -> None:
        with known(conversation):
            here.memory.session(conversation, create=False).forget()

    await here.aside(act)
    return {"id": conversation, "object": "conversation.deleted", "deleted": True}


@router.get("/{conversation}/items")
async def items(
    conversation: Part,
    here: Here,
    limit: Limit = 20,
    order: Order = "desc",
    after: After = None,
    include: Include = None,
) -> dict[str, Any]:
    """What was said. System and developer items stand in front: they go with the conversation, whatever is said."""
    found = await here.aside(lambda: _items(here.memory, conversation))
    return page([item for item, _ in found], limit=limit, order=order, after=after)


@router.post("/{conversation}/items")
async def add(conversation: Part, asked: More, here: Here, include: Include = None) -> dict[str, Any]:
    """Remember items without an answer: all of them, or none when one is bad."""
    given = _read(here, asked.items)
    if not given[0] and not given[1]:
        raise Refused(400, "there is nothing to remember in these items", param="items")
    await here.aside(lambda: _check(here.memory, conversation, given))
    system = await here.run(lambda: _add(here.memory, conversation, given, lambda about: about, create=False))
    told = system_items(system)[len(system) - len(given[0]) :]
    told += [item for message in given[1] for item in items_of(message)]
    return page(told, limit=len(told), order="asc", after=None)


@router.get("/{conversation}/items/{item}")
async def item(conversation: Part, item: Part, here: Here, include: Include = None) -> dict[str, Any]:
    """One item."""
    return (await here.aside(lambda: _find(here.memory, conversation, item)))[0]


@router.delete("/{conversation}/items/{item}")
async def remove(conversation: Part, item: Part, here: Here) -> dict[str, Any]:
    """Forget one item, as if it had never been said. What an answer says and calls goes together, with the results."""

    def act() -> dict[str, Any]:
        _, which = _find(here.memory, conversation, item)
        if which is None:
            _note(here.memory, conversation, lambda about: _without(about, item))
        else:
            here.memory.session(conversation, create=False).delete(which)
        return _told(here.memory, conversation)

    return await here.run(act)


def _read(here: Visit, given: list[dict[str, Any]]) -> Items:
    """Items as a session keeps them. Raises Refused, InputError."""
    if len(given) > here.limits.messages:
        raise Refused(400, f"at most {here.limits.messages} items a request, not {len(given)}", param="items")
    check_depth(given, param="items")
    return read_items(given, param="items")


def _check(memory: BeaconMemory, name: str, given: Items) -> None:
    """Raises Refused for a conversation that is not there, and for results of calls that are not in it."""
    unknown = unknown_calls(given[1])
    check_calls(unknown, conversation(memory, name, calls=bool(unknown))[1], param="items")


def _add(memory: BeaconMemory, name: str, given: Items, note: Note, *, create: bool) -> list[str]:
    """Add to a conversation, and to what is kept beside it, at once; gives what system items say in it then. Raises
    Refused.
    """
    (system, messages), told = given, list[str]()

    def about(before: dict[str, Any]) -> dict[str, Any]:
        after = note(before)
        told[:] = [*after.get("system", ()), *system]
        return {**after, "system": [*told]} if system else after

    with known(name):
        session = memory.session(name, create=create)

        def change(head: SessionHead, state: BeaconState) -> Changed:
            pages: dict[str, bytes] = {}
            if messages:
                head, state, pages = session.extended(head, state, messages)
            head, blob = noted(memory, head, about)
            return head, state, pages | blob

        session.change(change, create=create)
    return told


def _note(memory: BeaconMemory, name: str, note: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """Change what is kept beside a conversation. Raises Refused."""

    def once() -> None:
        head, version = memory.load(name, any_model=True)
        changed, blob = noted(memory, head, note)
        memory.commit(name, changed, blob, expected=version)

    with known(name):
        memory.written(name, once)


def _told(memory: BeaconMemory, name: str) -> dict[str, Any]:
    """A conversation as OpenAI's clients read it; one that was begun otherwise does not know when. Raises Refused."""
    with known(name):
        about = memory.view(name, lambda head: own(memory, head), any_model=True)[0]
    made = {"created_at": about.get("created_at", 0), "metadata": about.get("metadata", {})}
    return {"id": name, "object": "conversation", **made}


def _items(memory: BeaconMemory, name: str) -> list[tuple[dict[str, Any], str | int | None]]:
    """All items of a conversation, oldest first, each with its message's id or place. Raises Refused."""

    def read(head: SessionHead) -> tuple[list[str], list[dict[str, Any]]]:
        return list(own(memory, head).get("system", ())), memory.messages(head)

    with known(name):
        system, messages = memory.view(name, read, any_model=True)[0]
    found: list[tuple[dict[str, Any], str | int | None]] = [(item, None) for item in system_items(system)]
    words = numbered((message["role"], message["content"]) for message in messages)
    for n, (message, (_, equal)) in enumerate(zip(messages, words, strict=True)):
        found += [(item, message.get("id") or n) for item in items_of(message, equal)]
    return found


def _find(memory: BeaconMemory, name: str, item: str) -> tuple[dict[str, Any], str | int | None]:
    """An item by its id, and its message's id or place. Raises Refused."""
    for found, which in _items(memory, name):
        if found["id"] == item:
            return found, which
    raise Refused(404, f"conversation {name!r:.100} has no item {item!r:.80}", code="item_not_found")


def _without(about: Mapping[str, Any], item: str) -> dict[str, Any]:
    """What is kept beside a conversation, less what one system item said."""
    system = about.get("system", ())
    each = zip(system, system_items(system), strict=True)
    return {**about, "system": [text for text, one in each if one["id"] != item]}
