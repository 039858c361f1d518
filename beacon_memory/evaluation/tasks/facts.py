"""Facts drawn from sayings: what is said of somebody, whether it changes, and how it is asked for."""

from __future__ import annotations

import random
from dataclasses import dataclass

from beacon_memory.evaluation.tasks.sayings import LEADS, SAYINGS
from beacon_memory.evaluation.tasks.words import KIN, NAMES


@dataclass(frozen=True)
class Fact:
    """Something that is told in a talk, once or a second time with another value, and asked for."""

    about: tuple[int, str]  # which saying, and of whom or what: no other fact of the talk is about it
    group: str
    by: str  # who says it, "user" or "assistant"
    told: tuple[str, ...]  # what is said, in order
    ask: str
    gold: tuple[str, ...]  # ways to say the value that counts
    right: str
    wrong: tuple[str, ...]  # values of the same kind: that which was changed, those of others

    @property
    def changed(self) -> bool:
        """Whether it was another value at first."""
        return len(self.told) > 1


WRONG = 12  # values that a fact does not have, to choose from
CHANGED = 0.4  # of what may change


def draw_facts(draw: random.Random, count: int) -> list[Fact]:
    """So many facts of one talk, no two about the same and no two with the same value."""
    people = [f"{draw.choice(KIN)} {name}" for name in draw.sample(NAMES, 4)]
    found: dict[tuple[int, str], Fact] = {}
    taken: set[str] = set()
    while len(found) < count:
        saying = draw.choice(SAYINGS)
        who, thing = draw.choice(people), draw.choice(saying.things or ("",))
        about = SAYINGS.index(saying), who if "{name}" in saying.asked[0] else thing
        values = [saying.values(draw) for _ in range(WRONG)]
        values = [value for value in {value.gold: value for value in values}.values() if value.text not in taken]
        if about in found or len(values) < 4 or any(value.text in person for value in values for person in people):
            continue
        changes = bool(saying.changed) and draw.random() < CHANGED
        right, *others = values
        words = {"who": who, "name": who.split()[-1], "x": thing}
        told = [
            _sentence(draw.choice(LEADS) + draw.choice(saying.told), v=(others[0] if changes else right).text, **words)
        ]
        if changes:
            told.append(
                _sentence(draw.choice(LEADS) + draw.choice(saying.changed), v=right.text, old=others[0].text, **words)
            )
        ask = _sentence(draw.choice(saying.asked), **words)
        wrong = tuple(value.text for value in others)
        found[about] = Fact(about, saying.group, saying.by, tuple(told), ask, right.gold, right.text, wrong)
        taken |= {right.text, *((others[0].text,) if changes else ())}
    return list(found.values())


def _sentence(template: str, **words: str) -> str:
    """
    >>> _sentence("{who} is a {v}.", who="my aunt", v="optician")
    'My aunt is an optician.'
    """
    text = template.format(**words)
    for vowel in "aeiou":
        text = text.replace(f" a {vowel}", f" an {vowel}")
    for start in (". ", "? "):
        head, *rest = text.split(start)
        text = start.join([head, *(part[:1].upper() + part[1:] for part in rest)])
    return text[:1].upper() + text[1:]
