"""A response as it is asked for: every field of OpenAI's is used, harmless and ignored, or refused by name."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from beacon_memory.errors import InputError
from beacon_memory.models.generation import Answer
from beacon_memory.server.errors import Refused
from beacon_memory.server.limits import Limits, Ratio
from beacon_memory.server.openai.asked import StreamOptions, check_neutral, schema_of
from beacon_memory.server.openai.items import Given, answer_id, check_depth, check_metadata
from beacon_memory.server.openai.once import Once, asked_by
from beacon_memory.server.openai.points import PREVIOUS, RECORD, Following, Kept, Point, Record
from beacon_memory.sessions.context import context_sessions
from beacon_memory.sessions.memory import BeaconMemory
from beacon_memory.sessions.reply import Reply
from beacon_memory.sessions.stored import StoredSession
from beacon_memory.sessions.turn import Usage
from beacon_memory.talk.tools import read_said

EXCLUSIVE = "mutually_exclusive_parameters"
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "background": (None, False),
    "top_logprobs": (None, 0),
    "prompt": (None,),
    "moderation": (None,),
}
# What may be asked for beside the answer: the first are of tools that are not here, so there is nothing to tell.
INCLUDED = (
    "file_search_call.results",
    "web_search_call.results",
    "web_search_call.action.sources",
    "code_interpreter_call.outputs",
    "computer_call_output.output.image_url",
    "message.input_image.image_url",
    "reasoning.encrypted_content",
)


class ConversationId(BaseModel):
    """A conversation by its id."""

    model_config = ConfigDict(extra="forbid", strict=True)

    id: str


class TextOptions(BaseModel):
    """The form of an answer."""

    model_config = ConfigDict(extra="forbid", strict=True)

    format: dict[str, Any] | None = None
    verbosity: str | None = None


class Asked(BaseModel):
    """What the bodies of a response and of a compaction have in common."""

    model_config = ConfigDict(extra="forbid", strict=True)

    input: str | list[dict[str, Any]]
    instructions: str | None = None
    previous_response_id: str | None = None
    # Memory's own.
    ratio: Ratio | None = None
    # Accepted and ignored: they change nothing that an answer says.
    service_tier: str | None = None
    prompt_cache_key: str | None = None
    prompt_cache_retention: str | None = None
    prompt_cache_options: dict[str, Any] | None = None

    @field_validator("input", mode="before")
    @classmethod
    def _input(cls, value: Any) -> Any:
        if not isinstance(value, str) and not (isinstance(value, list) and all(isinstance(v, dict) for v in value)):
            raise ValueError("text, or a list of items, which are objects")
        return value

    def check_input(self, limits: Limits) -> None:
        """Raises Refused for more items than this server reads, and for what is nested too deep."""
        check_depth(self.input, param="input")
        if not isinstance(self.input, str) and len(self.input) > limits.messages:
            raise Refused(400, f"at most {limits.messages} items a request, not {len(self.input)}", param="input")

    def previous(self, said: Given) -> tuple[str | None, str]:
        """The response that this one goes on from, if there is one, and the field that names it. Raises Refused."""
        if said.folded is None:
            return self.previous_response_id, PREVIOUS
        for name in (PREVIOUS, "conversation"):
            if getattr(self, name, None) is not None:
                told = f"what a compaction item stands for is gone on from: leave {name} out"
                raise Refused(400, told, param=name, code=EXCLUSIVE)
        return said.folded, "input"


class ResponseRequest(Asked):
    """The body of a response."""

    model: str
    conversation: str | ConversationId | None = None
    store: bool | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    truncation: Literal["auto", "disabled"] | None = None
    max_output_tokens: int | None = Field(None, ge=1)
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    text: TextOptions | None = None
    metadata: dict[str, Any] | None = None
    include: list[str] | None = None
    # Memory's own.
    context_id: str | list[str] | None = None
    recall_tokens: int | None = Field(None, ge=0)
    top_k: int | None = Field(None, ge=0)
    repetition_penalty: float | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    # Accepted where they ask for nothing (NEUTRAL).
    background: bool | None = None
    top_logprobs: int | None = None
    prompt: dict[str, Any] | None = None
    moderation: dict[str, Any] | None = None
    # Accepted and ignored: they change nothing that an answer says. The memory is folded whatever is said of it.
    user: str | None = None
    context_management: list[dict[str, Any]] | None = None
    max_tool_calls: int | None = None
    reasoning: dict[str, Any] | None = None
    safety_identifier: str | None = None

    @field_validator("conversation", mode="before")
    @classmethod
    def _conversation(cls, value: Any) -> Any:
        if isinstance(value, dict) and isinstance(value.get("id"), str) and len(value) == 1:
            return value["id"]
        if value is not None and not isinstance(value, str):
            raise ValueError('the id of a conversation, or {"id": …}')
        return value

    @property
    def talk(self) -> str | None:
        """The conversation's id, or None."""
        return self.conversation.id if isinstance(self.conversation, ConversationId) else self.conversation

    @property
    def kept(self) -> bool:
        """Whether the response is stored."""
        return self.store is not False

    def check(self, limits: Limits) -> None:
        """Raises Refused for what this server does not do, or not as much of."""
        check_neutral(self, NEUTRAL)
        if self.talk is not None and self.previous_response_id is not None:
            raise Refused(
                400,
                "a response goes on in a conversation or from previous_response_id, not both",
                param=PREVIOUS,
                code=EXCLUSIVE,
            )
        for name in self.include or ():
            if name not in INCLUDED:
                raise Refused(400, f"{name!r:.80} cannot be included here", param="include", code="unsupported_value")
        check_metadata(self.metadata)
        self.check_input(limits)
        for name in ("tools", "tool_choice"):
            check_depth(getattr(self, name), param=name)
        check_depth(self.text.format if self.text else None, param="text.format")
        if not self.tools and self.tool_choice not in (None, "none", "auto"):
            raise Refused(400, "tool_choice is for a request with tools", param="tool_choice")
        if (asked := self.max_output_tokens) is not None and asked > limits.answer_tokens:
            raise Refused(
                400, f"an answer has at most {limits.answer_tokens} tokens here, not {asked}", param="max_output_tokens"
            )

    def told(self, response: str, *, made: int) -> dict[str, Any]:
        """The response before there is an answer."""
        form = (self.text and self.text.format) or {"type": "text"}
        return {
            "id": response,
            "object": "response",
            "created_at": made,
            "status": "in_progress",
            "background": False,
            "completed_at": None,
            "conversation": None if self.talk is None else {"id": self.talk},
            "error": None,
            "incomplete_details": None,
            "instructions": self.instructions,
            "max_output_tokens": self.max_output_tokens,
            "max_tool_calls": self.max_tool_calls,
            "metadata": self.metadata or {},
            "model": self.model,
            "output": [],
            "parallel_tool_calls": self.parallel_tool_calls is not False,
            "previous_response_id": self.previous_response_id,
            "prompt_cache_key": self.prompt_cache_key,
            "reasoning": {"effort": None, "summary": None},
            "safety_identifier": self.safety_identifier,
            "service_tier": "default",
            "store": self.kept,
            "temperature": self.temperature or 0.0,
            "text": {"format": form, "verbosity": "medium"},
            "tool_choice": self.tool_choice or "auto",
            "tools": self.tools or [],
            "top_logprobs": 0,
            "top_p": self.top_p or 1.0,
            "truncation": self.truncation or "disabled",
            "usage": None,
            "user": self.user,
        }


@dataclass(frozen=True)
class Place:
    """What stands before a response, and where it goes."""

    core: str  # what its ids have in common
    before: tuple[str, ...] = ()  # what system items said
    once: Once | None = None  # if it was asked for with a key of its own
    of: Point | None = None  # the response that it follows
    stands: int = 0  # how many messages its conversation, or the session of the response before, has up to there


@dataclass(frozen=True)
class Wanted:
    """A response that can be begun."""

    asked: ResponseRequest
    said: Given

    @classmethod
    def of(cls, asked: ResponseRequest) -> Wanted:
        """The same, with its input read. Raises Refused, InputError."""
        said = Given.of(asked.input, param="input")
        if said.system and not (said.messages or said.folded):  # a system prompt alone is what is asked
            said = Given.of("\n\n".join(said.system), param="input")
        return cls(asked, said)

    def reply(self, memory: BeaconMemory, place: Place, told: dict[str, Any], *, limits: Limits) -> Reply:
        """The answer, not begun. Raises InputError, ConfigError."""
        asked = self.asked
        tools, choice = _tools(asked)
        longest = asked.max_output_tokens or limits.usual_tokens(memory.positions)
        names = ("temperature", "top_p", "top_k", "seed", "stop", "repetition_penalty", "recall_tokens")
        given = {name: value for name in names if (value := getattr(asked, name)) is not None}
        system = [*([asked.instructions] if asked.instructions else []), *place.before, *self.said.system]
        session = self._session(memory, place, told["id"])
        if not asked.kept and session is not None:
            given["behind"] = place.stands

        def about(answer: Answer, usage: Usage) -> dict[str, Any]:
            chain = session.resident if isinstance(session, Following) else None
            ended = closed(told, finish=_finish(answer, calling=bool(tools)), usage=usage)
            told["completed_at"] = ended["completed_at"]  # the same now and whenever it is asked for again
            key = {} if place.once is None else {"asked": place.once.asked}
            return {RECORD: {**ended, **key, **self.said.told, "chain": chain}}

        return Reply(
            memory,
            self.said.messages,
            system="\n\n".join(system) or None,
            tools=tools,
            choice=choice,
            many=asked.parallel_tool_calls,
            schema=schema_of(_form(asked.text)),
            id=answer_id(place.core),
            session=session,
            history="append",
            raw=1,  # what is kept unless someone says otherwise is not read coarser than what is not
            contexts=context_sessions(memory, asked.context_id),
            max_new_tokens=longest,
            about=about,
            **given,
        )

    def _session(self, memory: BeaconMemory, place: Place, response: str) -> StoredSession | None:
        """Where the response goes, or, if it is not kept, what it is behind."""
        asked, note = self.asked, self.said.note
        if asked.talk is not None:
            memory.session(asked.talk)  # raises InputError for what names no session
            said = (
                None if place.once is None else lambda message: asked_by(message, RECORD, Record).get("id") == response
            )
            return Kept(memory, asked.talk, note=note, once=said, ratio=asked.ratio, create=False)
        if not asked.kept and place.of is None:
            return None
        return Following(memory, f"resp_{place.core}", of=place.of, note=note, ratio=asked.ratio)


def closed(told: Mapping[str, Any], *, finish: str, usage: Usage) -> dict[str, Any]:
    """A response whose answer is whole, but for its output."""
    cut = finish == "length"
    return {
        **{name: value for name, value in told.items() if name != "output"},
        "status": "incomplete" if cut else "completed",
        "incomplete_details": {"reason": "max_output_tokens"} if cut else None,
        "completed_at": None if cut else told["completed_at"] or int(time.time()),
        "usage": usage_of(usage),
    }


def usage_of(usage: Usage) -> dict[str, Any]:
    """What a turn took, in OpenAI's words: what memory held already is cached, what it folded is written."""
    return {
        "input_tokens": usage.tokens,
        "input_tokens_details": {"cached_tokens": usage.read, "cache_write_tokens": usage.folded},
        "output_tokens": usage.answer,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": usage.tokens + usage.answer,
    }


def _finish(answer: Answer, *, calling: bool) -> str:
    return "tool_calls" if calling and read_said(answer.text).calls else answer.finish


def _form(text: TextOptions | None) -> dict[str, Any] | None:
    """The `response_format` that says the same as `text.format`. Raises InputError."""
    form = text and text.format
    if not form or form.get("type") != "json_schema":
        return form or None
    if not isinstance(form.get("schema"), Mapping):
        raise InputError("text.format of type json_schema has a name and a schema")
    return {"type": "json_schema", "json_schema": {"schema": form["schema"]}}


def _tools(asked: ResponseRequest) -> tuple[list[dict[str, Any]], Any]:
    """The functions that may be called, and the choice among them. Raises Refused."""
    tools = list[dict[str, Any]]()
    for n, tool in enumerate(asked.tools or ()):
        if tool.get("type") != "function":
            said = f"tools[{n}] is of type {tool.get('type')!r:.80}: functions can be called here, and nothing else"
            raise Refused(400, said, param=f"tools[{n}].type", code="unsupported_value")
        about = {name: tool[name] for name in ("name", "description", "parameters") if tool.get(name) is not None}
        tools.append({"type": "function", "function": about})
    choice: Any = asked.tool_choice
    if isinstance(choice, Mapping) and choice.get("type") == "allowed_tools":
        allowed = choice.get("tools")
        names = [t.get("name") for t in allowed if isinstance(t, Mapping)] if isinstance(allowed, list) else []
        tools = [tool for tool in tools if tool["function"].get("name") in names]
        choice = choice.get("mode", "auto")
        if not tools or choice not in ("auto", "required"):
            raise Refused(400, "allowed_tools names tools of this request, and a mode", param="tool_choice")
    if isinstance(choice, Mapping) and not isinstance(choice.get("name"), str):
        raise Refused(400, "tool_choice is auto, none, required, or a function by its name", param="tool_choice")
    return tools, choice
