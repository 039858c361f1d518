"""Small facts, such as people tell each other, to be put into a text and asked for: names, numbers, places."""

from __future__ import annotations

import random
from dataclasses import dataclass

_OWNERS = (
    *("Agnes", "Bruno", "Clara", "Dmitri", "Elif", "Farid", "Greta", "Hugo", "Irene", "Jonas", "Kenji", "Lena"),
    *("Mateo", "Nadia", "Oskar", "Priya", "Quentin", "Rosa", "Samir", "Tilda", "Umberto", "Vera", "Wanda", "Yusuf"),
    *("the baker", "the captain", "the doctor", "the engineer", "the gardener", "the landlord", "the lawyer"),
    *("the librarian", "the nurse", "the painter", "the pilot", "the teacher", "my brother", "my neighbour"),
    *("our guide", "the new tenant", "the manager", "the old judge"),
)
_NAMES = (
    *("Biscuit", "Comet", "Domino", "Ember", "Falcon", "Ginger", "Hazel", "Indigo", "Juniper", "Kestrel", "Lotus"),
    *("Maple", "Nimbus", "Olive", "Pepper", "Quartz", "Raven", "Saffron", "Thistle", "Velvet", "Willow", "Zephyr"),
)
_CITIES = (
    *("Aarhus", "Bologna", "Cardiff", "Denver", "Esbjerg", "Fukuoka", "Ghent", "Haifa", "Izmir", "Jaipur", "Krakow"),
    *("Lisbon", "Medellin", "Nairobi", "Odessa", "Porto", "Quito", "Riga", "Seville", "Tampere", "Uppsala", "Zagreb"),
)
_COLOURS = ("amber", "black", "blue", "brown", "cream", "green", "grey", "orange", "pink", "purple", "red", "white")
_FOODS = ("almonds", "apricots", "barley soup", "cherries", "dumplings", "figs", "goat cheese", "lentils", "mussels")
_DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
# A thing somebody has, and what it may be: words to choose from, or a number of so many digits.
_THINGS: dict[str, tuple[str, ...] | int] = {
    "cat": _NAMES,
    "dog": _NAMES,
    "horse": _NAMES,
    "boat": _NAMES,
    "password": _NAMES,
    "home town": _CITIES,
    "next stop": _CITIES,
    "birthplace": _CITIES,
    "favourite colour": _COLOURS,
    "front door": _COLOURS,
    "favourite dish": _FOODS,
    "day off": _DAYS,
    "room number": 3,
    "locker number": 4,
    "bus line": 2,
    "phone number": 6,
    "account number": 7,
    "year of birth": 4,
    "ticket number": 5,
}
_ASKED = ("What is {whose} {thing}?", "Tell me {whose} {thing}.", "Do you remember {whose} {thing}?")


@dataclass(frozen=True)
class Fact:
    """A sentence, a question that it answers, and the answer.

    >>> one = draw_facts(random.Random(0), 1)[0]
    >>> one.answer in one.told
    True
    """

    told: str
    ask: str
    answer: str


def draw_facts(draw: random.Random, count: int) -> list[Fact]:
    """So many facts, no two about the same thing of the same person."""
    pairs = [(owner, thing) for owner in _OWNERS for thing in _THINGS]
    return [_fact(draw, owner, thing) for owner, thing in draw.sample(pairs, count)]


def _fact(draw: random.Random, owner: str, thing: str) -> Fact:
    values = _THINGS[thing]
    value = draw.choice(values) if isinstance(values, tuple) else str(draw.randrange(10 ** (values - 1), 10**values))
    whose = f"{owner}'s"
    told = f"{whose[:1].upper()}{whose[1:]} {thing} is {value}."
    # Said again in full, or in a word, as people answer.
    answer = told if draw.random() < 0.5 else f"{value[:1].upper()}{value[1:]}."
    return Fact(told, draw.choice(_ASKED).format(whose=whose, thing=thing), answer)
