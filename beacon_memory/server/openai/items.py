"""Items of the Responses API and of conversations, and the messages that a session keeps of them.

An answer that says something and calls tools is one message and several items, which go together.
"""

from __future__ import annotations

import hashlib
import json
import re
import uuid
from collections import Counter
from collections.abc import Callable, Container, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal, Self, TypeVar

from fastapi import Query

from beacon_memory.server.errors import Refused
from beacon_memory.state.head import DOCUMENT
from beacon_memory.talk.messages import DEEPEST, check_message, nested
from beacon_memory.talk.tools import ANSWER, NamedCall, as_json, read_said

T = TypeVar("T", bound=Hashable)
EMPTY = "(nothing)"  # a tool's result of no words
COMPACTION, REASONING = "compaction", "reasoning"
SYSTEM = ("system", "developer")
ROLES = ("user", "assistant", *SYSTEM)
_CORE = re.compile("(?:beacon-|msg_)?([0-9a-f]{8}-?(?:[0-9a-f]{4}-?){3}[0-9a-f]{12})")

Limit = Annotated[int, Query(ge=1, le=100, description="the most items of this page")]
Order = Annotated[Literal["asc", "desc"], Query(description="oldest first or newest first")]
After = Annotated[str | None, Query(description="the last item of the page before")]
Include = Annotated[list[str] | None, Query(alias="include[]", description="accepted; there is nothing more to tell")]


@dataclass(frozen=True)
class Given:
    """What the items of a request say."""

    system: list[str]
    messages: list[dict[str, Any]]
    folded: str | None = None  # the newest compaction among them, by the response that it is
    front: Sequence[dict[str, Any]] = ()  # the messages in front of that

    @classmethod
    def of(cls, items: str | Sequence[Mapping[str, Any]], *, param: str) -> Self:
        """Raises Refused, InputError."""
        if isinstance(items, str):
            items = [{"role": "user", "content": items}]
        folds = [n for n, item in enumerate(items) if item.get("type") == COMPACTION]
        if not folds:
            return cls(*read_items(items, param=param))
        last, where = folds[-1], f"{param}[{folds[-1]}]"
        folded = items[last].get("encrypted_content")
        if not isinstance(folded, str):
            raise Refused(400, f"{where}: a compaction item has its encrypted_content", param=where)
        told, front = read_items(items[:last], param=param, without=(REASONING, COMPACTION))
        system, messages = read_items(items[last + 1 :], param=param, first=last + 1)
        return cls([*told, *system], messages, folded, front)

    def behind(self, past: Sequence[Mapping[str, Any]], system: Sequence[str]) -> Self:
        """The same behind what its compaction holds: what that says already is not said again."""
        if self.folded is None:
            return self
        held = {(message["role"], message["content"]) for message in past}
        new = [message for message in self.front if (message["role"], message["content"]) not in held]
        told = [text for text in self.system if text not in system]
        return replace(self, system=told, messages=[*new, *self.messages], front=())

    @property
    def unknown(self) -> set[str]:
        """The ids of calls whose results are given, and which are not in the items themselves."""
        return unknown_calls([*self.front, *self.messages])

    @property
    def told(self) -> dict[str, Any]:
        """What is kept of the items, so that they can be told again."""
        return {"given": [message["id"] for message in self.messages], "told": self.system, "folded": self.folded}

    @property
    def note(self) -> Callable[[dict[str, Any]], dict[str, Any]] | None:
        """What is kept beside the session; None for nothing."""
        return self._noted if self.system else None

    def _noted(self, about: dict[str, Any]) -> dict[str, Any]:
        return {**about, "system": [*about.get("system", ()), *self.system]}


def read_items(
    items: Sequence[Mapping[str, Any]], *, param: str, first: int = 0, without: Container[str] = (REASONING,)
) -> tuple[list[str], list[dict[str, Any]]]:
    """What system and developer items say, and the messages that the others make, each with an id of its own.

    What is of a kind in `without` is left out. Raises Refused, which names the item, the first of which has the number
    `first`, and InputError.
    """
    system, messages, calling = list[str](), list[dict[str, Any]](), False
    for n, item in enumerate(items, first):
        where = f"{param}[{n}]"
        kind = item.get("type") or ("message" if "role" in item else None)
        if kind in without:
            continue
        if kind == "function_call":
            if not calling:
                messages.append({"role": "assistant", "content": "", "tool_calls": []})
            messages[-1]["tool_calls"] = [*messages[-1].get("tool_calls", []), _call(item, where)]
            calling = True
            continue
        calling = False
        if kind == "function_call_output":
            output, call = item.get("output"), item.get("call_id")
            if not isinstance(call, str) or not isinstance(output, str | list):
                raise Refused(400, f"{where}: a function_call_output has a call_id and an output", param=where)
            empty = not output or (isinstance(output, str) and not output.strip())
            messages.append({"role": "tool", "tool_call_id": call, "content": EMPTY if empty else output})
            continue
        role = item.get("role")
        if kind != "message" or role not in ROLES:
            what = f"type {kind!r:.80}" if kind != "message" else f"role {role!r:.80}"
            raise Refused(
                400,
                f"{where} is of {what}: messages of user, assistant, system and developer, function_call and "
                "function_call_output are read here",
                param=where,
                code="unsupported_value",
            )
        if role in SYSTEM:
            system.append(check_message({"role": "user", "content": item.get("content")})["content"])
            continue
        messages.append({"role": role, "content": item.get("content")})
        calling = role == "assistant"
    # What an assistant's item without words leaves is nothing.
    told = [m for m in messages if m["role"] != "assistant" or m.get("tool_calls") or _has_text(m)]
    return system, [{**check_message(message), "id": f"msg_{uuid.uuid4().hex}"} for message in told]


def _has_text(message: Mapping[str, Any]) -> bool:
    """Whether an assistant's message says anything. Raises InputError."""
    return bool(check_message({"role": "user", "content": message["content"] or "-"})) and bool(message["content"])


def _call(item: Mapping[str, Any], where: str) -> dict[str, Any]:
    name, call = item.get("name"), item.get("call_id")
    if not isinstance(name, str) or not name or not isinstance(call, str):
        raise Refused(400, f"{where}: a function_call has a name, a call_id and arguments", param=where)
    arguments = item.get("arguments")
    if not isinstance(arguments, str):
        raise Refused(400, f"{where}.arguments is JSON as text", param=f"{where}.arguments")
    return {"id": call, "type": "function", "function": {"name": name, "arguments": arguments}}


def calls_in(messages: Iterable[Mapping[str, Any]]) -> set[str]:
    """The ids of the calls in these messages."""
    return {str(call["id"]) for m in messages for call in m.get("tool_calls") or () if call.get("id")}


def unknown_calls(messages: Sequence[Mapping[str, Any]]) -> set[str]:
    """The ids of calls whose results are in these messages, and which are not in them themselves."""
    answered = {str(m["tool_call_id"]) for m in messages if m["role"] == "tool" and m.get("tool_call_id")}
    return answered - calls_in(messages)


def check_calls(unknown: set[str], known: set[str], *, param: str) -> None:
    """Raises Refused for a result of a call that was not made."""
    if missing := unknown - known:
        said = f"no call {min(missing)!r:.80} is known, whose output is given"
        raise Refused(400, said, param=param, code="call_not_found")


def core_of(message: Mapping[str, Any], equal: int = 0) -> str:
    """What the ids of a message's items have in common: 32 hexadecimal digits of its own id, else of its words and of
    how many `equal` ones stand before it, so that they stay while others go.
    """
    given = message.get("id")
    if isinstance(given, str) and (found := _CORE.fullmatch(given)):
        return found[1].replace("-", "")
    told = json.dumps([given or equal, message["role"], message["content"]])
    return hashlib.sha256(told.encode()).hexdigest()[:32]


def items_of(message: Mapping[str, Any], equal: int = 0) -> list[dict[str, Any]]:
    """The items of a message, before which so many `equal` ones stand; a document has none."""
    core, role = core_of(message, equal), message["role"]
    if role == DOCUMENT:
        return []
    if role == "tool":
        call = str(message.get("tool_call_id") or f"call_{core}")
        about = {"id": f"fco_{core}", "type": "function_call_output", "call_id": call}
        return [{**about, "output": message["content"], "status": "completed"}]
    if role == "user":
        return [said_item(core, message["content"], role="user", kind="input_text")]
    said = read_said(message["content"]) if message.get("tool_calls") else None
    text = message["content"] if said is None else said.text
    named = message.get("tool_calls") or ()
    calls = [
        NamedCall(str(given.get("id") or f"call_{core}_{n}"), call.name, dict(call.arguments))
        for n, (given, call) in enumerate(zip(named, said.calls if said else (), strict=False))
    ]
    return answer_items(core, text, calls)


def answer_items(core: str, text: str, calls: Sequence[NamedCall]) -> list[dict[str, Any]]:
    """The items of an answer: its words, unless it only calls, then its calls."""
    words = [said_item(core, text, role="assistant", kind="output_text")] if text or not calls else []
    return words + [call_item(core, n, call) for n, call in enumerate(calls)]


def said_item(core: str, text: str | None, *, role: str, kind: str, status: str = "completed") -> dict[str, Any]:
    """A message's item; None for one whose words are to come."""
    content = [] if text is None else [text_part(text) if kind == "output_text" else {"type": kind, "text": text}]
    return {"id": f"msg_{core}", "type": "message", "status": status, "role": role, "content": content}


def text_part(text: str) -> dict[str, Any]:
    """The words of an answer as a part of its item."""
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


def call_item(core: str, n: int, call: NamedCall, *, status: str = "completed") -> dict[str, Any]:
    """The item of an answer's n-th call; one that is in progress has no arguments yet."""
    arguments = as_json(call.arguments) if status == "completed" else ""
    about = {"id": f"fc_{core}_{n}", "type": "function_call", "status": status}
    return {**about, "call_id": call.id, "name": call.name, "arguments": arguments}


def compaction_item(response: str) -> dict[str, Any]:
    """The item that stands for all that the response of a compaction remembers."""
    return {"id": f"cmp_{response[5:37]}", "type": COMPACTION, "encrypted_content": response}


def answer_id(core: str) -> str:
    """The id under which a session keeps an answer whose items have these digits."""
    return f"{ANSWER}{uuid.UUID(hex=core)}"


def system_items(texts: Sequence[str]) -> list[dict[str, Any]]:
    """The items of the system prompts that go with a session, in their order."""
    cores = [core_of({"role": "system", "content": text}, equal) for text, equal in numbered(texts)]
    return [said_item(core, text, role="system", kind="input_text") for core, text in zip(cores, texts, strict=True)]


def numbered(values: Iterable[T]) -> Iterator[tuple[T, int]]:
    """Each value, and how many equal ones stand before it.

    >>> list(numbered("aba"))
    [('a', 0), ('b', 0), ('a', 1)]
    """
    before = Counter[T]()
    for value in values:
        yield value, before[value]
        before[value] += 1


def page(items: Sequence[dict[str, Any]], *, limit: int, order: str, after: str | None) -> dict[str, Any]:
    """A page of items, which are given oldest first. Raises Refused for an `after` that is none of them."""
    ordered = list(items) if order == "asc" else list(items)[::-1]
    if after is not None:
        places = [n for n, item in enumerate(ordered) if item["id"] == after]
        if not places:
            raise Refused(404, f"there is no item {after!r:.80} to go on after", code="item_not_found", param="after")
        ordered = ordered[places[0] + 1 :]
    shown = ordered[:limit]
    return {
        "object": "list",
        "data": shown,
        "first_id": shown[0]["id"] if shown else None,
        "last_id": shown[-1]["id"] if shown else None,
        "has_more": len(ordered) > limit,
    }


def check_metadata(metadata: Mapping[str, Any] | None) -> None:
    """Raises Refused unless it is what OpenAI takes: 16 texts of up to 512 characters under keys of up to 64."""
    for key, value in (metadata or {}).items():
        if not isinstance(value, str) or len(value) > 512 or len(key) > 64 or len(metadata or ()) > 16:
            raise Refused(
                400, "metadata has at most 16 keys of up to 64 characters, and texts of up to 512", param="metadata"
            )


def check_depth(value: object, *, param: str) -> None:
    """Raises Refused for what is nested too deep to be kept within a message."""
    if nested(value) > DEEPEST // 2:
        raise Refused(400, f"{param} may be nested {DEEPEST // 2} deep, not more", param=param)
