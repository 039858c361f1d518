"""What is measured: a context to remember, and what is asked once only the memory of it is left."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from functools import cached_property


@dataclass(frozen=True)
class Question:
    """Something read behind a memory: a prompt, and answers of which the first is right."""

    prompt: tuple[int, ...]  # read, not scored; at least one token
    answers: tuple[tuple[int, ...], ...]
    query: str = ""  # what a retriever searches with
    gold: tuple[str, ...] = ()  # right answers in words, where an answer is written too
    group: str = ""  # what the item is one of: how far back, how long, how deep


@dataclass(frozen=True)
class Item:
    """A context and its questions. A memory is made once and asked all of them."""

    source: str  # the document it comes from: memory of another source must not help
    start: tuple[int, ...]  # opening tokens of any text of this model, what is read where there is no memory
    context: tuple[int, ...]
    questions: tuple[Question, ...]

    @cached_property
    def digest(self) -> str:
        """A hash of all that is read and asked: results of an equal item can be used again."""
        return hashlib.sha256(json.dumps(asdict(self)).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Task:
    """A named set of items, what its headline figure is, and how many of the newest tokens stay raw."""

    name: str
    about: str
    metric: str  # "kept", "loss" or "accuracy"
    items: tuple[Item, ...]
    raw: int = 0  # newest tokens that are read as they are; what stands before them is folded as a document
