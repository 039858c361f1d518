"""Answers that are always valid: JSON of a schema, and tool calls, by masking the model's logits (llguidance).

A mask alone does not end an answer: a small model fills a string for ever. So the processor knows at each step the
shortest way to close what is open, and takes it before the tokens run out.
"""

from __future__ import annotations

import json
import weakref
from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Self

import torch
from torch import Tensor
from transformers import LogitsProcessor, PreTrainedTokenizerBase

from beacon_memory.errors import ConfigError, InputError, MissingExtra
from beacon_memory.talk.schema import held
from beacon_memory.talk.tools import CALL_CLOSE, CALL_OPEN, Tool, tools_choice

Schema = Mapping[str, Any]

# Python's json.dumps: one way to write a value, so no answer is lost in white space.
_STYLE = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": ", "lenient": True}
_STEPS = 500  # a value that takes more to close cannot be closed


@dataclass(frozen=True)
class Grammar:
    """What an answer may be, in llguidance's words; `Sampling.constraint` takes it.

    >>> Grammar.json({"type": "object", "properties": {"age": {"type": "integer"}}}).text[:15]
    '%llguidance {}\\n'
    """

    text: str
    marker: str = ""  # what begins a call within free text; without one, nothing is free

    @classmethod
    def json(cls, schema: Schema) -> Self:
        """An answer that is JSON of this schema, and nothing else. Raises InputError for what is no schema."""
        return cls(_checked(f"%llguidance {{}}\nstart: %json {_styled(schema)}\n", what="JSON schema"))

    @classmethod
    def calls(cls, tools: Mapping[str, Schema], *, text: bool, many: bool, schema: Schema | None = None) -> Self:
        """Calls of these tools (name -> schema of its arguments), or where `text` says so an answer: plain text, which
        calls may end, or JSON of `schema`.

        A call is written `<tool_call>\\n{"name": …, "arguments": …}\\n</tool_call>`. Raises InputError that names the
        tool.
        """
        if not tools:
            raise InputError("no tool to call")
        rules, names = [], []
        for n, (name, arguments) in enumerate(tools.items()):
            opening = json.dumps(f'{json.dumps(name)}, "arguments": ', ensure_ascii=False)
            rules += [
                f"call_{n}: {opening} args_{n} {json.dumps('}' + CALL_CLOSE)}",
                f"args_{n}: %json {_styled(arguments)}",
            ]
            _checked(f"%llguidance {{}}\nstart: %json {_styled(arguments)}\n", what=f"schema of tool {name!r}")
            names.append(f"call_{n}")
        marker, opened = CALL_OPEN.rstrip(), '\n{"name": '
        lines = [f"call: {json.dumps(marker)} rest", f"rest: {json.dumps(opened)} ({' | '.join(names)})", *rules]
        more = ' ("\\n" call)*' if many else ""
        free = text and schema is None
        if free:
            # Lazy: where the marker is written, text has ended.
            lines += ["TEXT: /(.|\\n)*/", f"spoken[lazy]: TEXT {json.dumps(marker)}"]
            start = f"TEXT | spoken rest{more}"
        elif text:
            assert schema is not None
            _checked(f"%llguidance {{}}\nstart: %json {_styled(schema)}\n", what="JSON schema")
            lines.append(f"answer: %json {_styled(schema)}")
            start = f"answer | call{more}"
        else:
            start = f"call{more}"
        grammar = "\n".join(["%llguidance {}", f"start: {start}", *lines]) + "\n"
        return cls(_checked(grammar, what="tools"), marker if free else "")

    def processor(
        self, tokenizer: PreTrainedTokenizerBase, *, ends: Sequence[int], rows: int, prompt: int, limit: int
    ) -> LogitsProcessor:
        """What masks the logits of `rows` answers of at most `limit` tokens.

        Raises ConfigError when the shortest answer that is valid has more tokens than that.
        """
        return _Masked(self, tokenizer, ends=ends, rows=rows, prompt=prompt, limit=limit)


def tools_grammar(
    tools: Sequence[Tool],
    choice: str | Mapping[str, Any] | bool | None = None,
    schema: Mapping[str, Any] | None = None,
    *,
    many: bool | None = None,
) -> Grammar | None:
    """What an answer is held to that may call tools, or must, or is JSON of `schema`; None for any text.

    Raises InputError.
    """
    if not tools:
        return None if schema is None else Grammar.json(schema)
    schemas = {}
    for tool in tools:
        function = tool.get("function") if isinstance(tool, Mapping) else None
        if not isinstance(function, Mapping) or not function.get("name"):
            raise InputError(f"a tool is a function with a name, not {tool!r:.120}")
        schemas[str(function["name"])] = _arguments(function.get("parameters") or {"type": "object", "properties": {}})
    choice = tools_choice(choice, list(schemas))
    if choice in (None, "auto"):
        return Grammar.calls(schemas, text=True, many=many is not False, schema=schema)
    if choice != "any":
        schemas = {choice: schemas[choice]}
    return Grammar.calls(schemas, text=False, many=bool(many))


def _arguments(parameters: Any) -> Any:
    """The schema of a call's arguments. A function takes what it names: a schema that says nothing of more, and is not
    made of others, allows no more.
    """
    if isinstance(parameters, Mapping) and not parameters.keys() & {"allOf", "anyOf", "oneOf", "$ref"}:
        return {"additionalProperties": False, **parameters}
    return parameters


class _Masked(LogitsProcessor):  # type: ignore[misc]
    def __init__(
        self,
        grammar: Grammar,
        tokenizer: PreTrainedTokenizerBase,
        *,
        ends: Sequence[int],
        rows: int,
        prompt: int,
        limit: int,
    ) -> None:
        if not ends:
            raise ConfigError("this model has no token that ends an answer, so none can be held to a grammar")
        words = _words(tokenizer, tuple(ends))
        self._rows = [_Row(words, grammar) for _ in range(rows)]
        self._prompt, self._limit, self._ends = prompt, limit, list(ends)
        shortest = self._rows[0].closing()
        if shortest is not None and len(shortest) + 1 > limit:
            raise ConfigError(
                f"the shortest answer of this form has {len(shortest) + 1} tokens, max_new_tokens is {limit}: raise it"
            )
        self._call = self._rows[0].call() if grammar.marker else 0
        # Opening a value may lengthen what has to be closed: about as much as the shortest answer is long.
        self._slack = min(max(self._call, len(shortest or ())) + 16, limit // 4)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        step = input_ids.shape[1] - self._prompt
        allowed = torch.zeros(scores.shape, dtype=torch.bool)
        for i, row in enumerate(self._rows):
            if step:
                row.take(int(input_ids[i, -1]), self._ends)
            if row.done or row.complete:
                allowed[i, self._ends] = True
                continue
            left = self._limit - step
            if row.talking:
                allowed[i] = row.mask(scores.shape[1])
                if left <= self._call + 1 + self._slack:  # a call could not be ended any more
                    allowed[i] &= row.wordy(scores.shape[1])
                continue
            closing = row.closing() if left <= 4 * self._slack or step % 16 == 0 else None
            if closing is not None and len(closing) + 1 + self._slack >= left:
                allowed[i, closing[:1] or self._ends] = True
            else:
                allowed[i] = row.mask(scores.shape[1])
        return scores.masked_fill(~allowed.to(scores.device), float("-inf"))


class _Row:
    """One answer as far as it is written."""

    def __init__(self, words: _Words, grammar: Grammar) -> None:
        from llguidance import LLMatcher

        self._words = words
        self._matcher = LLMatcher(words.tokenizer, grammar.text)
        self._marker = grammar.marker.encode()
        self._text = b""
        self.done = False

    @property
    def talking(self) -> bool:
        """Whether this is free text as yet."""
        return bool(self._marker) and self._marker not in self._text

    @property
    def complete(self) -> bool:
        """Whether nothing but the end can follow."""
        return bool(self._matcher.is_stopped())

    def take(self, token: int, ends: Sequence[int]) -> None:
        if self.done or token in ends:
            self.done = True
            return
        self._matcher.consume_token(token)
        self._text += self._words.spell([token])
        if self._matcher.is_error():
            raise InputError(f"the answer cannot be held to its grammar: {self._matcher.get_error()}")

    def mask(self, vocabulary: int) -> Tensor:
        """Which tokens may follow.  # (vocabulary,)"""
        bits = torch.frombuffer(bytearray(self._matcher.compute_bitmask()), dtype=torch.uint8)
        mask = (bits[:, None] >> torch.arange(8, dtype=torch.uint8) & 1).flatten().bool()
        return _sized(mask, vocabulary)

    def wordy(self, vocabulary: int) -> Tensor:
        """Which tokens go on talking: none that begins a call.  # (vocabulary,)"""
        marker = self._marker
        begun = next((marker[:n] for n in range(len(marker) - 1, 0, -1) if self._text.endswith(marker[:n])), b"")
        return _sized(~self._words.completing(marker, begun), vocabulary)

    def call(self) -> int:
        """The tokens of the shortest call."""
        row = copy(self)
        row._matcher = self._matcher.deep_copy()
        opening = list(self._words.tokenizer.tokenize_str(self._marker.decode()))
        for token in opening:
            row.take(token, ())
        return len(opening) + len(row.closing() or ())

    def closing(self) -> list[int] | None:
        """A short way to the end of the answer, or None when none was found."""
        matcher, text = self._matcher.deep_copy(), self._text
        way: list[int] = []
        for _ in range(_STEPS):
            if matcher.is_accepting() or matcher.is_stopped():
                return way
            tokens = self._words.next(matcher, text)
            if not tokens or not matcher.consume_tokens(tokens):
                return None
            way += tokens
            text += self._words.spell(tokens)
        return None


class _Words:
    """A tokenizer as llguidance reads it, and its tokens for the marks that close JSON."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, ends: tuple[int, ...]) -> None:
        try:
            from llguidance.hf import from_tokenizer
        except ImportError as exc:
            raise MissingExtra(
                "answers of a given form need llguidance: pip install 'beacon-memory[structured]'"
            ) from exc
        try:
            self.tokenizer: Any = from_tokenizer(tokenizer, eos_token=list(ends))
        except ValueError as exc:
            raise ConfigError(f"answers of a given form need a fast tokenizer: {exc}") from exc
        self._spelled: list[bytes] = []
        self._completing: dict[bytes, Tensor] = {}
        # Outside a string: what ends something before what begins something.
        self._outside = self._marks("}", "]", ",", '"', "0", "null", "true", "[", "{", ":", " ")
        self._inside = self._marks('"', "n", "0", "a", " ")

    def _marks(self, *marks: str) -> list[list[int]]:
        return [list(self.tokenizer.tokenize_str(mark)) for mark in marks]

    def completing(self, marker: bytes, begun: bytes) -> Tensor:
        """Which tokens write a marker out of which so much is written.  # (vocabulary,)"""
        if not self._spelled:
            self._spelled = [self.spell([i]) for i in range(self.tokenizer.vocab_size)]
        if begun not in self._completing:
            self._completing[begun] = torch.tensor([marker in begun + spelled for spelled in self._spelled])
        return self._completing[begun]

    def spell(self, tokens: Sequence[int]) -> bytes:
        """The bytes of tokens."""
        return bytes(self.tokenizer.decode_bytes(list(tokens)))

    def next(self, matcher: Any, text: bytes) -> list[int]:
        """What may follow and leads to the end."""
        if forced := matcher.compute_ff_tokens():
            return list(forced)
        for mark in self._inside if _in_string(text) else self._outside:
            if matcher.validate_tokens(mark) == len(mark):
                return mark
        # One of several names, a pattern, the rest of a letter: any way on is one.
        bits = matcher.compute_bitmask()
        for at, byte in enumerate(bits):
            for bit in range(8):
                if byte >> bit & 1 and 8 * at + bit not in self.tokenizer.eos_tokens:
                    return [8 * at + bit]
        return []


def _in_string(text: bytes) -> bool:
    """Whether JSON that was cut here was cut within a string."""
    inside = escaped = False
    for byte in text.rpartition(CALL_OPEN.encode())[2]:
        if escaped:
            escaped = False
        elif byte == 0x5C:
            escaped = inside
        elif byte == 0x22:
            inside = not inside
    return inside


_KNOWN: weakref.WeakKeyDictionary[Any, dict[tuple[int, ...], _Words]] = weakref.WeakKeyDictionary()


def _words(tokenizer: PreTrainedTokenizerBase, ends: tuple[int, ...]) -> _Words:
    """Made once for a tokenizer: a second's work for a large vocabulary."""
    known = _KNOWN.setdefault(tokenizer, {})
    if ends not in known:
        known[ends] = _Words(tokenizer, ends)
    return known[ends]


def _sized(mask: Tensor, vocabulary: int) -> Tensor:
    """A mask of the tokenizer's ids as one of the model's.  # (vocabulary,)"""
    return torch.nn.functional.pad(mask, (0, max(0, vocabulary - len(mask))))[:vocabulary]


def _styled(schema: Schema) -> str:
    if not isinstance(schema, Mapping):
        raise InputError(f"a JSON schema is a mapping, not {schema!r:.80}")
    try:
        json.dumps(schema)
        return json.dumps({**held(schema, _holds), "x-guidance": _STYLE})
    except (TypeError, ValueError, RecursionError) as exc:
        raise InputError(f"a JSON schema is made of JSON values: {exc}") from exc


@lru_cache(maxsize=512)
def _holds(pattern: str) -> bool:
    """Whether an answer can be held to a pattern."""
    try:
        _checked(
            f"%llguidance {{}}\nstart: %json {json.dumps({'type': 'string', 'pattern': pattern})}\n", what="pattern"
        )
    except InputError:
        return False
    return True


def _checked(grammar: str, *, what: str) -> str:
    try:
        from llguidance import LLMatcher
    except ImportError as exc:
        raise MissingExtra("answers of a given form need llguidance: pip install 'beacon-memory[structured]'") from exc
    failed, messages = LLMatcher.validate_grammar_with_warnings(grammar)
    if failed:
        raise InputError(f"the {what} cannot be held to: {messages[0]}")
    return grammar
