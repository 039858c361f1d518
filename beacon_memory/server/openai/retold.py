"""Chat completions that were answered before, told again: what that takes stands beside the answer in its session."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from beacon_memory.errors import SessionNotFound
from beacon_memory.models.generation import Answer
from beacon_memory.server.openai.once import Once, asked_by
from beacon_memory.server.openai.points import Said, said_in
from beacon_memory.sessions.memory import BeaconMemory
from beacon_memory.sessions.turn import Usage
from beacon_memory.talk import tools
from beacon_memory.talk.tools import NamedCall, read_said

FIELD = "completion"  # of a message: which request with a key of its own it answers, and how that was answered


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


def is_answered(once: Once) -> Said:
    """Whether a message is the newest of a turn that answered this request."""
    return lambda message: asked_by(message, FIELD).get("key") == once.key


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
