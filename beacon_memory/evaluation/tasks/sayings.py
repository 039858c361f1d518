"""What people say in passing, and how it is asked for later: templates and the words they are filled with.

None of it is worded as the facts that beacons are trained on are (training/facts.py), and names and places are others.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Collection
from dataclasses import dataclass

from beacon_memory.evaluation.tasks.words import (
    ALLERGENS,
    ANIMALS,
    DAYS,
    DISHES,
    FIRST,
    GIFTS,
    INSTRUMENTS,
    JOBS,
    MONTHS,
    NAMES,
    PARTS,
    PETS,
    SECOND,
    STREETS,
    SURNAMES,
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


def _when(draw: random.Random) -> Value:
    day, part = draw.choice(DAYS), draw.choice(PARTS)
    return Value(f"{day} {part}", (f"{day} {part}", f"{day} {part[:-1]}", f"{part} on {day}"))


def _doctor(draw: random.Random) -> Value:
    name = draw.choice(SURNAMES)
    return Value(f"Dr {name}", (name,))


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
SAYINGS = (
    Saying(
        OWN,
        _of(PETS),
        (
            "Sorry I'm late, {v}, our {x}, got out into the garden again and I had to catch her.",
            "I'm typing with one hand because {v} is asleep on the other. That's our {x}.",
            "We brought home a {x} last weekend, and the kids want to call her {v}, so {v} it is.",
        ),
        ("What do we call our {x}?", "Remind me, what is our {x}'s name?", "Do you remember what our {x} is called?"),
        ("The kids changed their minds about the {x}, by the way. {old} is out, she is {v} now.",),
        ANIMALS,
    ),
    Saying(
        OWN,
        _street,
        (
            "I can't stay long, somebody is bringing a sofa to {v}, where we live now.",
            "If you ever send me that book, post it to {v}, that's my address.",
        ),
        (
            "What is my address?",
            "Which address should things be sent to?",
            "Where exactly do I live, street and number?",
        ),
        (
            "Oh, and I moved. Nothing goes to {old} any more, my address is {v} from now on.",
            "We finally got the keys, so from this week on I'm at {v} and not at {old}.",
        ),
    ),
    Saying(
        OWN,
        _of(TOWNS),
        (
            "It never stops raining here in {v}, I wish I had known that before I rented this place.",
            "I'm writing this from {v}, I've been living here for a while now.",
        ),
        ("In which town do I live these days?", "Do you remember what town I am living in now?"),
        (
            "Did I mention it? I moved. I said goodbye to {old} and I'm in {v} now.",
            "The van is unloaded at last, so I'm officially a resident of {v}. No more {old} for me.",
        ),
    ),
    Saying(
        OWN,
        _doctor,
        (
            "My back is killing me again, so I'm going to see {v}, the physiotherapist everybody talks about.",
            "A friend sent me to a physiotherapist, {v}, and it helped a lot.",
        ),
        ("What was my physiotherapist's name?", "Which physiotherapist do I go to?"),
        ("I stopped going to {old}, the physiotherapist. I'm seeing {v} now.",),
    ),
    Saying(
        OWN,
        _amount,
        (
            "I know it's silly, but I paid {v} for a {x} yesterday.",
            "That {x} cost me {v} in the end, don't tell anybody.",
        ),
        ("How much did I pay for the {x}?", "What did the {x} cost me?"),
        ("I looked at the bill again. The {x} was not {old}, I paid {v}.",),
        ("lampshade", "raincoat", "second-hand bicycle", "coffee grinder", "rug", "bookcase", "frying pan", "backpack"),
    ),
    Saying(
        OWN,
        _code,
        (
            "We rented a {x} for the summer. I should note down that the lock opens with {v}.",
            "Before I forget it, the lock of the {x} opens with {v}.",
        ),
        ("Which number opens the lock of the {x}?", "What number do I need for the lock of the {x}?"),
        ("They changed the lock of the {x}, so forget {old}, it opens with {v} now.",),
        ("cottage", "allotment shed", "boathouse", "bike cellar"),
    ),
    Saying(
        OWN,
        _pair,
        (
            "I have to run soon, I promised to be at {v}, that little {x}, in an hour.",
            "There's a {x} around the corner, {v}, where I spend far too much time.",
        ),
        ("What is the name of the {x} I go to?", "Which {x} did I say I go to?"),
        ("By the way, {old} closed down, so {v} is my {x} now.",),
        ("pub", "bakery", "bookshop", "tea house", "record shop"),
    ),
    Saying(
        OWN,
        _pair,
        (
            "I was up until two because I couldn't put down {v}, that novel I told everybody about.",
            "Reading keeps me sane, at the moment it's a novel called {v}.",
        ),
        ("Which novel am I reading?", "What is the title of the novel I am reading?"),
        ("I gave up on {old}, it got boring. The novel I'm reading now is {v}.",),
    ),
    Saying(
        OTHERS,
        _of(TOWNS),
        (
            "That reminds me of {who}, who has a house in {v}.",
            "{who} would love this topic. We only talk on the phone since {name} went to live in {v}.",
        ),
        ("Where does {name} live?", "Which town is {name} in?"),
        ("I spoke to {name} last night. {old} is history, it's {v} now, boxes everywhere.",),
    ),
    Saying(
        OTHERS,
        _of(JOBS),
        (
            "{who} explained that to me once, and {name} should know, being a {v}.",
            "You should hear {who} on that subject. {name} earns a living as a {v}, you see.",
        ),
        ("What is {name}'s profession?", "What kind of work does {name} do?"),
        ("Funny thing, {name} retrained. Not a {old} any more but a {v}, imagine that.",),
    ),
    Saying(
        OTHERS,
        _of(INSTRUMENTS),
        (
            "The walls here are thin, and {who} practises the {v} every single night.",
            "I was at a concert on Sunday, {who} played the {v} and was really good.",
        ),
        ("Which instrument does {name} play?", "What instrument is it that {name} plays?"),
        ("No more {old} for {name}, by the way. It's the {v} now.",),
    ),
    Saying(
        OTHERS,
        _of(ALLERGENS),
        (
            "I still have to cook, and {who} is coming, so nothing with {v}, that would mean a trip to the hospital.",
            "{who} had to leave the restaurant in an ambulance, somebody forgot to mention the {v}.",
        ),
        ("What is {name} allergic to?", "What must {name} not eat?"),
    ),
    Saying(
        OTHERS,
        _of(DISHES),
        (
            "I'm hungry now. {who} makes a {v} that I dream about.",
            "{who} invited us all, and of course there was {v} again, it's the only thing {name} can cook.",
        ),
        ("What dish does {name} make?", "What does {name} cook?"),
    ),
    Saying(
        OTHERS,
        _of(GIFTS),
        (
            "I still need wrapping paper, I bought {v} for {who}.",
            "I've finally found a present for {who}, it's going to be {v}.",
        ),
        ("What present did I get for {name}?", "What am I giving {name} as a present?"),
        ("I took the present for {name} back to the shop. Instead of {old} it's {v} now.",),
    ),
    Saying(
        DATED,
        _date,
        (
            "I must not forget the {x}, they gave me {v}.",
            "My {x} is on {v}, and I'm a bit nervous about it.",
        ),
        ("When is my {x}?", "What is the date of my {x}?"),
        (
            "They rang about the {x}. No, it's not {old}, it was put off to {v}.",
            "Wait, I told you nonsense about my {x}: it is on {v}, not on {old}.",
        ),
        ("dentist appointment", "driving test", "job interview", "eye exam", "tax meeting", "hearing test"),
    ),
    Saying(
        DATED,
        _date,
        (
            "I have to think of something nice for {v}, that's when {who} has a birthday.",
            "{who} turns fifty on {v}, can you believe it?",
        ),
        ("When is {name}'s birthday?", "On which date is {name}'s birthday?"),
        ("I got that wrong, {name}'s birthday isn't {old} but {v}.",),
    ),
    Saying(
        DATED,
        _time,
        (
            "I'll have to get up early, the {x} leaves at {v}.",
            "The {x} leaves at {v} tomorrow, so I'll pack tonight.",
        ),
        ("What time does the {x} leave?", "When does the {x} leave tomorrow?"),
        ("I checked again, the {x} leaves at {v} and not at {old}.",),
        ("ferry", "coach", "night train", "shuttle bus"),
    ),
    Saying(
        DATED,
        _when,
        (
            "I joined a {x}, so {v} are taken from now on.",
            "We have {x} on {v}, which is the best part of my week.",
        ),
        ("When does my {x} meet?", "When do I have {x}?"),
        ("No, what am I saying, my {x} isn't on {old}. It's on {v}.",),
        ("pottery class", "choir", "chess club", "running group", "language course"),
    ),
    Saying(
        ASSISTANT,
        _of(DISHES),
        ("If you ever have people over for this, I would make {v}.", "It goes well with {v}, which is easy to make."),
        ("Which dish did you suggest to me?", "What did you say I should cook?"),
        by="assistant",
    ),
    Saying(
        ASSISTANT,
        _pair,
        ("If you like this kind of thing, watch {v}. It is my favourite film about it.",),
        ("Which film did you recommend to me?", "What was the film you told me to watch?"),
        by="assistant",
    ),
    Saying(
        ASSISTANT,
        _amount,
        ("I looked it up, and a {x} costs {v} at the moment.", "If you want to go, a {x} is {v}."),
        ("How much did you say a {x} costs?", "What was the price of a {x} that you gave me?"),
        by="assistant",
        things=("season ticket", "museum pass", "guided tour", "boat trip"),
    ),
    Saying(
        ASSISTANT,
        _of(NAMES),
        ("You could ask for {v} at the {x}, they know all about it.", "I would ring the {x} and ask for {v}."),
        ("Whom should I ask for at the {x}?", "Who did you tell me to ask for at the {x}?"),
        by="assistant",
        things=("town library", "tourist office", "garden centre", "repair shop"),
    ),
)
