"""Messages to ids, append-only: the ids of n + 1 messages start with the ids of n.

A chat template renders a whole conversation, and many rewrite its past (drop old thoughts, merge the system prompt,
stamp the date). Each message is therefore rendered by itself, as the template would show it in the past of a longer
conversation, and tokenized by itself. The system prompt stands apart: it is never part of a session. Where the pieces
differ from the whole is written in docs/templates.md.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from beacon_memory.errors import TranscriptError
from beacon_memory.models.encoding import Part, encoder
from beacon_memory.talk.frames import Frames
from beacon_memory.talk.messages import Message, check_message, ends_thought, read_message, read_messages, spoken, whole
from beacon_memory.talk.template import Template, mark
from beacon_memory.talk.tools import tools_prompt

Tools = Sequence[Mapping[str, Any]]


class Transcript:
    """A tokenizer's chat template, taken apart into pieces that can be joined in the order things are said."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Any template will do that can render a question. Raises TranscriptError."""
        self._encoder = encoder(tokenizer)
        template = Template(tokenizer)
        bos: int | None = tokenizer.bos_token_id
        opening: list[int] = tokenizer("")["input_ids"]
        self.start = opening[:1] if bos is not None and opening[:1] == [bos] else []
        if bos is not None and _opens_once(template):
            template.opens(str(tokenizer.bos_token))
        self._frames = Frames(template, self._encoder)
        # Whether an answer begins within a thought.
        self._thinks = self._frames.header.rstrip().endswith(("<think>", "<thinking>", "[THINK]"))
        asked = self.turn({"role": "user", "content": "U"})
        self._repeated: list[int] = []  # the opening token, where the template begins each question with it too
        if bos is not None and asked[:1] == [bos]:
            self._repeated = self.start
        elif template.opening:
            assert bos is not None
            self.start = [bos]  # the template's, where the tokenizer adds none
        # The special tokens that the template begins messages with.
        firsts = {ids[0] for role in ("user", "assistant") if (ids := self.turn({"role": role, "content": "A"}))}
        self.openings = frozenset(firsts & set(tokenizer.all_special_ids))
        self.stop: tuple[str, ...] = () if tokenizer.chat_template is not None else ("\nUser:",)

    @property
    def kinds(self) -> dict[str, str]:
        """What becomes of each kind of message with this template (docs/templates.md)."""
        frames = self._frames
        places = {"front": "in front", "first": "within a question", "last": "within the newest question"}
        own, ours = "as the template writes them", "in our words"
        return {
            "a talk": "lines of text, there is no template" if self.stop else "as the template writes it",
            "a system prompt": places.get(frames.place, "as text in front, the template has none"),
            "tools": own if frames.tells_calls else ours,
            "calls": own if frames.takes_calls else ours,
            "results": own if frames.takes_results else ours,
            "an answer": "begins with a thought" if self._thinks else "begins with its words",
        }

    def system(self, text: str | None, *, tools: Tools = ()) -> list[int]:
        """The ids of a system prompt; without text, what the template says by default, today.

        `tools` are told in the template's own words where those are the ones our calls are read in, else in ours.
        """
        text = whole(text) if text else None
        parts: list[Part] = []
        try:
            if tools and self._frames.tells_calls:
                parts = self._frames.system(text, tools)
        except TranscriptError:
            pass
        if not parts:
            text = "\n\n".join([*([text] if text else []), *([tools_prompt(tools)] if tools else [])]) or None
            parts = self._system(text)
        return self._encoder.encode(parts, after="" if self.start else None)

    def _system(self, text: str | None) -> list[Part]:
        try:
            if not text or self._frames.place == "front":
                return self._frames.system(text)
        except TranscriptError:
            pass
        return [Part(text, said=True), Part("\n\n")] if text else []

    def turn(self, message: Message) -> list[int]:
        """The ids of one message, whatever was said before; none of an answer in which nothing is said.

        Raises InputError and TranscriptError.
        """
        found = read_message(message, thinking=self._thinks)
        return [] if found is None else self._encoder.encode(self._frames.of(found), after=self._trail(found["role"]))

    def opened(self, ids: Sequence[int]) -> list[int]:
        """Ids as a stream of their own: the opening token in front, where the first message does not begin with it."""
        begun = bool(self._repeated) and list(ids[: len(self.start)]) == self.start
        return [*([] if begun else self.start), *ids]

    def read(self, messages: Sequence[Message]) -> list[dict[str, Any]]:
        """Messages in the form in which they are remembered, without answers in which nothing is said.

        Raises InputError.
        """
        return read_messages(messages, thinking=self._thinks)

    def spoken(self, text: str) -> str:
        """What this model just said, without its thoughts: nothing where it began within one and did not end it."""
        if self._thinks and not ends_thought(text):
            return ""
        return spoken(text, thinking=self._thinks)

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
        newest: Message | None = None,
        system: str | None = None,
        tools: Sequence[Mapping[str, Any]] = (),
    ) -> list[tuple[str, list[int]]]:
        """What asks for an answer, each piece with its name, in order: system prompt, raw tail, what is asked, header.

        The system prompt stands in front, or within the newest question where the template puts it in one. `newest` is
        the message that the tail ends with. The stream's opening token stands first of all ("start"), or nowhere when
        the prompt stands `behind` slots, which have their own; a tail that `opens` the stream begins with one, where
        it is no template's.
        """
        opening = [*self.start, *self._repeated]
        size = len(self.start) if opens and list(tail[: len(opening)]) == opening else 0
        turns, rest = [self.turn(message) for message in asked], list(tail[size:])
        said = list(asked)
        if newest is not None and (ids := self.turn(newest)) and rest[-len(ids) :] == ids:
            rest, said, turns = rest[: -len(ids)], [newest, *said], [ids, *turns]
        at = max((n for n, message in enumerate(said) if message["role"] == "user"), default=None)
        told = self.system(system, tools=tools)
        if at is not None and (system or tools) and self._frames.place in ("first", "last"):
            turns[at] = self._asked(said[at], system, tools) or [*told, *turns[at]]
            told = []
        ids = _joined(turns)
        # A template may begin the first question with the opening token: it stands there once.
        begun = bool(self._repeated) and not told and [*rest, *ids][: len(self.start)] == self.start
        return [
            ("start", [] if behind or begun else self.start),
            ("system", told),
            ("tail", rest),
            ("asked", ids),
            ("header", self.header()),
        ]

    def _asked(self, message: Message, system: str | None, tools: Tools) -> list[int]:
        """A question with the system prompt in it, as the template writes it; none where it cannot."""
        text = "\n\n".join([*([whole(system)] if system else []), *([tools_prompt(tools)] if tools else [])])
        try:
            parts = self._frames.asked(check_message(message), text)
        except TranscriptError:
            return []
        return self._encoder.encode(parts, after=self._trail("user"))

    def header(self) -> list[int]:
        """The ids that ask the model for its answer."""
        return self._encoder.encode([Part(self._frames.header)], after=self._trail("assistant"))

    def question(self, text: str) -> list[int]:
        """The ids of what a user says, and those that ask for the answer."""
        return [*self.turn({"role": "user", "content": text}), *self.header()]

    def _trail(self, role: str) -> str:
        """The plain text in front of a message, with which its first letters may be one token."""
        frame = self._frames.question if role == "assistant" else self._frames.answer
        return self._encoder.trail(f"{frame.before}x{frame.behind}")


def _joined(turns: Sequence[Sequence[int]]) -> list[int]:
    return [i for ids in turns for i in ids]


def _opens_once(template: Template) -> bool:
    """Whether the template writes the opening token in front of all and nowhere else."""
    token, talk = mark(), [{"role": role, "content": "W"} for role in ("user", "assistant", "user")]
    for messages in (talk, talk[:1]):
        try:
            text = template.render(messages, bos_token=token)
            return text.startswith(token) and text.count(token) == 1
        except TranscriptError:
            if len(messages) == 1:
                raise
    return False
