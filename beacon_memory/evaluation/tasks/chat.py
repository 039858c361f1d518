"""What was said in passing: talks as a session keeps them, and questions in free words."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count

from beacon_memory.errors import InputError
from beacon_memory.evaluation.data import Data
from beacon_memory.evaluation.items import Item, Question
from beacon_memory.evaluation.scoring import said
from beacon_memory.evaluation.tasks.facts import Fact, draw_facts
from beacon_memory.evaluation.tasks.reader import CHOICES, Reader

# Of talks in turn: rounds of a user's message and an answer, and how many facts are told.
SIZES = ((50, 8), (5, 3), (30, 7), (15, 5), (40, 8), (20, 6))
BRIEFLY = "Answer in a few words."
TRIES = 100  # draws of facts until none of them stands in the small talk already

Message = tuple[str, str]  # role, content


@dataclass(frozen=True)
class Talk:
    """A conversation, what is told in it, and in which message for the last time."""

    messages: tuple[Message, ...]
    facts: tuple[Fact, ...]
    places: tuple[int, ...]


def chat(reader: Reader, data: Data, seed: int) -> Iterator[Item]:
    """Talks of 5 to 50 rounds, folded as a session folds them: the newest tokens raw, whole windows before them."""
    for number in count():
        draw = random.Random(f"chat {seed} {number}")
        rounds, facts = SIZES[number % len(SIZES)]
        talk = talk_of(draw, small_talk(data, draw, rounds), facts)
        turns = [reader.turn(*message) for message in talk.messages]
        ids = (*reader.start, *(i for turn in turns for i in turn))
        folded = _folded(reader, len(ids))
        starts = [len(reader.start) + sum(map(len, turns[:place])) for place in talk.places]
        groups = ["in slots" if start < folded else "in the raw tail" for start in starts]
        yield Item(
            source=f"talk {number}",
            start=reader.start,
            context=ids,
            questions=asked_of(reader, draw, talk, groups=groups),
            raw=len(ids) - folded,
            system=reader.system,
            talk=True,
        )


def _folded(reader: Reader, tokens: int) -> int:
    """How many of a session's first tokens are folded."""
    config, done = reader.config, 0
    while tokens - done >= (size := config.window + (0 if done else config.sink)) + config.keep_last:
        done += size
    return done


def small_talk(data: Data, draw: random.Random, rounds: int) -> list[Message]:
    """So many rounds of conversations of nothing in particular, one after another. Raises InputError."""
    talks = data.talks()
    draw.shuffle(talks)
    texts = [text for talk in talks for text in talk[: len(talk) // 2 * 2]][: 2 * rounds]
    if len(texts) < 2 * rounds:
        raise InputError(f"{rounds} rounds of small talk are needed, there are {len(texts) // 2}: give more of it")
    return [(("user", "assistant")[n % 2], text) for n, text in enumerate(texts)]


def talk_of(draw: random.Random, messages: Sequence[Message], count: int) -> Talk:
    """Small talk with so many facts told in it, each in a message of its own where there are enough."""
    everything = "\n".join(text for _, text in messages)
    for _ in range(TRIES):
        facts = draw_facts(draw, count)
        others = [
            [everything, *(text for other in facts if other is not fact for text in other.told)] for fact in facts
        ]
        if not any(said("\n".join(texts), fact.gold) for texts, fact in zip(others, facts, strict=True)):
            break
    else:
        raise InputError("the small talk says all that could be told in it: give other small talk")
    free = {by: [n for n, (role, _) in enumerate(messages) if role == by] for by in ("user", "assistant")}
    for places in free.values():
        draw.shuffle(places)
    told: dict[int, list[str]] = {}
    last: list[int] = []
    for fact in facts:
        # Each message is given one before any is given a second.
        chosen = sorted(free[fact.by][: len(fact.told)])
        for place, sentence in zip(chosen, fact.told, strict=True):
            told.setdefault(place, []).append(sentence)
            free[fact.by].remove(place)
            free[fact.by].append(place)
        last.append(chosen[-1])
    said_so = [(role, _passing(draw, text, told.get(n, ()))) for n, (role, text) in enumerate(messages)]
    return Talk(tuple(said_so), tuple(facts), tuple(last))


def _passing(draw: random.Random, text: str, told: Sequence[str]) -> str:
    """A message with something else told in it."""
    for sentence in told:
        text = draw.choice((f"{sentence} {text}", f"{sentence} Anyway. {text}", f"{text} {sentence}"))
    return text


def asked_of(
    reader: Reader, draw: random.Random, talk: Talk, *, group: str = "", groups: Sequence[str] = ()
) -> tuple[Question, ...]:
    """A question about each fact of a talk; where it stands is its group, and what kind of fact it is."""
    found = []
    for fact, place in zip(talk.facts, groups or [group] * len(talk.facts), strict=True):
        # The value it had is always there to choose, then what others have.
        others = [other.right for other in talk.facts if other is not fact and other.about[0] == fact.about[0]]
        wrong = list(dict.fromkeys([*fact.wrong[:1], *others, *fact.wrong[1:]]))[: CHOICES - 1]
        answers = tuple(reader.answer(f"{text[:1].upper()}{text[1:]}.") for text in (fact.right, *wrong))
        kind = "changed since" if fact.changed else fact.group
        found.append(
            Question(
                reader.asked(f"{fact.ask} {BRIEFLY}"), answers, query=fact.ask, gold=fact.gold, group=f"{place}; {kind}"
            )
        )
    return tuple(found)
