"""Facts as people let them slip in a talk: their own, other people's, corrected, out of date, or said by the assistant.

Each comes as the messages that tell it, a question in free words, and an answer in a full sentence.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from beacon_memory.training.facts import draw_own

Message = Mapping[str, str]

_FIRST = (
    *("Adele", "Arthur", "Beatrix", "Boris", "Carmen", "Cedric", "Daphne", "Edgar", "Estelle", "Felix", "Frida"),
    *("Gilbert", "Hanna", "Harold", "Imogen", "Ivan", "Judith", "Karim", "Leila", "Leon", "Mabel", "Magnus", "Mira"),
    *("Nils", "Noor", "Otto", "Pamela", "Pedro", "Ralph", "Renata", "Saskia", "Stefan", "Theo", "Ursula", "Viktor"),
)
_TOWNS = (
    *("Antwerp", "Basel", "Bergen", "Bristol", "Cordoba", "Dakar", "Dresden", "Exeter", "Florence", "Geneva", "Genoa"),
    *("Hanoi", "Hobart", "Kiel", "Leeds", "Malmo", "Mumbai", "Nantes", "Osaka", "Perth", "Pisa", "Prague", "Rabat"),
    *("Salzburg", "Santiago", "Split", "Tallinn", "Toledo", "Trieste", "Utrecht", "Vienna", "Warsaw", "York"),
)
_TRADES = (
    *("accountant", "architect", "baker", "bus driver", "butcher", "dentist", "detective", "electrician", "farmer"),
    *("firefighter", "gardener", "jeweller", "judge", "librarian", "locksmith", "musician", "optician", "pharmacist"),
    *("photographer", "postman", "programmer", "sailor", "sculptor", "shepherd", "tailor", "translator", "vet"),
)
_PEOPLE = (
    *("my aunt", "my boss", "my brother", "my colleague", "my cousin", "my daughter", "my father", "my flatmate"),
    *("my grandmother", "my landlady", "my mother", "my neighbour", "my nephew", "my partner", "my son", "my uncle"),
)
_TASTES = (
    *("apple pie", "black coffee", "blueberries", "chess", "crosswords", "fishing", "folk music", "gardening"),
    *("green tea", "hiking", "jazz", "knitting", "mango", "old films", "opera", "pottery", "rowing", "salsa"),
    *("sailing", "sourdough", "spicy food", "swimming", "tennis", "trains", "walnut cake", "yoga"),
)
_EVENTS = (
    *("appointment with the dentist", "concert", "driving test", "exam", "flight", "interview", "job review"),
    *("meeting with the bank", "piano lesson", "school reunion", "surgery", "training course", "wedding"),
)
_MONTHS = ("January", "March", "April", "May", "June", "August", "September", "October", "November")
_HOURS = ("eight in the morning", "half past nine", "noon", "two o'clock", "a quarter to four", "six in the evening")
_IDEAS = {
    "restaurant": (
        "the Blue Heron",
        "Casa Lupita",
        "the Copper Pot",
        "Little Saigon",
        "the Old Mill",
        "Trattoria Nonna",
    ),
    "book": ("Middlemarch", "The Moonstone", "Kim", "Dracula", "Walden", "The Odyssey", "Candide", "Frankenstein"),
    "film": ("Casablanca", "Metropolis", "Vertigo", "Amelie", "Alien", "Fargo", "Gravity", "The Apartment"),
    "present": ("a fountain pen", "a wool scarf", "a chess set", "a telescope", "a tea pot", "a picture book"),
    "name for a boat": ("Albatross", "Blue Lady", "Daydream", "Morning Star", "Sea Breeze", "Wanderer"),
}
_OPENINGS = ("", "", "", "By the way, ", "Oh, and ", "You know, ", "Just so you know, ", "As I said, ")
_REPLIES = (
    *("That sounds nice.", "I see, thank you for telling me.", "Good to know!", "How interesting!", "Understood."),
    *("Thanks for sharing that with me.", "Oh, really?", "Great! What else is new?", "I hope it goes well."),
)


@dataclass(frozen=True)
class Told:
    """Messages that tell something, in order; other talk may stand between them, never within one of them.

    >>> one = draw_told(random.Random(1))
    >>> one.ask[-1], bool(one.parts)
    ('?', True)
    """

    parts: tuple[tuple[Message, ...], ...]
    ask: str
    answer: str  # a full sentence


def draw_told(draw: random.Random) -> Told:
    """One thing that is told, of some kind."""
    return draw.choice(_KINDS)(draw)


def _own(draw: random.Random) -> Told:
    fact = draw_own(draw, 1, sentences=True)[0]
    return Told((_said(draw, fact.told),), fact.ask, fact.answer)


def _other(draw: random.Random) -> Told:
    who, name = draw.choice(_PEOPLE), draw.choice(_FIRST)
    yours = who.replace("my ", "your ")
    told, ask, answer = draw.choice(
        [
            (f"{who}'s name is {name}.", f"What is {who}'s name?", f"{yours}'s name is {name}."),
            (f"{who} is called {name}.", f"What is {who} called?", f"{yours} is called {name}."),
            _place(draw, who, yours),
            _trade(draw, who, yours),
            _taste(draw, who, yours),
        ]
    )
    return Told((_said(draw, told),), ask, _capital(answer))


def _place(draw: random.Random, who: str, yours: str) -> tuple[str, str, str]:
    town = draw.choice(_TOWNS)
    return f"{who} lives in {town}.", f"Where does {who} live?", f"{yours} lives in {town}."


def _trade(draw: random.Random, who: str, yours: str) -> tuple[str, str, str]:
    trade = draw.choice(_TRADES)
    an = "an" if trade[0] in "aeiou" else "a"
    return f"{who} works as {an} {trade}.", f"What does {who} do for a living?", f"{yours} works as {an} {trade}."


def _taste(draw: random.Random, who: str, yours: str) -> tuple[str, str, str]:
    taste = draw.choice(_TASTES)
    return f"{who} is very fond of {taste}.", f"What is {who} fond of?", f"{yours} is fond of {taste}."


def _date(draw: random.Random) -> Told:
    event = draw.choice(_EVENTS)
    when = (
        f"on the {draw.randint(4, 20)}th of {draw.choice(_MONTHS)}"
        if draw.random() < 0.6
        else f"at {draw.choice(_HOURS)}"
    )
    return Told((_said(draw, f"my {event} is {when}."),), f"When is my {event}?", f"Your {event} is {when}.")


def _moved(draw: random.Random) -> Told:
    """Something that was so, and is otherwise now: the newest counts."""
    old, new = draw.sample(_TOWNS, 2)
    first, second = draw.sample(_TRADES, 2)
    event, (noon, later) = draw.choice(_EVENTS), draw.sample(_HOURS, 2)
    changes = [
        (
            f"I live in {old}.",
            f"I have moved, I live in {new} now.",
            "Where do I live now?",
            f"You live in {new} now.",
        ),
        (
            f"I am a {first}.",
            f"I have a new job, I am a {second} now.",
            "What is my job now?",
            f"You are a {second} now.",
        ),
        (
            f"my {event} is at {noon}.",
            f"my {event} was put off, it is at {later} now.",
            f"When is my {event}?",
            f"Your {event} is at {later}.",
        ),
    ]
    before, now, ask, answer = draw.choice(changes)
    return Told((_said(draw, before), _said(draw, now)), ask, answer)


def _corrected(draw: random.Random) -> Told:
    who, (wrong, right) = draw.choice(_PEOPLE), draw.sample(_FIRST, 2)
    sorry = draw.choice(("Sorry, I meant", "No, wait, it is", "I was wrong, it is", "Correction:"))
    told = {"role": "user", "content": f"{_capital(who)} is called {wrong}. {sorry} {right}."}
    return Told(
        ((told, _reply(draw)),), f"What is {who} called?", f"{_capital(who.replace('my ', 'your '))} is called {right}."
    )


def _advised(draw: random.Random) -> Told:
    what = draw.choice(list(_IDEAS))
    idea = draw.choice(_IDEAS[what])
    asked = {"role": "user", "content": draw.choice((f"Can you suggest a {what}?", f"I am looking for a {what}."))}
    said = {
        "role": "assistant",
        "content": draw.choice((f"How about {idea}?", f"I would suggest {idea}.", f"You could try {idea}.")),
    }
    return Told(((asked, said),), f"Which {what} did you suggest?", f"I suggested {idea}.")


_KINDS: tuple[Callable[[random.Random], Told], ...] = (
    *(_own, _own, _own, _other, _other),
    *(_date, _moved, _corrected, _advised),
)


def _said(draw: random.Random, told: str) -> tuple[Message, Message]:
    opening = draw.choice(_OPENINGS)
    text = opening + told if not opening or told.startswith(("I ", "I'm")) else opening + told[:1].lower() + told[1:]
    return {"role": "user", "content": _capital(text)}, _reply(draw)


def _reply(draw: random.Random) -> Message:
    return {"role": "assistant", "content": draw.choice(_REPLIES)}


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
