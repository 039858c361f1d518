"""What is measured: a context to remember, and what is asked once only the memory of it is left."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from functools import cached_property

ANSWERS = ("written", "ranked")  # how a question may be answered


@dataclass(frozen=True)
class Question:
    """Something read behind a memory: a prompt, and answers of which the first is right."""

    prompt: tuple[int, ...]  # read, not scored; at least one token
    answers: tuple[tuple[int, ...], ...]
    query: str = ""  # what a retriever searches with
    gold: tuple[str, ...] = ()  # right answers in words, where an answer is written too
    group: str = ""  # what the question is one of; several groups are joined by "; "
    ask: tuple[int, ...] = ()  # the prompt of the answer that is written, where it is another one

    @property
    def asked(self) -> tuple[int, ...]:
        """The prompt behind which an answer is written."""
        return self.ask or self.prompt


@dataclass(frozen=True)
class Item:
    """A context and its questions. A memory is made once and asked all of them."""

    source: str  # the document it comes from: memory of another source must not help
    start: tuple[int, ...]  # opening tokens of any text of this model, what is read where there is no memory
    context: tuple[int, ...]
    questions: tuple[Question, ...]
    raw: int = 0  # newest tokens of the context that are read as they are; what stands before them is folded
    system: tuple[int, ...] = ()  # a session's system prompt: read in front of the raw tail, and without memory too
    talk: bool = False  # whether what is folded is a talk; a document otherwise

    @property
    def opening(self) -> tuple[int, ...]:
        """What is read where there is no memory."""
        return (*self.start, *self.system)

    @cached_property
    def digest(self) -> str:
        """A hash of all that is read and asked: results of an equal item can be used again."""
        return hashlib.sha256(json.dumps(asdict(self)).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Task:
    """A named set of items, and the headline figure of its ranked answers."""

    name: str
    about: str
    metric: str  # "kept", "loss" or "accuracy"
    items: tuple[Item, ...]
    ratio: int = 0  # the only ratio its items are made for; 0 for any

    @property
    def written(self) -> bool:
        """Whether answers to it can be written, not ranked alone."""
        return any(question.gold for item in self.items for question in item.questions)
