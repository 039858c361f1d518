"""Tasks about a place in a long text: what follows it, the text again, and facts put into it."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from itertools import cycle

from beacon_memory.evaluation.data import Data
from beacon_memory.evaluation.items import Item, Question
from beacon_memory.evaluation.tasks.reader import Reader, places

FOLDED, SCORED, COPIED, LONG_SCORED = 256, 128, 128, 256
QUERY = 64  # newest tokens that a retriever searches with, where nobody asks
LENGTHS = (1024, 2048, 4096, 8192, 16384)  # of a needle's text
DEPTHS = (0.1, 0.3, 0.5, 0.7, 0.9)
RAW = 512  # newest tokens of `long` that stay raw
LONG = (2048, 4096, 8192, 16384, 32768)
THINGS = (
    "garden gate",
    "piano room",
    "harbour tower",
    "silver chest",
    "old library",
    "wine cellar",
    "north stable",
    "green boat",
    "school bell",
    "stone bridge",
    "red carriage",
    "winter house",
    "glass lamp",
    "post office",
)


def prose(reader: Reader, data: Data, seed: int) -> Iterator[Item]:
    """Runs of a text, spread over all texts."""
    for source, ids, start in places(reader, data, seed, length=FOLDED + SCORED):
        run = ids[start : start + FOLDED + SCORED]
        query = reader.decode(run[FOLDED - QUERY : FOLDED])
        yield _following(reader, source, run[:FOLDED], run[FOLDED:], query=query)


def copying(reader: Reader, data: Data, seed: int) -> Iterator[Item]:
    """The first half of the runs of `prose`, to be said again. A retriever is given the text itself to search with."""
    for source, ids, start in places(reader, data, seed, length=FOLDED + SCORED):
        run = ids[start : start + COPIED]
        yield _following(reader, source, run, run, query=reader.decode(run))


def long(reader: Reader, data: Data, seed: int, lengths: Sequence[int] = LONG) -> Iterator[Item]:
    """The same place of a novel after more and more of it."""
    longest = max(lengths)
    for source, ids, start in places(reader, data, seed, length=longest + LONG_SCORED):
        end = start + longest
        for length in lengths:
            query = reader.decode(ids[end - QUERY : end])
            following = ids[end : end + LONG_SCORED]
            yield _following(
                reader, source, ids[end - length : end], following, query=query, group=f"{length} tokens", raw=RAW
            )


def needle(reader: Reader, data: Data, seed: int, lengths: Sequence[int] = LENGTHS) -> Iterator[Item]:
    """Texts of each length with a fact at each depth; the wrong answers are the other facts' and made up ones."""
    draw = random.Random(seed)
    found = places(reader, data, seed, length=max(lengths))
    for (source, ids, start), length in zip(found, cycle(lengths), strict=False):
        things = draw.sample(THINGS, len(DEPTHS))
        codes = [str(code) for code in draw.sample(range(10_000, 100_000), 2 * len(DEPTHS))]
        told = zip(things, codes[: len(DEPTHS)], strict=True)
        facts = [reader.encode(f" The pass code of the {thing} is {code}. ") for thing, code in told]
        room = length - len(reader.start) - sum(map(len, facts))
        text = ids[start : start + room]
        cuts = [int(room * depth) for depth in DEPTHS]
        context = [*reader.start, *text[: cuts[0]]]
        for fact, cut, end in zip(facts, cuts, [*cuts[1:], room], strict=True):
            context += [*fact, *text[cut:end]]
        questions = []
        for thing, right, depth in zip(things, codes[: len(DEPTHS)], DEPTHS, strict=True):
            asked = f"What is the pass code of the {thing}?"
            answers = tuple(reader.answer(f" {code}.") for code in (right, *(c for c in codes if c != right)))
            prompt = reader.prompt(asked, begin=f"The pass code of the {thing} is")
            group = f"{length} tokens, depth {depth}"
            gold = (right,)
            questions.append(Question(prompt, answers, query=asked, gold=gold, group=group, ask=reader.prompt(asked)))
        yield Item(source, reader.start, tuple(context), tuple(questions))


def _following(
    reader: Reader,
    source: str,
    context: Sequence[int],
    following: Sequence[int],
    *,
    query: str,
    group: str = "",
    raw: int = 0,
) -> Item:
    """What follows a context; its first token is given, since without memory nothing could predict it."""
    question = Question(tuple(following[:1]), (tuple(following[1:]),), query=query, group=group)
    return Item(source, reader.start, (*reader.start, *context), (question,), raw=raw)
