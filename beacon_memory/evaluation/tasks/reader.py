"""How a model reads what a task is made of: its tokens, its chat template, and places in long texts."""

from __future__ import annotations

import random
from collections.abc import Iterator
from itertools import count

from beacon_memory.errors import InputError
from beacon_memory.evaluation.data import Data
from beacon_memory.models.model import BeaconModel
from beacon_memory.talk.transcript import Transcript

CHOICES = 8  # answers to choose from
BACK = ((2, "1-2 back"), (5, "3-5 back"), (10, "6-10 back"), (10**9, "11 and more back"))


class Reader:
    """How a model reads: its tokens, and its chat template around what is asked."""

    def __init__(self, model: BeaconModel) -> None:
        self.encode = model.encode
        self.decode = model.decode
        self.transcript = Transcript(model.tokenizer)
        self.start = tuple(self.transcript.start)
        self.system = tuple(self.transcript.system(None))
        self.config = model.config

    def prompt(self, question: str, begin: str = "") -> tuple[int, ...]:
        """A question as `Session.ask` puts it behind a memory, and how the answer begins."""
        return (*self.system, *self.asked(question), *(self.encode(begin) if begin else ()))

    def asked(self, question: str) -> tuple[int, ...]:
        """A question, and the header of its answer."""
        return (*self.turn("user", question), *self.transcript.header())

    def turn(self, role: str, content: str) -> tuple[int, ...]:
        """The ids of a message."""
        return tuple(self.transcript.turn({"role": role, "content": content}))

    def answer(self, text: str) -> tuple[int, ...]:
        """The ids of an answer."""
        return tuple(self.encode(text))


def places(reader: Reader, data: Data, seed: int, *, length: int) -> Iterator[tuple[str, list[int], int]]:
    """Text after text, and a place in it from which so many tokens follow. Raises InputError."""
    draw = random.Random(seed)
    texts = [(name, reader.encode(text)) for name, text in data.texts().items()]
    enough = [(name, ids) for name, ids in texts if len(ids) >= length]
    if not enough:
        longest = max(len(ids) for _, ids in texts)
        raise InputError(f"texts of {length} tokens are needed, the longest here has {longest}: give longer ones")
    for number in count():
        name, ids = enough[number % len(enough)]
        yield name, ids, draw.randrange(len(ids) - length + 1)


def how_far(distance: int) -> str:
    """How far back something was said, as a group."""
    return next(name for limit, name in BACK if distance <= limit)
