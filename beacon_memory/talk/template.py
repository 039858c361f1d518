"""A chat template taken apart: what it writes around what is said, whatever it does to the words themselves.

A template is a program. It is run twice: once with marks in place of what is said, which shows what it writes of its
own, and once with the words, which shows what it makes of them (trimmed, in capitals, as JSON). The marks are long
random numbers: no filter changes them, and nobody can say them.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

from transformers import PreTrainedTokenizerBase

from beacon_memory.errors import TranscriptError
from beacon_memory.models.encoding import Part

Messages = Sequence[Mapping[str, Any]]
Tools = Sequence[Mapping[str, Any]]
Build = Callable[[Mapping[str, str]], Messages]  # messages in which the named fields have these words

# Of a model that has none: lines of text.
LINES = (
    "{% for m in messages %}{% if m.role == 'system' %}{{ m.content + '\n\n' }}"
    "{% else %}{{ m.role | capitalize + ': ' + m.content + '\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)


@dataclass(frozen=True)
class Frame:
    """What a template writes before and behind what is said."""

    before: str
    behind: str


class Template:
    """A tokenizer's chat template as a function of messages."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self.opening = ""  # the token that the template writes in front of all
        self._source: dict[str, str] = {} if tokenizer.chat_template is not None else {"chat_template": LINES}

    def opens(self, bos: str) -> None:
        """Leave this token out where it stands in front of all."""
        self.opening = bos

    def render(self, messages: Messages, *, header: bool = False, tools: Tools = (), **variables: Any) -> str:
        """What the template writes. Raises TranscriptError."""
        try:
            text: str = self._tokenizer.apply_chat_template(
                [dict(message) for message in messages],
                tools=[dict(tool) for tool in tools] or None,
                tokenize=False,
                add_generation_prompt=header,
                **self._source,
                **variables,
            )
        except Exception as exc:  # templates are programs: jinja errors, and whatever they raise themselves
            roles = ", ".join(str(message["role"]) for message in messages)
            raise TranscriptError(f"the model's chat template cannot render messages of roles {roles}: {exc}") from exc
        return text.removeprefix(self.opening)

    def parts(
        self,
        build: Build,
        fields: Mapping[str, str],
        *,
        begin: str = "",
        end: str = "",
        tools: Callable[[Mapping[str, str]], Tools] = lambda told: (),
    ) -> list[Part]:
        """What stands between the marks `begin` and `end` (or the text's ends) when `fields` are said: the template's
        own parts, and what it makes of the words. Raises TranscriptError.
        """
        marks = {name: mark() for name in fields}

        def between(told: Mapping[str, str]) -> str:
            return cut(self.render(build(told), tools=tools(told)), begin, end)

        pattern = between(marks)
        made: dict[str, str] = {}
        for name, words in fields.items():
            before, *others = pattern.split(marks[name])
            if not others:
                continue
            text, behind = between(marks | {name: words}), others[-1]
            told = len(text) - len(pattern) + len(others) * len(marks[name])
            size, rest = divmod(told, len(others))
            word = text[len(before) : len(before) + size]
            fits = not rest and size >= 0 and text == word.join([before, *others]) and text.endswith(behind)
            # A template that branches on the words, or leaves some out, is given them as they are.
            made[name] = word if fits and (word.strip() == words.strip() or word not in words) else words
        return _split(pattern, {marks[name]: words for name, words in made.items()})


def mark() -> str:
    """A word that no template changes and nobody can say: 30 random digits."""
    return str(secrets.randbelow(9 * 10**29) + 10**29)


def cut(text: str, begin: str, end: str) -> str:
    """What stands between two marks. Raises TranscriptError where one is missing."""
    if begin not in text or (end and end not in text):
        raise TranscriptError("the chat template leaves out messages")
    if begin:
        text = text[text.rindex(begin) + len(begin) :]
    return text[: text.rindex(end)] if end else text


def common(one: Sequence[str], other: Sequence[str]) -> list[str]:
    """The items that two sequences begin with."""
    pairs = takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False))
    return [item for item, _ in pairs]


def trimmed(parts: Sequence[Part], *, before: str = "", behind: str = "") -> list[Part]:
    """The parts without what belongs to the messages around them."""
    found = [*([] if parts and not parts[0].said else [Part("")]), *parts]
    found += [Part("")] if found[-1].said else []
    first = found[0].text
    found[0] = Part(first[len(common(first, before)) :])
    found[-1] = Part(found[-1].text.removesuffix(behind))
    return [part for part in found if part.text]


def _split(text: str, words: Mapping[str, str]) -> list[Part]:
    """A text with words in place of marks."""
    parts = [Part(text)]
    for mark_, word in words.items():
        found: list[Part] = []
        for part in parts:
            pieces = [part.text] if part.said else part.text.split(mark_)
            for n, piece in enumerate(pieces):
                found += [Part(word, said=True)] if n else []
                found += [Part(piece, part.said)]
        parts = found
    return [part for part in parts if part.text]
