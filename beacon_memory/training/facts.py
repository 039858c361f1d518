"""Small facts, as people tell them about things or themselves, to be put into a text and asked for."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

_OWNERS = (
    *("Agnes", "Bruno", "Clara", "Dmitri", "Elif", "Farid", "Greta", "Hugo", "Irene", "Jonas", "Kenji", "Lena"),
    *("Mateo", "Nadia", "Oskar", "Priya", "Quentin", "Rosa", "Samir", "Tilda", "Umberto", "Vera", "Wanda", "Yusuf"),
    *("the baker", "the captain", "the doctor", "the engineer", "the gardener", "the landlord", "the lawyer"),
    *("the librarian", "the nurse", "the painter", "the pilot", "the teacher", "my brother", "my neighbour"),
    *("our guide", "the new tenant", "the manager", "the old judge"),
)
# What else may own something: any of these words with any of those, so that a pair is hardly ever met twice.
_ADJECTIVES = (
    *("big", "black", "blue", "brass", "broken", "clay", "copper", "corner", "crooked", "double", "dusty"),
    *("early", "eastern", "empty", "far", "first", "golden", "granite", "grey", "heavy", "hidden", "iron"),
    *("ivory", "large", "late", "little", "long", "lower", "marble", "narrow", "new", "night", "oak"),
    *("painted", "pine", "quiet", "round", "royal", "second", "short", "small", "southern", "spare", "summer"),
    *("third", "upper", "velvet", "village", "western", "white", "wide", "wooden", "yellow", "young"),
)
_OBJECTS = (
    *("attic", "bakery", "balcony", "barn", "basket", "bench", "bicycle", "bookshop", "bottle", "box", "cabin"),
    *("cabinet", "camera", "castle", "chapel", "clock", "coach", "corridor", "cottage", "counter", "crane"),
    *("cupboard", "desk", "drawer", "engine", "factory", "farm", "fence", "ferry", "fountain", "garage"),
    *("guitar", "hall", "hangar", "hotel", "island", "jacket", "kennel", "kiosk", "kitchen", "ladder"),
    *("laundry", "letter", "lift", "locker", "lorry", "market", "mill", "mine", "mirror", "museum", "orchard"),
    *("oven", "package", "palace", "parcel", "passage", "picture", "platform", "pond", "pump", "quarry"),
    *("radio", "safe", "sailor", "school", "shed", "shelf", "ship", "shop", "stage", "staircase", "station"),
    *("statue", "studio", "suitcase", "table", "tent", "theatre", "tractor", "train", "trunk", "tunnel", "van"),
    *("vault", "villa", "wagon", "wardrobe", "warehouse", "well", "workshop", "yard"),
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
    "access code": 5,
    "key number": 3,
    "serial number": 6,
    "price": 3,
    "label": _NAMES,
}


class _Kind(NamedTuple):
    """What people tell of themselves, how it is asked for, and the answer."""

    told: tuple[str, ...]
    asked: tuple[str, ...]
    answer: str
    values: tuple[str, ...] | int = ()  # words to choose from, those of people if none, or a number of so many digits


_OWN = {
    "name": _Kind(
        ("My name is {}.", "I am {}.", "I'm called {}."),
        ("What is my name?", "Who am I?"),
        "Your name is {}.",
    ),
    "home": _Kind(
        ("I live in {}.", "My home is in {}.", "I moved to {} last year."),
        ("Where do I live?", "Which city do I live in?"),
        "You live in {}.",
        _CITIES,
    ),
    "work": _Kind(
        ("I work as a {}.", "I am a {}.", "By trade I am a {}."),
        ("What do I do for a living?", "What is my job?"),
        "You work as a {}.",
        ("barber", "carpenter", "cook", "driver", "gardener", "librarian", "mechanic", "painter", "surgeon", "welder"),
    ),
    "pet": _Kind(
        ("I have a dog called {}.", "My dog is called {}.", "My dog's name is {}."),
        ("What is my dog called?", "What is the name of my dog?"),
        "Your dog is called {}.",
        _NAMES,
    ),
    "cat": _Kind(
        ("I have a cat named {}.", "My cat is called {}."),
        ("What is my cat called?", "What is my cat's name?"),
        "Your cat is called {}.",
        _NAMES,
    ),
    "sister": _Kind(
        ("My sister is called {}.", "I have a sister, {}."),
        ("What is my sister's name?",),
        "Your sister is called {}.",
    ),
    "friend": _Kind(
        ("My best friend is {}.", "My best friend's name is {}."),
        ("Who is my best friend?",),
        "Your best friend is {}.",
    ),
    "colour": _Kind(
        ("My favourite colour is {}.", "I like {} best of all colours."),
        ("What is my favourite colour?", "Which colour do I like best?"),
        "Your favourite colour is {}.",
        _COLOURS,
    ),
    "food": _Kind(
        ("My favourite food is {}.", "I love {}."),
        ("What do I like to eat?", "What is my favourite food?"),
        "You like {}.",
        _FOODS,
    ),
    "trip": _Kind(
        ("I am going to {} on holiday.", "Next month I travel to {}."),
        ("Where am I travelling to?",),
        "You are travelling to {}.",
        _CITIES,
    ),
    "day": _Kind(("My day off is {}.",), ("When is my day off?",), "Your day off is {}.", _DAYS),
    "code": _Kind(
        ("My door code is {}.", "The code of my door is {}."),
        ("What is my door code?",),
        "Your door code is {}.",
        5,
    ),
    "flat": _Kind(("I live in flat {}.",), ("Which flat do I live in?",), "You live in flat {}.", 2),
}
_ONSETS = ("b", "br", "c", "d", "dr", "f", "g", "gr", "h", "j", "k", "l", "m", "n", "p", "r", "s", "st", "t", "v", "z")
_VOWELS = ("a", "e", "i", "o", "u", "ia", "ee", "ou")
_ENDS = ("", "l", "n", "r", "s", "th", "x", "sh", "nd", "ck")
# Two ways to say whose something is.
_WHOSE = ("{owner}'s {thing}", "the {thing} of {owner}")
_ASKED = ("What is {what}?", "Tell me {what}.", "Do you remember {what}?")
REPLIES = ("Noted.", "Nice to meet you!", "Thank you for telling me.", "Good to know. How can I help you?", "I see.")


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
    value: str  # the answer in as few words as can be


def draw_facts(draw: random.Random, count: int) -> list[Fact]:
    """So many facts, no two about the same thing of the same owner. Half of the time all are about one kind of thing,
    so that the owner has to be remembered with the thing.
    """
    things = list(_THINGS) if draw.random() < 0.5 else [draw.choice(list(_THINGS))]
    objects = [f"the {draw.choice(_ADJECTIVES)} {name}" for name in draw.sample(_OBJECTS, len(_OWNERS))]
    pairs = [(owner, thing) for owner in (*_OWNERS, *objects) for thing in things]
    return [_fact(draw, owner, thing) for owner, thing in draw.sample(pairs, min(count, len(pairs)))]


def draw_own(draw: random.Random, count: int, *, sentences: bool = False) -> list[Fact]:
    """So many facts that somebody tells of himself, no two about the same; answered in full sentences, or half of the
    time in a word.
    """
    people = [owner for owner in _OWNERS if owner[0].isupper()]
    found = []
    for thing in draw.sample(list(_OWN), min(count, len(_OWN))):
        kind = _OWN[thing]
        value = _value(draw, kind.values or people)
        said = kind.answer if sentences or draw.random() < 0.5 else "{}."
        told = draw.choice(kind.told).format(value)
        found.append(Fact(told, draw.choice(kind.asked), _capital(said.format(value)), value))
    return found


def _value(draw: random.Random, values: Sequence[str] | int) -> str:
    """One of the words, or a number of so many digits. A name is half of the time one that nobody has."""
    if isinstance(values, int):
        return str(draw.randrange(10 ** (values - 1), 10**values))
    named = values[0][0].isupper() and values is not _DAYS
    return draw_name(draw, values) if named else draw.choice(values)


def draw_name(draw: random.Random, names: Sequence[str]) -> str:
    """One of the names, or as often one that nobody has."""
    return invented(draw) if draw.random() < 0.5 else draw.choice(names)


def invented(draw: random.Random) -> str:
    """A name that nobody has, so that no list of names can be learnt by heart.

    >>> invented(random.Random(1))
    'Corosh'
    """
    return "".join(draw.choice(_ONSETS) + draw.choice(_VOWELS) for _ in range(2)).capitalize() + draw.choice(_ENDS)


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _fact(draw: random.Random, owner: str, thing: str) -> Fact:
    value = _value(draw, _THINGS[thing])
    what = draw.choice(_WHOSE).format(owner=owner, thing=thing)
    told = _capital(f"{what} is {value}.")
    # Said again in full, or in a word, as people answer.
    answer = told if draw.random() < 0.5 else _capital(f"{value}.")
    return Fact(told, draw.choice(_ASKED).format(what=what), answer, value)
