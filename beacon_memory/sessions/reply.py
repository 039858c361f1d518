"""Answers as frameworks are told of them: one that may call tools, and one to a bare text."""

from __future__ import annotations

import uuid
from collections.abc import Generator, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from beacon_memory.models.generation import Answer, Pieces, StopFilter
from beacon_memory.sessions.prompt import Prompt
from beacon_memory.sessions.turn import Message, Turn, stream_answer
from beacon_memory.state.info import Completion, Usage
from beacon_memory.state.source import Source
from beacon_memory.talk.structured import tools_grammar
from beacon_memory.talk.tools import ANSWER, NamedCall, Said, Tool, read_said, schema_prompt, write_said

if TYPE_CHECKING:
    from beacon_memory.sessions.repository import Repository

CALL = "<tool_call>"


class Reply(Pieces):
    """A turn whose answer is taken apart: text as it comes, up to where a call may begin; when it is whole, the rest.

    It is remembered under `id`, in the words in which the caller will send it again.

    >>> from beacon_memory.testing import scripted_engine
    >>> call = '<tool_call>\\n{"name": "now", "arguments": {}}\\n</tool_call>'
    >>> tool = {"type": "function", "function": {"name": "now"}}
    >>> asked = [{"role": "user", "content": "What time is it?"}]
    >>> reply = Reply(scripted_engine(lambda seen: call).memory, asked, tools=[tool])
    >>> "".join(reply), reply.calls[0].name, reply.finish
    ('', 'now', 'tool_calls')
    """

    def __init__(
        self,
        memory: Repository,
        messages: Sequence[Message],
        *,
        system: str | None = None,
        tools: Sequence[Tool] = (),
        choice: str | Mapping[str, Any] | bool | None = None,
        many: bool | None = None,
        schema: Mapping[str, Any] | None = None,
        id: str | None = None,
        **turn: Any,
    ) -> None:
        """`choice`: "auto", "none", "any" or a tool's name; `many`: whether several may be called at once; `schema`: of
        the JSON that the answer is; `id`: of the answer, which begins with ANSWER. `turn` as `Turn` takes it. Raises
        InputError, ConfigError.
        """
        told = [] if choice == "none" else list(tools)
        answer_id, calling = id or f"{ANSWER}{uuid.uuid4()}", bool(told)
        if schema is not None:
            system = "\n\n".join([*([system] if system else []), schema_prompt(schema)])
        self.id = answer_id
        self._calling = calling
        self._session = turn.get("session")
        self._turn = Turn(
            memory,
            messages,
            system=system,
            tools=told,
            remember=lambda text: _remembered(text, answer_id, calling=calling),
            constraint=tools_grammar(told, choice, schema, many=many),
            **turn,
        )
        # It knows nothing of this object: one that is dropped is closed at once.
        self._pieces = _words(self._turn, calling=calling)

    @property
    def said(self) -> Said:
        """What was said, once it is whole."""
        assert self._turn.answer is not None
        return read_said(self._turn.answer.text) if self._calling else Said(self._turn.answer.text)

    @property
    def calls(self) -> list[NamedCall]:
        """The tools that are called, in order."""
        return _named(self.said, self.id)

    @property
    def finish(self) -> str:
        """Why it ended: "stop", "length" or "tool_calls"."""
        assert self._turn.answer is not None
        return "tool_calls" if self.said.calls else self._turn.answer.finish

    @property
    def usage(self) -> Usage:
        """What it took."""
        assert self._turn.usage is not None
        return self._turn.usage

    @property
    def sources(self) -> tuple[Source, ...]:
        """The passages that were read again for it, the best first."""
        return self._turn.sources

    @property
    def physical(self) -> dict[str, Any]:
        """What it took beside logical tokens, in the words in which frameworks are told of it."""
        return {
            "session_id": None if self._session is None else self._session.id,
            "beacon_tokens": self.usage.slots,
            "raw_tokens": self.usage.prefill,
            "ratio": self.usage.ratio,
            "sources": [source.to_dict() for source in self.sources],
        }

    def close(self) -> None:
        super().close()
        self._turn.close()


class TextReply(Pieces):
    """The answer to a bare prompt, in pieces. When it is whole, `completion` is there."""

    def __init__(self, memory: Repository, prompt: Prompt, **sampling: Any) -> None:
        """`sampling` as for `Session.ask`. Raises ConfigError, PromptTooLong."""
        self._prompt = prompt
        self._stream = stream_answer(memory, prompt, **sampling)
        self._said: list[str] = []
        self._pieces = _noted(self._stream, self._said)

    @property
    def completion(self) -> Completion:
        """The whole answer, once it has been read."""
        assert self._stream.answer is not None
        return completed("".join(self._said), self._stream.answer, self._prompt)

    def close(self) -> None:
        super().close()
        self._stream.close()


def completed(text: str, answer: Answer, prompt: Prompt) -> Completion:
    """An answer to a bare prompt, as it is told."""
    sources = tuple(source.to_dict() for source in prompt.sources)
    return Completion(text, answer.finish, prompt.tokens, answer.tokens, sources)


def _noted(pieces: Iterable[str], said: list[str]) -> Generator[str, None, None]:
    for piece in pieces:
        said.append(piece)
        yield piece


def _words(turn: Turn, *, calling: bool) -> Generator[str, None, None]:
    certain = StopFilter([CALL] if calling else [])
    try:
        for piece in turn:
            if text := certain.feed(piece):
                yield text
    finally:
        turn.close()
    if text := certain.end():
        yield text


def _named(said: Said, answer_id: str) -> list[NamedCall]:
    calls = f"call-{answer_id.removeprefix(ANSWER)}"
    return [NamedCall(f"{calls}-{n}", call.name, dict(call.arguments)) for n, call in enumerate(said.calls)]


def _remembered(text: str, answer_id: str, *, calling: bool) -> dict[str, Any] | None:
    """An answer as the session keeps it: the words that the caller's message will be written in again."""
    said = read_said(text) if calling else Said(text)
    content = write_said(said)
    if not content:
        return None
    found: dict[str, Any] = {"role": "assistant", "content": content, "id": answer_id}
    calls = [{"name": c.name, "args": c.arguments, "id": c.id, "type": "tool_call"} for c in _named(said, answer_id)]
    return found | ({"tool_calls": calls} if calls else {})
