"""Messages to ids, append-only: the ids of n + 1 messages start with the ids of n.

A chat template renders a whole conversation, and many rewrite its past (drop old thoughts, merge the system prompt,
stamp the date). Each message is therefore rendered by itself, as the template would show it in the past of a longer
conversation, and tokenized by itself. The system prompt stands apart: it is never part of a session.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from beacon_memory.errors import InputError, TranscriptError
from beacon_memory.models.loading import plain_ids
from beacon_memory.talk.tools import tools_prompt

Message = Mapping[str, Any]

ROLES = ("user", "assistant", "tool")
_SYSTEM = {"role": "system", "content": "S"}
_USER = {"role": "user", "content": "U"}
_ANSWER = {"role": "assistant", "content": "A"}
_LATER = {"role": "user", "content": "L"}
_RESULT = {"role": "tool", "content": "R"}


class Transcript:
    """A tokenizer's chat template, taken apart into pieces that can be joined in the order things are said."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Raises TranscriptError for a template that cannot be rendered message by message."""
        self._tokenizer = tokenizer
        bos = tokenizer.bos_token or ""
        opening: list[int] = tokenizer("")["input_ids"]
        self.start = (
            opening[:1] if tokenizer.bos_token_id is not None and opening[:1] == [tokenizer.bos_token_id] else []
        )
        self._bos = bos if self.start else ""
        self._template = tokenizer.chat_template is not None
        self._front: list[Message] = []  # what stands before a message that is rendered by itself
        self._opening = ""  # its text
        self._repeated: list[int] = []  # the opening token, where the template begins each question with it too
        self._results = True  # whether the template can show what a tool gave
        self.stop: tuple[str, ...] = () if self._template else ("\nUser:",)
        if self._template:
            try:
                alone = self._render([_SYSTEM])
            except TranscriptError:
                alone = None  # no system message alone, or none at all: it is then given as plain text
            if alone is not None and self._render([_SYSTEM, _USER]).startswith(alone):
                self._front, self._opening = [_SYSTEM], alone
            else:
                # What stands before the first question and before no later one.
                talk = [_USER, _ANSWER]
                first, later = self._render([_USER]), self._after(self._render(talk), self._render([*talk, _USER]))
                self._opening = first.removesuffix(later) if first.endswith(later) else ""
            asked = self.turn(_USER)
            self.turn(_ANSWER)
            if self.start == asked[: len(self.start)]:
                self._repeated = self.start
            try:
                self._turn_text(_RESULT)
            except TranscriptError:
                self._results = False

    def system(self, text: str | None, *, tools: Sequence[Mapping[str, Any]] = ()) -> list[int]:
        """The ids of a system prompt; without text, what the template says by default.

        `tools` are told in the template's own words where those are the ones our calls are read in, else in ours.
        """
        if tools:
            own = self._tools_text(text, tools)
            if own is not None:
                return self._ids(own)
            text = "\n\n".join([*([text] if text else []), tools_prompt(tools)])
        if not self._template or (text and not self._front):
            return self._ids(f"{text}\n\n") if text else []
        if text:
            return self._ids(self._render([{"role": "system", "content": text}]))
        # Templates may begin with a prompt of their own when none is given.
        whole, turn = self._render([_USER]), self._turn_text(_USER)
        return self._ids(whole.removesuffix(turn)) if whole.endswith(turn) else []

    def turn(self, message: Message) -> list[int]:
        """The ids of one message, whatever was said before. Raises InputError and TranscriptError."""
        text, content = self._turn_text(check_message(message)), str(message["content"]).strip()
        if not any(token in content for token in self._tokenizer.all_special_tokens):
            return self._ids(text)
        # What was said may spell out a special token; only the template may mean one.
        before, found, after = text.partition(content)
        if not found:
            raise TranscriptError("the chat template changes what was said, which spells out one of its special tokens")
        return [*self._ids(before), *plain_ids(self._tokenizer, content), *self._ids(after)]

    def prompt(self, tail: Sequence[int], **how: Any) -> list[int]:
        """The ids that ask for an answer: those of `pieces`, in order."""
        return [i for _, ids in self.pieces(tail, **how) for i in ids]

    def pieces(
        self,
        tail: Sequence[int],
        *,
        behind: bool,
        opens: bool,
        asked: Sequence[Message] = (),
        system: str | None = None,
        tools: Sequence[Mapping[str, Any]] = (),
    ) -> list[tuple[str, list[int]]]:
        """What asks for an answer, each piece with its name, in order: system prompt, raw tail, what is asked, header.

        The stream's opening token stands first of all ("start"), or nowhere when the prompt stands `behind` slots,
        which have their own; a tail that `opens` the stream begins with one, where it is no template's.
        """
        opening = [*self.start, *self._repeated]
        size = len(self.start) if opens and list(tail[: len(opening)]) == opening else 0
        return [
            ("start", [] if behind else self.start),
            ("system", self.system(system, tools=tools)),
            ("tail", list(tail[size:])),
            ("asked", [i for message in asked for i in self.turn(message)]),
            ("header", self.header()),
        ]

    def header(self) -> list[int]:
        """The ids that ask the model for its answer."""
        if not self._template:
            return self._ids("Assistant:")
        messages = [*self._front, _USER]
        return self._ids(self._after(self._render(messages), self._render(messages, header=True)))

    def _turn_text(self, message: Message) -> str:
        if message["role"] == "tool" and not self._results:
            message = {"role": "user", "content": f"<tool_response>\n{message['content']}\n</tool_response>"}
        if not self._template:
            return f"{str(message['role']).capitalize()}: {message['content']}\n"
        if message["role"] == "user":
            return self._after(self._opening, self._render([*self._front, message]))
        # In the past of a later question: what the template adds to the newest answer alone is left out.
        before, later = [*self._front, _USER], self._turn_text(_LATER)
        text = self._after(self._render(before), self._render([*before, message, _LATER]))
        if not text.endswith(later):
            raise TranscriptError(
                f"the chat template does not show a past {message['role']} message the same way before every question: "
                f"give the model a template that does (tokenizer.chat_template)"
            )
        return text.removesuffix(later)

    def _tools_text(self, text: str | None, tools: Sequence[Mapping[str, Any]]) -> str | None:
        """The system prompt with tools as the template writes it, when that is how our calls are read."""
        if not self._template or not self._front:
            return None
        told = [{"role": "system", "content": text}] if text else []
        try:
            whole, turn = self._render([*told, _USER], tools=tools), self._turn_text(_USER)
        except TranscriptError:
            return None
        return whole.removesuffix(turn) if whole.endswith(turn) and "<tool_call>" in whole else None

    def _render(
        self, messages: Sequence[Message], *, header: bool = False, tools: Sequence[Mapping[str, Any]] = ()
    ) -> str:
        plain = [dict(message) for message in messages]
        try:
            text: str = self._tokenizer.apply_chat_template(
                plain, tools=[dict(tool) for tool in tools] or None, tokenize=False, add_generation_prompt=header
            )
        except Exception as exc:  # templates are programs: jinja errors, and whatever they raise themselves
            roles = ", ".join(str(message["role"]) for message in messages)
            raise TranscriptError(f"the model's chat template cannot render messages of roles {roles}: {exc}") from exc
        return text.removeprefix(self._bos)

    def _after(self, start: str, whole: str) -> str:
        if not whole.startswith(start):
            raise TranscriptError(
                "the chat template rewrites earlier messages when a new one comes: it is not append-only"
            )
        return whole[len(start) :]

    def _ids(self, text: str) -> list[int]:
        ids: list[int] = self._tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        return ids


def check_message(message: Message) -> Message:
    """The message, when it has a role we know and text. Raises InputError."""
    if not isinstance(message, Mapping) or not isinstance(message.get("content"), str):
        raise InputError(f"a message is a mapping with 'role' and text 'content', not {message!r:.120}")
    if message.get("role") == "system":
        raise InputError("a system prompt is not remembered: pass it as system= with each question")
    if message.get("role") not in ROLES:
        raise InputError(f"a message's role is one of {', '.join(ROLES)}, not {message.get('role')!r}")
    if not message["content"].strip():
        raise InputError(f"an empty {message['role']} message: there is nothing to remember")
    return message
