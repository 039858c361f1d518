"""What a chat template writes of each message, found by running it on short conversations of marks."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import product
from typing import Any, TypeVar

from beacon_memory.errors import TranscriptError
from beacon_memory.models.encoding import Encoder, Part
from beacon_memory.talk.messages import Message, calls_of
from beacon_memory.talk.template import Frame, Template, common, cut, mark, trimmed
from beacon_memory.talk.tools import CALL_CLOSE, CALL_OPEN, Call, Said, as_json, read_said, write_said

logger = logging.getLogger(__name__)

Tools = Sequence[Mapping[str, Any]]
Dicts = list[dict[str, Any]]
T = TypeVar("T")

_ID = "call00001"  # letters and digits, nine of them: the only ids of calls that Mistral's templates take
_VALUE = mark()  # an argument


class Frames:
    """A template's parts of messages, as it shows them in the past of a longer conversation."""

    def __init__(self, template: Template, encoder: Encoder) -> None:
        """Raises TranscriptError for a template that cannot render a question."""
        self._template, self._encoder = template, encoder
        self._u, self._a, self._l, self._r = mark(), mark(), mark(), mark()
        self._find()
        self.place = self._place()
        self._silence: str | None = ""  # the words of an answer that only calls
        self._shape, self._short, self._results = "", False, False
        self._result_end: Dicts = []
        self._tools()

    @property
    def takes_calls(self) -> bool:
        """Whether the template shows calls of tools."""
        return bool(self._shape)

    @property
    def takes_results(self) -> bool:
        """Whether the template shows what tools gave."""
        return self._results

    def _find(self) -> None:
        """What stands around a question and an answer, in front of the first question, and at an answer's beginning."""
        render = self._template.render
        talk = _talk(self._u, self._a, self._l)
        front, _, end = render(talk[:1]).partition(self._u)
        between, later = end, front
        try:
            whole = render(talk)
            front, between, later, end = (
                cut(whole, *ends) for ends in (("", self._u), (self._u, self._a), (self._a, self._l), (self._l, ""))
            )
        except TranscriptError as exc:
            logger.warning("the chat template shows no past conversation, only a question: %s", exc)
        newest = _tried(lambda: cut(render(talk[:2]), self._a, ""), "")
        behind = newest if later.startswith(newest) else self._start(later, newest)
        before = later.removeprefix(behind)
        if not front.endswith(before) and (ending := self._end(front, later)):
            before, behind = ending, later.removesuffix(ending)
        asked = end if between.startswith(end) else self._start(between, end)
        self.opening = front.removesuffix(before) if front.endswith(before) else ""
        self.question = Frame(before, asked)
        self.answer = Frame(between.removeprefix(asked), behind)
        header = _tried(lambda: cut(render(talk[:1], header=True), self._u, ""), "")
        self.header = header.removeprefix(asked) if header.startswith(asked) else ""

    def _place(self) -> str:
        """Where the template shows a system prompt: "front", in the "first" or "last" question, or nowhere ("")."""
        told = mark()
        talk = [{"role": "system", "content": told}, *_talk(self._u, self._a, self._l)]
        text = _tried(lambda: self._template.render(talk), "")
        if text.count(told) != 1 or any(text.count(one) != 1 for one in (self._u, self._a, self._l)):
            return ""
        if text.index(told) < text.index(self._u):
            return "front" if cut(text, told, self._u).endswith(self.question.before) else "first"
        return "last" if text.index(self._a) < text.index(told) < text.index(self._l) else ""

    def _tools(self) -> None:
        """How the template takes calls: with arguments as an "object" or a "string", or ("") not at all; whether it
        shows results.
        """
        name, key = mark(), mark()
        for silence, short, shape in product(("", None), (False, True), ("object", "string")):
            self._silence, self._short, self._shape = silence, short, shape
            text = _tried(lambda: self._template.render(self._calling([Call(name, {key: _VALUE})], ["c"])[:2]), "")
            # What Python writes of an object is no JSON: such a template takes a string.
            if all(word in text for word in (name, key, _VALUE)) and f"'{key}'" not in text:
                break
        else:
            self._silence, self._short, self._shape = "", False, ""
        self._find_results()
        tool = {"type": "function", "function": {"name": "f", "description": "f", "parameters": {"type": "object"}}}
        told = _tried(lambda: self._template.render(_talk(self._u), tools=[tool]), "")
        # Whether tools are told in front of the talk, and their calls are written as ours are read.
        self.tells_calls = self.place == "front" and CALL_OPEN.strip() in told

    def _find_results(self) -> None:
        """What stands around a tool's result, behind a call and in front of a question, or of an answer and one."""
        for ending in (_talk(self._l), [{"role": "assistant", "content": self._l}, *_talk("Q")]):
            self._result_end = ending
            text = _tried(lambda: self._template.render(self._resulting({"content": self._r})), "")
            begin = _VALUE if self._shape else self._a
            if all(text.count(one) == 1 for one in (begin, self._r, self._l)):
                called = _tried(partial(self._behind_call, begin), "")
                gap = cut(text, begin, self._r)
                called = called if called and gap.startswith(called) else self._start(gap, called or self.answer.behind)
                self._results, self._called, self._result = True, called, gap.removeprefix(called)
                return

    def _behind_call(self, begin: str) -> str:
        """What the template writes behind the newest call, or the newest answer. Raises TranscriptError."""
        return cut(self._template.render(self._resulting({})[:2]), begin, "")

    def _start(self, one: str, other: str) -> str:
        """What two texts begin with, no token cut in two."""
        return "".join(common(self._encoder.letters(one), self._encoder.letters(other)))

    def _end(self, one: str, other: str) -> str:
        """What two texts end with, no token cut in two."""
        return "".join(common(self._encoder.letters(one)[::-1], self._encoder.letters(other)[::-1])[::-1])

    def of(self, message: Message) -> list[Part]:
        """One message, of the form `check_message` gives."""
        role, content = str(message["role"]), str(message["content"])
        if role == "tool":
            parts = _tried(lambda: self._of_result(message), list[Part]()) if self._results else []
            return parts or self._of_words("user", f"<tool_response>\n{content}\n</tool_response>")
        if role == "assistant" and self._shape and (calls := calls_of(message)):
            ids = [str(call.get("id") or n) for n, call in enumerate(message["tool_calls"])]
            text = read_said(content).text if read_said(content).calls else content
            if parts := _tried(lambda: self._of_calls(calls, ids, text), list[Part]()):
                return parts
            # Some take one call at a time.
            alone = [
                _tried(partial(self._of_calls, [call], [given], "" if n else text), list[Part]())
                for n, (call, given) in enumerate(zip(calls, ids, strict=True))
            ]
            if all(alone):
                return [part for parts in alone for part in parts]
        return [one for part in self._of_words(role, content) for one in self._our_calls(part, message)]

    def _our_calls(self, part: Part, message: Message) -> list[Part]:
        """Calls that stand in an answer's words, as we write them: their marks are no words."""
        calls = calls_of(message) if part.said and message["role"] == "assistant" else []
        found: list[Part] = []
        for call in reversed(calls):
            text = write_said(Said("", (call,)))
            if not part.text.endswith(text):
                return [*([part] if part.text else []), *found]
            body = text.removeprefix(CALL_OPEN).removesuffix(CALL_CLOSE)
            found[:0] = [Part(CALL_OPEN), Part(body, said=True), Part(CALL_CLOSE)]
            part = Part(part.text.removesuffix(text), said=True)
            if part.text.endswith("\n"):
                found[:0] = [Part("\n")]
                part = Part(part.text.removesuffix("\n"), said=True)
        return [*([part] if part.text else []), *found]

    def _of_words(self, role: str, content: str) -> list[Part]:
        """A question or an answer."""
        if role == "user":
            frame, begin, end = self.question, self._a, ""
        else:
            frame, begin, end = self.answer, self._u, self._l

        def build(told: Mapping[str, str]) -> Dicts:
            said = told["content"]
            return _talk(self._u, self._a, said) if role == "user" else _talk(self._u, said, self._l)

        parts = _tried(lambda: self._template.parts(build, {"content": content}, begin=begin, end=end), list[Part]())
        said = [part for part in parts if part.said]
        return [Part(frame.before), said[0] if len(said) == 1 else Part(content, said=True), Part(frame.behind)]

    def _of_calls(self, calls: Sequence[Call], ids: Sequence[str], text: str) -> list[Part]:
        """An answer that calls tools; nothing where the template leaves one out. Raises TranscriptError."""
        spelled = self._spelled([[call.name, dict(call.arguments)] for call in calls])

        def build(told: Mapping[str, str]) -> Dicts:
            swap = {word: told[name] for name, word in spelled.items()}
            swapped = [Call(_swapped(c.name, swap), _swapped(dict(c.arguments), swap)) for c in calls]
            return self._calling(swapped, ids, told.get("text", ""))

        fields = {**spelled, **({"text": text} if text.strip() else {})}
        parts = self._template.parts(build, fields, begin=self._u, end=self._r if self._results else self._l)
        behind = self._result if self._results else self.question.before
        parts = trimmed(parts, before=self.question.behind, behind=behind)
        shown = "".join(part.text for part in parts)
        names = [{call.name, as_json(call.name)[1:-1]} for call in calls]
        return parts if all(any(name in shown for name in spelled) for spelled in names) else []

    def _of_result(self, message: Message) -> list[Part]:
        """What a tool gave. Raises TranscriptError."""
        about = {key: str(message[key]) for key in ("name", "tool_call_id") if isinstance(message.get(key), str)}
        if "tool_call_id" in about:
            about["tool_call_id"] = self._id(about["tool_call_id"])
        fields = {"content": str(message["content"])}
        fields.update({key: word for key, word in about.items() if self._encoder.spells(word)})
        parts = self._template.parts(
            lambda told: self._resulting({**about, **told}),
            fields,
            begin=_VALUE if self._shape else self._a,
            end=self._l,
        )
        answered = self._result_end[0]["role"] == "assistant"
        return trimmed(parts, before=self._called, behind=self.answer.before if answered else self.question.before)

    def system(self, text: str | None, tools: Tools = ()) -> list[Part]:
        """What stands in front of the first question when the template is given these. Raises TranscriptError."""
        spelled = self._spelled(list(tools))

        def build(told: Mapping[str, str]) -> Dicts:
            system = [{"role": "system", "content": told["system"]}] if text else []
            return [*system, *_talk(self._u)]

        parts = self._template.parts(
            build,
            {**spelled, **({"system": text} if text else {})},
            end=self._u,
            tools=lambda told: [_swapped(dict(tool), {w: told[n] for n, w in spelled.items()}) for tool in tools],
        )
        if not parts or not parts[-1].text.endswith(self.question.before):
            raise TranscriptError("the chat template shows the first question otherwise than later ones")
        return trimmed(parts, behind=self.question.before)

    def asked(self, message: Message, system: str) -> list[Part]:
        """A question with a system prompt in it. Raises TranscriptError."""
        parts = self._template.parts(
            lambda told: [
                {"role": "system", "content": told["system"]},
                {"role": message["role"], "content": told["content"]},
            ],
            {"system": system, "content": str(message["content"])},
        )
        return trimmed(parts, before=self.opening)

    def _spelled(self, value: Any) -> dict[str, str]:
        """The strings of a value that spell a control token, each under a name."""
        words = dict.fromkeys(word for word in _strings(value) if self._encoder.spells(word))
        return {f"said {n}": word for n, word in enumerate(words)}

    def _calling(self, calls: Sequence[Call], ids: Sequence[str], text: str = "") -> Dicts:
        """A conversation in which tools are called."""
        made = [
            {
                "type": "function",
                "id": self._id(given),
                "function": {
                    "name": call.name,
                    "arguments": dict(call.arguments) if self._shape == "object" else as_json(dict(call.arguments)),
                },
            }
            for call, given in zip(calls, ids, strict=True)
        ]
        results = [
            {"role": "tool", "content": "R" if n else self._r, "tool_call_id": call["id"]}
            for n, call in enumerate(made)
        ]
        called = {"role": "assistant", "content": text or self._silence, "tool_calls": made}
        return [*_talk(self._u), called, *(results if self._results else []), *(self._result_end or _talk(self._l))]

    def _resulting(self, about: Mapping[str, str]) -> Dicts:
        """A conversation in which a tool gave something."""
        called = _talk(self._u, self._a)
        if self._shape:
            called = self._calling([Call("f", {"a": _VALUE})], [_ID])[:2]
        return [*called, {"role": "tool", "tool_call_id": _ID, **about}, *self._result_end]

    def _id(self, given: str) -> str:
        """The id of a call as the template takes it."""
        if not self._short or (len(given) == len(_ID) and given.isascii() and given.isalnum()):
            return given
        return hashlib.sha256(given.encode()).hexdigest()[: len(_ID)]


def _talk(*said: str) -> Dicts:
    """Questions and answers in turn."""
    return [{"role": "assistant" if n % 2 else "user", "content": text} for n, text in enumerate(said)]


def _tried(act: Callable[[], T], otherwise: T) -> T:
    try:
        return act()
    except TranscriptError:
        return otherwise


def _strings(value: Any) -> list[str]:
    """Every string in a JSON value, keys too."""
    if isinstance(value, str):
        return [value]
    if isinstance(value, Mapping):
        return [text for key, item in value.items() for text in (*_strings(key), *_strings(item))]
    return [text for item in value for text in _strings(item)] if isinstance(value, Sequence) else []


def _swapped(value: Any, swap: Mapping[str, str]) -> Any:
    """A JSON value with other strings in place of some."""
    if isinstance(value, str):
        return swap.get(value, value)
    if isinstance(value, Mapping):
        return {_swapped(key, swap): _swapped(item, swap) for key, item in value.items()}
    return [_swapped(item, swap) for item in value] if isinstance(value, list | tuple) else value
