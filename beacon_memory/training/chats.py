"""Facts as people let them slip in a talk: their own, other people's, corrected, out of date, or said by the assistant.

Each comes as the messages that tell it, a question in free words, and an answer in a full sentence.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from beacon_memory.training.facts import draw_name, draw_own

Message = Mapping[str, str]

_FIRST = (
    *("Arthur", "Beatrix", "Boris", "Daphne", "Edgar", "Estelle", "Felix", "Frida"),
    *("Gilbert", "Hanna", "Harold", "Ivan", "Karim", "Leila", "Leon", "Mabel", "Mira"),
    *("Nils", "Otto", "Pamela", "Pedro", "Ralph", "Renata", "Saskia", "Stefan", "Theo", "Ursula", "Viktor"),
)
_TOWNS = (
    *("Antwerp", "Basel", "Cordoba", "Dakar", "Florence", "Geneva"),
    *("Hanoi", "Kiel", "Mumbai", "Osaka", "Pisa", "Prague", "Rabat"),
    *("Santiago", "Tallinn", "Vienna", "Warsaw"),
)
_TRADES = (
    *("accountant", "architect", "baker", "bus driver", "butcher", "dentist", "detective", "farmer"),
    *("firefighter", "judge", "librarian", "musician"),
    *("photographer", "postman", "programmer", "sculptor", "shepherd", "translator"),
)
_PEOPLE = (
    *("my boss", "my brother", "my daughter", "my father"),
    *("my grandmother", "my landlady", "my mother", "my neighbour", "my nephew", "my partner", "my son"),
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
_BRIEFLY = (
    "Answer briefly.",
    "In a word, please.",
    "Just the answer, please.",
    "Keep it short.",
    "In few words.",
)
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
    value: str  # what counts in it

    def asked(self, draw: random.Random) -> tuple[str, str]:
        """A question, and an answer as long as the question wants it."""
        if draw.random() < 0.5:
            return self.ask, self.answer
        return f"{self.ask} {draw.choice(_BRIEFLY)}", f"{_capital(self.value)}."


def draw_told(draw: random.Random) -> Told:
    """One thing that is told, of some kind."""
    return draw.choice(_KINDS)(draw)


def _own(draw: random.Random) -> Told:
    fact = draw_own(draw, 1, sentences=True)[0]
    return Told((_said(draw, fact.told),), fact.ask, fact.answer, fact.value)


def _other(draw: random.Random) -> Told:
    who, name, town = draw.choice(_PEOPLE), draw_name(draw, _FIRST), draw_name(draw, _TOWNS)
    trade, taste = draw.choice(_TRADES), draw.choice(_TASTES)
    an = "an" if trade[0] in "aeiou" else "a"
    told, ask, answer, value = draw.choice(
        [
            ("{who}'s name is {v}.", "What is {who}'s name?", "{who}'s name is {v}.", name),
            ("{who} is called {v}.", "What is {who} called?", "{who} is called {v}.", name),
            ("{who} lives in {v}.", "Where does {who} live?", "{who} lives in {v}.", town),
            (
                f"{{who}} works as {an} {{v}}.",
                "What does {who} do for a living?",
                f"{{who}} works as {an} {{v}}.",
                trade,
            ),
            ("{who} is very fond of {v}.", "What is {who} fond of?", "{who} is fond of {v}.", taste),
        ]
    )
    return Told(
        (_said(draw, told.format(who=who, v=value)),),
        ask.format(who=who),
        _capital(answer.format(who=_yours(who), v=value)),
        value,
    )


def _date(draw: random.Random) -> Told:
    event = draw.choice(_EVENTS)
    dated = f"on the {draw.randint(4, 20)}th of {draw.choice(_MONTHS)}"
    when = dated if draw.random() < 0.6 else f"at {draw.choice(_HOURS)}"
    return Told((_said(draw, f"my {event} is {when}."),), f"When is my {event}?", f"Your {event} is {when}.", when)


def _moved(draw: random.Random) -> Told:
    """Something that was so, and is otherwise now: the newest counts."""
    old, new = draw_name(draw, _TOWNS), draw_name(draw, _TOWNS)
    first, second = draw.sample(_TRADES, 2)
    event, (noon, later) = draw.choice(_EVENTS), draw.sample(_HOURS, 2)
    changes = [
        (
            f"I live in {old}.",
            f"I have moved, I live in {new} now.",
            "Where do I live now?",
            f"You live in {new} now.",
            new,
        ),
        (
            f"I am a {first}.",
            f"I have a new job, I am a {second} now.",
            "What is my job now?",
            f"You are a {second} now.",
            second,
        ),
        (
            f"my {event} is at {noon}.",
            f"my {event} was put off, it is at {later} now.",
            f"When is my {event}?",
            f"Your {event} is at {later}.",
            f"at {later}",
        ),
    ]
    before, now, ask, answer, value = draw.choice(changes)
    return Told((_said(draw, before), _said(draw, now)), ask, answer, value)


def _corrected(draw: random.Random) -> Told:
    who, wrong, right = draw.choice(_PEOPLE), draw_name(draw, _FIRST), draw_name(draw, _FIRST)
    sorry = draw.choice(("Sorry, I meant", "No, wait, it is", "I was wrong, it is", "Correction:"))
    told = {"role": "user", "content": f"{_capital(who)} is called {wrong}. {sorry} {right}."}
    return Told(((told, _reply(draw)),), f"What is {who} called?", f"{_capital(_yours(who))} is called {right}.", right)


def _advised(draw: random.Random) -> Told:
    what = draw.choice(list(_IDEAS))
    idea = draw_name(draw, _IDEAS[what]) if what != "present" else draw.choice(_IDEAS[what])
    asked = {"role": "user", "content": draw.choice((f"Can you suggest a {what}?", f"I am looking for a {what}."))}
    said = {
        "role": "assistant",
        "content": draw.choice((f"How about {idea}?", f"I would suggest {idea}.", f"You could try {idea}.")),
    }
    return Told(((asked, said),), f"Which {what} did you suggest?", f"I suggested {idea}.", idea)


_KINDS: tuple[Callable[[random.Random], Told], ...] = (
    *(_own, _own, _own, _other, _other),
    *(_date, _moved, _corrected, _advised),
)


def _said(draw: random.Random, told: str) -> tuple[Message, Message]:
    opening = draw.choice(_OPENINGS)
    text = opening + told if not opening or told.startswith(("I ", "I'm")) else opening + told[:1].lower() + told[1:]
    return {"role": "user", "content": _capital(text)}, _reply(draw)


def _yours(who: str) -> str:
    """
    >>> _yours("my boss")
    'your boss'
    """
    return who.replace("my ", "your ")


def _reply(draw: random.Random) -> Message:
    return {"role": "assistant", "content": draw.choice(_REPLIES)}


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
