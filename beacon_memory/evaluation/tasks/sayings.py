"""What people say in passing, and how it is asked for later: templates and the words they are filled with.

None of it is worded as what beacons are trained on is (training/facts.py and chats.py), and the words are others.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Collection
from dataclasses import dataclass

from beacon_memory.evaluation.tasks.words import (
    ALLERGENS,
    ANIMALS,
    DAYS,
    FIRST,
    GIFTS,
    INSTRUMENTS,
    JOBS,
    MONTHS,
    NAMES,
    PETS,
    SECOND,
    STREETS,
    TOWNS,
    WAYS,
)


@dataclass(frozen=True)
class Value:
    """What a fact is about: as it is told, and all ways in which it may be said rightly."""

    text: str
    gold: tuple[str, ...]


def _of(words: Collection[str]) -> Callable[[random.Random], Value]:
    ordered = tuple(words)

    def drawn(draw: random.Random) -> Value:
        word = draw.choice(ordered)
        return Value(word, (word,))

    return drawn


def _pair(draw: random.Random) -> Value:
    text = f"{draw.choice(FIRST)} {draw.choice(SECOND)}"
    return Value(f"the {text}", (text,))


def _street(draw: random.Random) -> Value:
    street, way, number = draw.choice(STREETS), draw.choice(WAYS), draw.randrange(11, 99)
    short = {"Lane": "Ln", "Road": "Rd", "Street": "St", "Close": "Cl", "Terrace": "Ter", "Hill": "Hill"}[way]
    return Value(f"{number} {street} {way}", (f"{number} {street} {way}", f"{number} {street} {short}"))


def _date(draw: random.Random) -> Value:
    month, day = draw.choice(MONTHS), draw.randrange(4, 29)
    text = f"{month} {day}" if draw.random() < 0.5 else f"the {day}{_ending(day)} of {month}"
    return Value(text, (f"{month} {day}", f"{day} {month}"))


def _ending(day: int) -> str:
    return "th" if 10 < day < 14 else {1: "st", 2: "nd", 3: "rd"}.get(day % 10, "th")


def _time(draw: random.Random) -> Value:
    text = f"{draw.randrange(6, 12)}:{draw.choice(('05', '10', '20', '25', '35', '40', '50', '55'))}"
    return Value(text, (text,))


def _amount(draw: random.Random) -> Value:
    number = str(draw.choice([n for n in range(23, 400) if n % 10]))
    return Value(f"{number} dollars", (number,))


def _code(draw: random.Random) -> Value:
    number = str(draw.randrange(1000, 10000))
    return Value(number, (number,))


def _day(draw: random.Random) -> Value:
    day = draw.choice(DAYS)
    return Value(f"{day}s", (day, f"{day}s"))


@dataclass(frozen=True)
class Saying:
    """Something said in passing: {v} is the value, {old} the one it had before, {x} one of `things`, {who} somebody and
    {name} the same one's name alone.
    """

    group: str
    values: Callable[[random.Random], Value]
    told: tuple[str, ...]
    asked: tuple[str, ...]
    changed: tuple[str, ...] = ()  # how it is said that it is another now
    things: tuple[str, ...] = ()
    by: str = "user"


OWN, OTHERS, DATED, ASSISTANT = "own", "of others", "dates and times", "said by the assistant"
LEADS = ("By the way, ", "Oh, before I forget it, ", "Just so you know, ", "", "")
SAYINGS = (
    Saying(
        OWN,
        _of(PETS),
        ("our {x} is called {v}.", "we have a {x} called {v}."),
        ("What is the name of our {x}?", "What is our {x} called?"),
        ("we changed our minds, our {x} is called {v} now and not {old}.",),
        ANIMALS,
    ),
    Saying(
        OWN,
        _pair,
        ("our {x} is called {v}.", "we gave our {x} a name, {v}."),
        ("What is our {x} called?", "What is the name of our {x}?"),
        ("our {x} has a new name, it is called {v} now and not {old}.",),
        ("boat", "band", "quiz team", "caravan", "choir", "theatre group"),
    ),
    Saying(
        OWN,
        _of(TOWNS),
        ("the flat I rent is in {v}.", "I found a flat in {v}."),
        ("In which town is my flat?", "Where is the flat that I rent?"),
        ("I moved. The flat I rent now is in {v} and not in {old}.", "I moved. I found a flat in {v} and left {old}."),
    ),
    Saying(
        OWN,
        _street,
        ("the address of the {x} is {v}.", "you find the {x} at {v}."),
        ("What is the address of the {x}?", "At which address is the {x}?"),
        ("the {x} moved. The address of the {x} is {v} now and not {old}.",),
        ("clinic", "gallery", "workshop", "kindergarten", "community centre", "bike shop"),
    ),
    Saying(
        OWN,
        _amount,
        ("the {x} cost {v}.", "I bought a {x}, and the {x} cost {v}."),
        ("How much did the {x} cost?", "What was the price of the {x}?"),
        ("I looked at the bill again, the {x} cost {v} and not {old}.",),
        ("lampshade", "raincoat", "bicycle", "coffee grinder", "rug", "bookcase", "frying pan", "backpack"),
    ),
    Saying(
        OWN,
        _amount,
        ("the rent of the {x} is {v}.", "they ask {v} a month for the {x}, that is the rent."),
        ("How much is the rent of the {x}?", "What is the rent of the {x}?"),
        ("the rent of the {x} went up, it is {v} now and not {old}.",),
        ("garage", "garden plot", "storage room", "rehearsal room"),
    ),
    Saying(
        OWN,
        _code,
        ("the number of the {x} is {v}.", "they gave me a number for the {x}, {v}."),
        ("What is the number of the {x}?", "Which number does the {x} have?"),
        ("the {x} got another number. The number of the {x} is {v} now and not {old}.",),
        ("invoice", "parcel", "reservation", "insurance policy", "library card"),
    ),
    Saying(
        OWN,
        _pair,
        ("the name of the {x} is {v}.", "we went to a {x} called {v}."),
        ("What is the name of the {x}?", "What is the {x} called?"),
        ("the {x} got a new name, it is called {v} now and not {old}.",),
        ("pub", "restaurant", "bookshop", "tea house", "record shop", "hotel"),
    ),
    Saying(
        OWN,
        _of(NAMES),
        ("the name of the {x} is {v}.", "we have a new {x} called {v}."),
        ("What is the name of the {x}?", "What is the {x} called?"),
        ("we have another {x}. The name of the {x} is {v} now and not {old}.",),
        ("landlord", "dentist", "plumber", "estate agent", "babysitter", "swimming coach"),
    ),
    Saying(
        OTHERS,
        _pair,
        ("{who} wrote a novel called {v}.", "the novel of {who} has the title {v}."),
        ("What is the title of {name}'s novel?", "What is {name}'s novel called?"),
        ("{name} changed the title of the novel, from {old} to {v}.",),
    ),
    Saying(
        OTHERS,
        _of(PETS),
        ("{who} has a {x} called {v}.", "the {x} of {who} is called {v}."),
        ("What is the name of {name}'s {x}?", "What is {name}'s {x} called?"),
        (),
        ANIMALS,
    ),
    Saying(
        OTHERS,
        _of(TOWNS),
        ("{who} moved to {v}.", "{who} bought a house in {v} and moved there."),
        ("Where did {name} move to?", "Which town did {name} move to?"),
        ("{name} moved again, from {old} to {v}.", "{name} did not move to {old} in the end. {name} moved to {v}."),
    ),
    Saying(
        OTHERS,
        _of(JOBS),
        ("{who} works as a {v}.", "the job of {who} is that of a {v}."),
        ("What does {name} work as?", "What is {name}'s job?"),
        ("{name} has a new job and works as a {v} now, not as a {old}.",),
    ),
    Saying(
        OTHERS,
        _of(INSTRUMENTS),
        ("{who} plays the {v}.", "{who} plays an instrument, the {v}."),
        ("What instrument does {name} play?", "Which instrument does {name} play?"),
        ("{name} plays another instrument now, the {v} and not the {old}.",),
    ),
    Saying(
        OTHERS,
        _of(ALLERGENS),
        ("{who} is allergic to {v}.", "{who} has an allergy, {name} is allergic to {v}."),
        ("What is {name} allergic to?", "Which food is {name} allergic to?"),
        ("I mixed that up, {name} is not allergic to {old}. {name} is allergic to {v}.",),
    ),
    Saying(
        OTHERS,
        _of(GIFTS),
        ("the present for {who} is {v}.", "I have a present for {who}, it is {v}."),
        ("What is the present for {name}?", "Which present do I have for {name}?"),
        ("I have another present for {name}, it is {v} now and not {old}.",),
    ),
    Saying(
        DATED,
        _date,
        ("the date of the {x} is {v}.", "the {x} was set for {v}, that is the date."),
        ("What is the date of the {x}?", "On which date is the {x}?"),
        ("the {x} was put off. The date of the {x} is {v} now and not {old}.",),
        ("exam", "hearing", "inspection", "job interview", "check-up", "closing sale"),
    ),
    Saying(
        DATED,
        _date,
        ("the {x} is on {v}.", "the {x} takes place on {v}."),
        ("When is the {x}?", "On which date does the {x} take place?"),
        ("no, the {x} is not on {old}. The {x} is on {v}.",),
        ("concert", "flea market", "premiere", "farewell party", "street party", "marathon"),
    ),
    Saying(
        DATED,
        _date,
        ("the wedding of {who} is on {v}.", "{who} is getting married, and the wedding is on {v}."),
        ("When is {name}'s wedding?", "What is the date of {name}'s wedding?"),
        ("{name}'s wedding was put off, it is on {v} now and not on {old}.",),
    ),
    Saying(
        DATED,
        _time,
        ("the {x} leaves at {v}.", "the {x} does not wait for anybody, it leaves at {v}."),
        ("When does the {x} leave?", "What time does the {x} leave?"),
        ("no, the {x} does not leave at {old}. The {x} leaves at {v}.",),
        ("ferry", "coach", "night train", "shuttle bus"),
    ),
    Saying(
        DATED,
        _day,
        ("the {x} meets on {v}.", "I joined the {x}, which meets on {v}."),
        ("Which day does the {x} meet?", "On which day does the {x} meet?"),
        ("the {x} does not meet on {old} any more. The {x} meets on {v}.",),
        ("pottery class", "chess club", "running group", "sewing circle", "language course"),
    ),
    Saying(
        ASSISTANT,
        _amount,
        ("a {x} costs {v}.", "I looked it up, a {x} costs {v}."),
        ("How much does a {x} cost?", "How much is a {x}?"),
        by="assistant",
        things=("season ticket", "museum pass", "guided tour", "boat trip"),
    ),
    Saying(
        ASSISTANT,
        _time,
        ("the {x} closes at {v}.", "they are strict there, the {x} closes at {v}."),
        ("When does the {x} close?", "What time does the {x} close?"),
        by="assistant",
        things=("aquarium", "planetarium", "art museum", "ticket office"),
    ),
    Saying(
        ASSISTANT,
        _of(TOWNS),
        ("the best {x} is in {v}.", "if you want to see one, the best {x} is in {v}."),
        ("Where is the best {x}?", "Which town has the best {x}?"),
        by="assistant",
        things=("science museum", "botanical garden", "Christmas market", "concert hall"),
    ),
    Saying(
        ASSISTANT,
        _pair,
        ("there is a film about it, the title of the film is {v}.", "there is a good film about it called {v}."),
        ("What is the title of the film?", "What is the film called that you told me about?"),
        by="assistant",
    ),
)
