"""Stories with questions, of a fairytaleqa file: the first that the base model can read whole."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from beacon_memory import BeaconModel
from beacon_memory.evaluation.items import Item, Question
from beacon_memory.evaluation.tasks import Reader
from beacon_memory.talk.sources import read_lines

EACH = 5  # questions of a story, spread evenly over its list
LIMIT = 7500  # tokens of a story, so that it fits the 8192 positions with a question and an answer


@dataclass(frozen=True)
class Story:
    """A story, and what is asked of it."""

    name: str
    sections: tuple[str, ...]
    questions: tuple[Question, ...]
    reader: Reader

    @property
    def text(self) -> str:
        """The whole story."""
        return "\n\n".join(self.sections)

    @cached_property
    def item(self) -> Item:
        """The story as evaluation takes it."""
        context = (*self.reader.start, *self.reader.encode(self.text))
        return Item(self.name, self.reader.start, context, self.questions)


def stories(model: BeaconModel, path: Path, *, questions: int) -> list[Story]:
    """As many stories as ask so many questions, in the order of the file."""
    reader = Reader(model)
    found: list[Story] = []
    for _, entry in read_lines(path):
        if len(found) * EACH >= questions:
            break
        sections = tuple(str(section).strip() for section in entry["sections"])
        story = Story(str(entry["story"]), sections, tuple(_asked(reader, entry)), reader)
        if len(entry["questions"]) >= EACH and len(story.item.context) <= LIMIT:
            found.append(story)
    return found


def _asked(reader: Reader, story: dict[str, Any]) -> Iterator[Question]:
    entries = story["questions"]
    for entry in (entries[i * len(entries) // EACH] for i in range(EACH)):
        gold = tuple(str(answer) for answer in entry["answer"])
        right = reader.answer(gold[0][:1].upper() + gold[0][1:])
        asked = f"{entry['question']} Answer in a few words."
        yield Question(reader.prompt(asked), (right,), query=str(entry["question"]), gold=gold)
