"""Questions about what a user said in so many words."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from typing import Any

from beacon_memory.evaluation.data import Data
from beacon_memory.evaluation.items import Item, Question
from beacon_memory.evaluation.tasks.reader import CHOICES, Reader, how_far


def dialogue(reader: Reader, data: Data, seed: int) -> Iterator[Item]:
    """Whole conversations, and what the user said in them."""
    draw = random.Random(seed)
    talks = data.dialogues()
    values: dict[str, list[str]] = {}
    for talk in talks:
        for slot, value, _ in _stated(talk["turns"]):
            if value not in values.setdefault(slot, []):
                values[slot].append(value)
    for index in draw.sample(range(len(talks)), len(talks)):
        turns = talks[index]["turns"]
        said = " ".join(str(turn["content"]) for turn in turns).lower()
        questions = []
        for slot, value, back in _stated(turns):
            others = [
                other for other in values[slot] if other.lower() not in said and value.lower() not in other.lower()
            ]
            if len(others) < CHOICES - 1:
                continue
            name = slot.replace("_", " ")
            choices = [value, *draw.sample(others, CHOICES - 1)]
            questions.append(
                Question(
                    reader.prompt(f"What was the {name} I told you?", begin=f"The {name} you told me was"),
                    tuple(reader.answer(f" {choice}.") for choice in choices),
                    query=f"What was the {name} I told you?",
                    gold=(value,),
                    group=how_far(back),
                    ask=reader.prompt(f"What was the {name} I told you?"),
                )
            )
        if questions:
            ids = [i for turn in turns for i in reader.transcript.turn({k: turn[k] for k in ("role", "content")})]
            yield Item(str(index), reader.start, (*reader.start, *ids), tuple(questions))


def _stated(turns: Sequence[dict[str, Any]]) -> list[tuple[str, str, int]]:
    """What the user said in so many words: slot, value, and how many turns ago; slots with two values are left out."""
    everything: dict[str, set[str]] = {}
    for turn in turns:
        for slot, value in turn.get("slots", {}).items():
            everything.setdefault(slot, set()).add(str(value).lower())
    found: dict[str, tuple[str, str, int]] = {}
    for number, turn in enumerate(turns):
        for slot, value in turn.get("slots", {}).items():
            if turn["role"] == "user" and len(everything[slot]) == 1 and str(value).lower() in turn["content"].lower():
                found[slot] = (slot, str(value), len(turns) - number)
    return list(found.values())
