"""What is told of sessions, documents and answers: plain values, which need neither a model nor a store."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

DOCUMENT = "document"  # role of the transcript's entries that say that a document was read


@dataclass(frozen=True)
class About:
    """What is told of a model and its memory."""

    name: str
    version: str  # of beacon-memory where it runs
    positions: int  # of the model
    slots: int  # that a session may keep, where nothing else is said
    ratio: int
    finder: bool  # whether passages are found, and read again


@dataclass(frozen=True)
class SessionInfo:
    """What a session holds and what it costs."""

    session: str
    version: int  # grows with each change: give it as `at_least` to be told when a store has gone back
    messages: int
    documents: int
    tokens: int  # read in all
    slots: int  # KV entries kept
    tail: int  # newest tokens, raw: their ids are kept, their KV is computed again
    ratios: dict[int, int]  # ratio -> tokens folded at it
    ratio: int  # of what is folded next
    budget: int  # the most slots it may keep
    bytes: int  # of all slots, and of what recurrent layers have read
    raw_bytes: int  # what a bfloat16 KV cache of the same tokens would take


@dataclass(frozen=True)
class Branch:
    """What a session was before a message list parted from it."""

    name: str  # give it to `checkout`
    messages: tuple[Mapping[str, Any], ...]  # its transcript, oldest first


@dataclass(frozen=True)
class Usage:
    """What a turn read and wrote, in tokens as the user counts them, and what that cost."""

    tokens: int  # that the answer could see: memory, system prompt, messages
    read: int  # of these, from memory: folded before, not computed again
    folded: int  # of these, folded now
    answer: int  # tokens of the answer
    slots: int  # KV entries in front of the prompt
    prefill: int  # raw tokens computed behind them
    ratio: int  # of what is folded next


@dataclass(frozen=True)
class Completion:
    """The answer to a text without a chat template, and what it took."""

    text: str
    finish: str  # "stop" or "length"
    tokens: int  # of the text and the documents in front
    answer: int  # tokens of the answer
    sources: tuple[Mapping[str, Any], ...] = ()  # what was read again, as `Source.to_dict` has it


@dataclass(frozen=True)
class Document:
    """A text under the name its owner gives it."""

    key: str
    text: str
    about: Mapping[str, Any] = field(default_factory=dict)  # JSON that is kept beside it
    hash: str = ""  # its owner's: equal hashes mean an equal document; made of text and `about` when empty

    @property
    def identity(self) -> str:
        """What tells it from an older or newer one of the same key."""
        if self.hash:
            return self.hash
        told = json.dumps(self.about, sort_keys=True, default=str)
        return hashlib.sha256(f"{told}\n{self.text}".encode()).hexdigest()


@dataclass(frozen=True)
class DocumentInfo:
    """What is known of a document without reading a segment."""

    key: str
    hash: str
    tokens: int
    slots: int


@dataclass(frozen=True)
class Written:
    """What a `put` did."""

    changed: tuple[bool, ...]  # of the documents given, in order
    windows: int  # that the model folded for it
