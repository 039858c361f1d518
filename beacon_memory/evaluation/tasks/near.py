"""What was said just now, behind slots of something else: a memory must not get in the way of what stands in sight."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from itertools import count

from beacon_memory.errors import InputError
from beacon_memory.evaluation.data import Data
from beacon_memory.evaluation.items import Item
from beacon_memory.evaluation.tasks.chat import asked_of, small_talk, talk_of
from beacon_memory.evaluation.tasks.reader import Reader

SLOTS = (512, 1024, 2048, 4096)  # in front of the raw tail
ROUNDS, FACTS = 5, 4  # of the talk that is asked about
KINDS = ("novel", "talk", "document")
SHARED = 12  # talks in a row that have the same three texts in front: a text is folded once for them


def near(reader: Reader, data: Data, seed: int, lengths: Sequence[int] = SLOTS, ratio: int = 4) -> Iterator[Item]:
    """A short talk, all of it raw, behind nothing and behind more and more slots of a text.

    A text in front has as many tokens as make so many slots at this ratio, sinks left out. Raises InputError.
    """
    longest = reader.config.sink + ratio * max(lengths)
    fronts: dict[tuple[int, str], tuple[int, ...]] = {}
    for number in count():
        draw = random.Random(f"near {seed} {number}")
        kind = KINDS[number % len(KINDS)]
        place = number // SHARED, kind
        if place not in fronts:
            fronts = {key: ids for key, ids in fronts.items() if key[0] == place[0]}
            fronts[place] = _front(reader, data, random.Random(f"front {seed} {place}"), kind, longest)
        talk = talk_of(draw, small_talk(data, draw, ROUNDS), FACTS)
        tail = tuple(i for role, content in talk.messages for i in reader.turn(role, content))
        for slots in (0, *lengths):
            front = fronts[place][: reader.config.sink + ratio * slots] if slots else reader.start
            yield Item(
                source=f"talk {number}",
                start=reader.start,
                context=(*front, *tail),
                questions=asked_of(reader, draw, talk, group=f"{slots} slots" + (f"; {kind}" if slots else "")),
                raw=len(tail) if slots else len(front) + len(tail),
                system=reader.system,
                talk=bool(slots) and kind == "talk",
            )


def _front(reader: Reader, data: Data, draw: random.Random, kind: str, length: int) -> tuple[int, ...]:
    """So many tokens of a text of some kind, its opening counted."""
    ids: list[int] = [*reader.start]
    if kind == "novel":
        texts = data.texts()
        text = texts[draw.choice(sorted(texts))]
        ids += reader.encode(text[draw.randrange(max(1, len(text) - 8 * length)) :])
    elif kind == "document":
        stories = data.stories()
        draw.shuffle(stories)
        for story in stories:
            if len(ids) >= length:
                break
            ids += reader.encode("\n\n".join(str(section).strip() for section in story["sections"]) + "\n\n")
    else:
        for message in small_talk(data, draw, length // 8):
            if len(ids) >= length:
                break
            ids += reader.turn(*message)
    if len(ids) < length:
        raise InputError(f"a {kind} of {length} tokens is needed in front, there are {len(ids)}: ask for fewer slots")
    return tuple(ids[:length])
