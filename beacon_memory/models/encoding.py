"""Text to ids without shared state: what a template writes may be a control token, what anyone says never is.

transformers' tokenizers are not thread-safe: whether special tokens are matched is a flag on the object all threads
share, and it leaves added tokens that are not special (`<tool_call>`, `<think>`) alone. Here a tokenizer's normaliser,
pre-tokenizer and model run without any added token; those that a template wrote are put in by their ids.
"""

from __future__ import annotations

import re
import threading
import uuid
import weakref
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

from tokenizers import AddedToken, Tokenizer
from transformers import PreTrainedTokenizerBase

from beacon_memory.errors import InputError

# Unicode's white space, as the backend has it; Python's has four letters more.
_WHITE = "\t\n\v\f\r \x85\xa0\u1680\u2028\u2029\u202f\u205f\u3000" + "".join(map(chr, range(0x2000, 0x200B)))


class Part(NamedTuple):
    """A part of a rendered text."""

    text: str
    said: bool = False  # by somebody: none of it is a control token


class Encoder:
    """A tokenizer, read once: later changes of it, and what other threads do with it, make no difference."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        added = {i: token for i, token in tokenizer.added_tokens_decoder.items() if token.content}
        # White space that was added is how these models read white space.
        spaces = {i: token for i, token in added.items() if token.content.isspace()}
        self._controls = {token.content: i for i, token in added.items() if i not in spaces}
        self._ids = set(self._controls.values())
        self._flags = {token.content: token for token in added.values()}
        self._white = _WHITE if tokenizer.is_fast else None  # what a token takes in that strips the words around it
        self._unknown = tokenizer.unk_token_id
        longest = sorted(self._controls, key=len, reverse=True)
        spelled = "|".join(rf"\b{re.escape(t)}\b" if self._flags[t].single_word else re.escape(t) for t in longest)
        self._control = re.compile(f"({spelled})" if spelled else r"((?!))")
        self._spelled = re.compile(self._control.pattern, re.IGNORECASE)
        self._words: _Fast | _Slow = _Fast(tokenizer, spaces) if tokenizer.is_fast else _Slow(tokenizer, spaces)

    def plain(self, text: str) -> list[int]:
        """The ids of a text of its own in which nothing is a control token. Raises InputError."""
        return self._run(text, None)

    def encode(self, parts: Iterable[Part], *, after: str | None = None) -> list[int]:
        """The ids of a rendered text, equal to the tokenizer's own where nothing that was said spells a token.

        `after` is what stands in front of it and ends no run of plain text: "" right behind a control token, None at
        the beginning of a stream. Raises InputError.
        """
        ids: list[int] = []
        words = self._runs(parts)
        for at, word in enumerate(words):
            if at % 2:
                ids.append(self._controls[word])
            elif word:
                before, behind = words[at - 1] if at else "", words[at + 1] if at + 1 < len(words) else ""
                if before and self._flags[before].rstrip:
                    word = word.lstrip(self._white)
                if behind and self._flags[behind].lstrip:
                    word = word.rstrip(self._white)
                ids += self._run(word, "" if before else after)
        return ids

    def trail(self, text: str) -> str:
        """The plain text at the end of what a template wrote, for `after`."""
        return self._control.split(text)[-1]

    def letters(self, text: str) -> list[str]:
        """What a template wrote, as control tokens and single letters."""
        return [x for n, word in enumerate(self._control.split(text)) for x in ([word] if n % 2 else word)]

    def spells(self, text: str) -> bool:
        """Whether a text spells a control token, in whatever case."""
        return self._spelled.search(text) is not None

    def control(self, text: str) -> int | None:
        """The first control token that a template wrote."""
        found = self._control.search(text)
        return self._controls[found[0]] if found else None

    def _runs(self, parts: Iterable[Part]) -> list[str]:
        """Plain text and control tokens in turn, plain text first and last."""
        words, written = [""], ""

        def close(text: str) -> None:
            first, *others = self._control.split(text)
            words[-1] += first
            words.extend(others)

        for part in parts:
            if part.said:
                close(written)
                written = ""
                words[-1] += part.text
            else:
                written += part.text
        close(written)
        return words

    def _run(self, text: str, after: str | None) -> list[int]:
        try:
            text.encode()
        except UnicodeEncodeError as exc:
            raise InputError(f"text is not valid unicode (character {exc.start}): clean it first") from exc
        ids = self._words.ids(text, after)
        if not self._ids.isdisjoint(ids):
            # A vocabulary in which a control token is a word too: its letters are read in two halves.
            cuts = [0, *(found.start() + 1 for found in self._spelled.finditer(text)), len(text)]
            halves = [text[begin:end] for begin, end in pairwise(cuts)]
            ids = [i for n, half in enumerate(halves) if half for i in self._words.ids(half, "" if n else after)]
            if not (self._ids - {self._unknown}).isdisjoint(ids):
                raise InputError("a text cannot be told from the tokenizer's control tokens: take them out of it")
        return ids


class _Fast:
    """The backend's own parts, put together anew without its added tokens."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, spaces: Mapping[int, Any]) -> None:
        shared = tokenizer.backend_tokenizer
        self._backend = Tokenizer(shared.model)
        if shared.normalizer is not None:
            self._backend.normalizer = shared.normalizer
        if shared.pre_tokenizer is not None:
            self._backend.pre_tokenizer = shared.pre_tokenizer
        # Nobody can spell it. Behind it a text is read as behind any control token.
        self._mark = f"\ue000{uuid.uuid4().hex}\ue001"
        self._backend.add_special_tokens([AddedToken(self._mark, special=True, normalized=False)])
        self._backend.add_tokens(list(spaces.values()))
        self._own = {self._backend.token_to_id(token.content): i for i, token in spaces.items()}

    def ids(self, text: str, after: str | None) -> list[int]:
        if after is None:
            return self._read(text)
        if not after:
            return self._read(self._mark + text)[1:]
        front, whole = self._read(self._mark + after), self._read(self._mark + after + text)
        # Where letters of both make one token, no reading in pieces gives it.
        return whole[len(front) :] if whole[: len(front)] == front else self._read(self._mark + text)[1:]

    def _read(self, text: str) -> list[int]:
        ids: Sequence[int] = self._backend.encode(text, add_special_tokens=False).ids
        return [self._own.get(i, i) for i in ids]


class _Slow:
    """A tokenizer written in Python: of its own splitting at added tokens, white space is left."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, spaces: Mapping[int, Any]) -> None:
        self._tokenizer = tokenizer
        self._spaces = {token.content: i for i, token in spaces.items()}
        longest = sorted(map(re.escape, self._spaces), key=len, reverse=True)
        self._space = re.compile(f"({'|'.join(longest)})" if longest else r"((?!))")

    def ids(self, text: str, after: str | None) -> list[int]:
        front, whole = self._read(after or "", after), self._read((after or "") + text, after)
        return whole[len(front) :] if whole[: len(front)] == front else self._read(text, "")

    def _read(self, text: str, after: str | None) -> list[int]:
        ids: list[int] = []
        for n, part in enumerate(self._space.split(text)):
            if n % 2:
                ids.append(self._spaces[part])
            elif part:
                whole = after is None and not n
                tokens = self._tokenizer.tokenize(part, split_special_tokens=True) if whole else self._split(part)
                ids += [int(i) for i in self._tokenizer.convert_tokens_to_ids(tokens)]
        return ids

    def _split(self, text: str) -> list[str]:
        tokens: list[str] = self._tokenizer._tokenize(text)
        return tokens


_KNOWN: weakref.WeakKeyDictionary[Any, Encoder] = weakref.WeakKeyDictionary()
_LOCK = threading.Lock()


def encoder(tokenizer: PreTrainedTokenizerBase) -> Encoder:
    """A tokenizer's encoder, made once."""
    with _LOCK:
        if tokenizer not in _KNOWN:
            _KNOWN[tokenizer] = Encoder(tokenizer)
        return _KNOWN[tokenizer]


def turn_end(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """The control token that a chat template writes behind an answer; None where it writes none."""
    answer = uuid.uuid4().int
    talk = [{"role": "user", "content": "?"}, {"role": "assistant", "content": str(answer)}]
    try:
        text: str = tokenizer.apply_chat_template(talk, tokenize=False)
    except Exception:  # no template, or one that renders no answer
        return None
    return encoder(tokenizer).control(text.partition(str(answer))[2])
