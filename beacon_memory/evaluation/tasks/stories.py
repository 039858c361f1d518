"""Questions about stories."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from typing import Any

from beacon_memory.evaluation.data import Data
from beacon_memory.evaluation.items import Item, Question
from beacon_memory.evaluation.tasks.reader import CHOICES, Reader, how_far

SECTIONS, EACH = 20, 2  # of a story: the furthest back, and how many questions of each distance
NEAR = 40  # answers about other stories, the nearest in length, from which those to choose from are drawn


def qa(reader: Reader, data: Data, seed: int) -> Iterator[Item]:
    """Stories up to some section, and questions about sections near and far."""
    draw = random.Random(seed)
    stories = data.stories()
    draw.shuffle(stories)
    told = [(number, _gold(reader, entry)) for number, story in enumerate(stories) for entry in story["questions"]]
    asked: set[tuple[int, int]] = set()
    before = -1
    while len(asked) > before:  # until a round over all stories finds nothing new to ask
        before = len(asked)
        for number, story in enumerate(stories):
            if item := _asked(reader, story, number, asked, told, draw):
                yield item


def _asked(
    reader: Reader,
    story: dict[str, Any],
    index: int,
    asked: set[tuple[int, int]],
    told: Sequence[tuple[int, tuple[int, ...]]],
    draw: random.Random,
) -> Item | None:
    """A story up to a section drawn, and what was not asked of it yet, near and far."""
    sections = [str(section).strip() for section in story["sections"]]
    last = draw.randint(min(5, len(sections)), len(sections))
    first = max(0, last - SECTIONS)
    questions: list[Question] = []
    for number, entry in draw.sample(list(enumerate(story["questions"])), len(story["questions"])):
        about = [int(part) for part in str(entry["section"]).replace(",", " ").split()]
        group = how_far(last - max(about) + 1) if first < min(about) <= max(about) <= last else ""
        if (index, number) in asked or not group or sum(question.group == group for question in questions) >= EACH:
            continue
        asked.add((index, number))
        gold = tuple(str(answer) for answer in entry["answer"])
        right = _gold(reader, entry)
        foreign = sorted({answer for number, answer in told if number != index and answer != right})
        draw.shuffle(foreign)
        near = sorted(foreign, key=lambda answer: abs(len(answer) - len(right)))[:NEAR]
        answers = (right, *draw.sample(near, min(CHOICES - 1, len(near))))
        prompt = reader.prompt(f"{entry['question']} Answer in a few words.")
        questions.append(Question(prompt, answers, query=str(entry["question"]), gold=gold, group=group))
    context = (*reader.start, *reader.encode("\n\n".join(sections[first:last])))
    return Item(str(story.get("story", index)), reader.start, context, tuple(questions)) if questions else None


def _gold(reader: Reader, entry: dict[str, Any]) -> tuple[int, ...]:
    """The right answer as it would begin a reply."""
    gold = str(entry["answer"][0])
    return reader.answer(gold[:1].upper() + gold[1:])
