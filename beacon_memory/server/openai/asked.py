"""A chat completion as it is asked for: every field of OpenAI's is used, harmless and ignored, or refused by name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import quote, unquote_to_bytes

from pydantic import BaseModel, ConfigDict, Field

from beacon_memory.errors import InputError
from beacon_memory.server.errors import Refused
from beacon_memory.server.limits import Limits, Ratio
from beacon_memory.server.openai.points import Kept, Said
from beacon_memory.sessions.context import in_front
from beacon_memory.sessions.memory import BeaconMemory
from beacon_memory.sessions.reply import Reply
from beacon_memory.sessions.stored import check_talk
from beacon_memory.sessions.turn import About
from beacon_memory.talk.history import History
from beacon_memory.talk.messages import read_message

# Fields that are accepted where they ask for nothing: the values that do.
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "n": (None, 1),
    "logprobs": (None, False),
    "top_logprobs": (None, 0),
    "frequency_penalty": (None, 0),
    "presence_penalty": (None, 0),
    "logit_bias": (None, {}),
    "modalities": (None, ["text"]),
    "audio": (None,),
    "prediction": (None,),
    "web_search_options": (None,),
    "functions": (None, []),
    "function_call": (None, "none", "auto"),
}
SYSTEM = ("system", "developer")
_EMPTY = "(nothing)"  # a tool's result of no words


class StreamOptions(BaseModel):
    """What a stream tells beside the answer."""

    model_config = ConfigDict(extra="forbid", strict=True)

    include_usage: bool | None = None
    include_obfuscation: bool | None = None


class ChatRequest(BaseModel):
    """The body of a chat completion."""

    model_config = ConfigDict(extra="forbid", strict=True)

    model: str
    messages: list[dict[str, Any]]
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: int | None = Field(None, ge=0)
    repetition_penalty: float | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    response_format: dict[str, Any] | None = None
    metadata: dict[str, Any] | None = None
    user: str | None = None
    # Memory's own.
    session_id: str | None = None
    context_id: str | list[str] | None = None
    history: History | None = None
    ratio: Ratio | None = None
    budget: int | None = None
    recall_tokens: int | None = Field(None, ge=0)
    texts: list[str] | None = None
    keep: int | None = Field(None, ge=0)
    behind: int | None = Field(None, ge=0)
    close: int | None = Field(None, ge=0)
    answer_id: str | None = Field(None, pattern=r"^beacon-[A-Za-z0-9-]{1,64}$")
    # Accepted where they ask for nothing (NEUTRAL).
    n: int | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    logit_bias: dict[str, Any] | None = None
    modalities: list[str] | None = None
    audio: dict[str, Any] | None = None
    prediction: dict[str, Any] | None = None
    web_search_options: dict[str, Any] | None = None
    functions: list[dict[str, Any]] | None = None
    function_call: str | dict[str, Any] | None = None
    # Accepted and ignored: they change nothing that an answer says.
    store: bool | None = None
    service_tier: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    prompt_cache_retention: str | None = None
    prompt_cache_options: dict[str, Any] | None = None
    reasoning_effort: str | None = None
    verbosity: str | None = None

    def session(self, header: str | None) -> str | None:
        """The session's id: the header's, else `session_id`, else that of `metadata`, else `user`."""
        about = self.metadata or {}
        named = (header and named_in(header), self.session_id, about.get("session"), about.get("session_id"), self.user)
        found = next((name for name in named if name not in (None, "")), None)
        if found is not None and not isinstance(found, str):
            raise Refused(400, "a session's id is text", param="metadata")
        return found

    def check(self, limits: Limits) -> None:
        """Raises Refused for what this server does not do, or not as much of."""
        check_neutral(self, NEUTRAL)
        if not self.tools and self.tool_choice not in (None, "none", "auto"):
            raise Refused(400, "tool_choice is for a request with tools", param="tool_choice")
        if not self.messages and self.session_id is None:
            raise Refused(400, "there is no message to answer", param="messages")
        if len(self.messages) > limits.messages:
            raise Refused(
                400, f"at most {limits.messages} messages a request, not {len(self.messages)}", param="messages"
            )
        if (asked := self._longest) is not None and asked > limits.answer_tokens:
            raise Refused(
                400, f"an answer has at most {limits.answer_tokens} tokens here, not {asked}", param="max_tokens"
            )

    @property
    def _longest(self) -> int | None:
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens

    @property
    def _folding(self) -> dict[str, Any]:
        return {"ratio": self.ratio, "budget": self.budget}

    @property
    def calling(self) -> bool:
        """Whether tools may be called."""
        return bool(self.tools) and self.tool_choice != "none"

    def reply(
        self,
        memory: BeaconMemory,
        session: str | None,
        limits: Limits,
        *,
        once: Said | None = None,
        about: About | None = None,
    ) -> Reply:
        """The answer, not begun. With `once` and `about` it is written once, as `Kept` and `Turn` say. Raises
        InputError, ConfigError.
        """
        system, plain = read_list(self.messages)
        longest = self._longest or limits.usual_tokens(memory.positions)
        names = ("temperature", "top_p", "top_k", "seed", "stop", "repetition_penalty", "recall_tokens")
        given = {name: value for name in names if (value := getattr(self, name)) is not None}
        return Reply(
            memory,
            plain,
            system=system,
            tools=self.tools or (),
            choice=self.tool_choice,
            many=self.parallel_tool_calls,
            schema=schema_of(self.response_format),
            id=self.answer_id,
            session=None if session is None else Kept(memory, check_talk(session), once=once, **self._folding),
            about=about,
            history=self.history or "auto",
            keep=self.keep,
            behind=self.behind,
            close=self.close or 0,
            contexts=in_front(memory, self.context_id, self.texts or (), ratio=self.ratio),
            max_new_tokens=longest,
            **given,
        )


def header_of(session: str) -> str:
    """A session's id as a header says it: percent-encoded, since a header has few letters and no space at its ends.

    >>> header_of(" ada/é"), named_in(header_of(" ada/é"))
    ('%20ada/%C3%A9', ' ada/é')
    """
    return quote(session, safe="!#$&'()*+,/:;=?@[]~")


def named_in(header: str) -> str:
    """The session that a header's bytes, each of which is a letter here, name: as `header_of` says it, or bare, in
    UTF-8 or Latin-1.
    """
    name = unquote_to_bytes(header.encode("latin-1"))
    try:
        return name.decode()
    except UnicodeDecodeError:
        return name.decode("latin-1")


def check_neutral(asked: BaseModel, neutral: Mapping[str, tuple[Any, ...]]) -> None:
    """Raises Refused for a field that asks for something, of those that may only ask for nothing."""
    for name, harmless in neutral.items():
        if (value := getattr(asked, name)) not in harmless:
            said = f"{name}={value!r:.80} is not supported here: leave it out"
            raise Refused(400, said, param=name, code="unsupported_value")


def read_list(messages: Sequence[Mapping[str, Any]]) -> tuple[str | None, list[dict[str, Any]]]:
    """The system prompt, wherever its parts stand, and the other messages. A system prompt alone is what is asked.

    Raises InputError.
    """
    system, plain = list[str](), list[dict[str, Any]]()
    for given in messages:
        message = {name: value for name, value in given.items() if value is not None}
        role = message.get("role")
        if role in SYSTEM:
            system += _words(message)
            continue
        if role == "function":
            raise InputError("a message's role is system, developer, user, assistant or tool: send functions as tools")
        if role == "tool" and not _words(message):
            message["content"] = _EMPTY
        plain.append(message)
    told = "\n\n".join(system) or None
    return (told, plain) if plain or told is None else (None, [{"role": "user", "content": told}])


def _words(message: Mapping[str, Any]) -> list[str]:
    """A message's text, if there is any. Raises InputError."""
    content = message.get("content")
    if content is None or content == [] or (isinstance(content, str) and not content.strip()):
        return []
    found = read_message({"role": "user", "content": content})
    return [] if found is None else [str(found["content"])]


def schema_of(form: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """The JSON schema of a `response_format`; None for free text. Raises InputError."""
    kind = None if form is None else form.get("type")
    if form is None or kind == "text":
        return None
    if kind == "json_object":
        return {"type": "object"}
    told = form.get("json_schema")
    if kind != "json_schema" or not isinstance(told, Mapping):
        raise InputError("response_format is of type text, json_object, or json_schema with a json_schema of its own")
    schema = told.get("schema")
    if not isinstance(schema, Mapping | None):
        raise InputError(f"response_format: a JSON schema is an object, not {schema!r:.80}")
    return dict(schema or {"type": "object"})
