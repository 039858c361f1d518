"""The six tasks. Items are a function of the data, the seed and their number: more items begin with the fewer ones.

`prose`     256 tokens are folded, the next 128 scored
`copy`      128 tokens are folded, and read again: exact recall
`qa`        a story is folded, then asked about what it told 1 to 20 sections ago; the right answer also stands among
            answers of its length to questions about other stories, which no knowledge of how answers sound tells apart
`dialogue`  a conversation is folded, then the user's own words asked for, among values other people gave
`needle`    facts in 1K to 16K tokens of a novel, asked for among wrong ones
`long`      the same 256 tokens of a novel after 2K, 4K, ... of it, the newest 512 raw, the rest read as a document
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from itertools import count, cycle
from typing import Any

from beacon_memory.errors import InputError
from beacon_memory.evaluation.data import Data
from beacon_memory.evaluation.items import Item, Question, Task
from beacon_memory.models.model import BeaconModel
from beacon_memory.talk.transcript import Transcript

FOLDED, SCORED, COPIED, LONG_SCORED = 256, 128, 128, 256
QUERY = 64  # newest tokens that a retriever searches with, where nobody asks
SECTIONS, EACH = 20, 2  # of a story: the furthest back, and how many questions of each distance
CHOICES = 8  # answers to choose from, in a dialogue or about a story
NEAR = 40  # answers about other stories, the nearest in length, from which those to choose from are drawn
LENGTHS = (1024, 2048, 4096, 8192, 16384)  # of a needle's text
DEPTHS = (0.1, 0.3, 0.5, 0.7, 0.9)
RAW = 512  # newest tokens of `long` that stay raw
LONG = (2048, 4096, 8192, 16384, 32768)
BACK = ((2, "1-2 back"), (5, "3-5 back"), (10, "6-10 back"), (10**9, "11 and more back"))
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


class Reader:
    """How a model reads: its tokens, and its chat template around what is asked."""

    def __init__(self, model: BeaconModel) -> None:
        self.encode = model.encode
        self.decode = model.decode
        self.transcript = Transcript(model.tokenizer)
        self.start = tuple(self.transcript.start)

    def prompt(self, question: str, begin: str = "") -> tuple[int, ...]:
        """A question as `Session.ask` puts it behind a memory, and how the answer begins."""
        talk = self.transcript
        asked = talk.turn({"role": "user", "content": question})
        return (*talk.system(None), *asked, *talk.header(), *(self.encode(begin) if begin else ()))

    def answer(self, text: str) -> tuple[int, ...]:
        """The ids of an answer."""
        return tuple(self.encode(text))


def prose(reader: Reader, data: Data, seed: int) -> Iterator[Item]:
    """Runs of a text, spread over all texts."""
    for source, ids, start in _places(reader, data, seed, length=FOLDED + SCORED):
        run = ids[start : start + FOLDED + SCORED]
        query = reader.decode(run[FOLDED - QUERY : FOLDED])
        yield _following(reader, source, run[:FOLDED], run[FOLDED:], query=query)


def copying(reader: Reader, data: Data, seed: int) -> Iterator[Item]:
    """The first half of the runs of `prose`, to be said again. A retriever is given the text itself to search with."""
    for source, ids, start in _places(reader, data, seed, length=FOLDED + SCORED):
        run = ids[start : start + COPIED]
        yield _following(reader, source, run, run, query=reader.decode(run))


def long(reader: Reader, data: Data, seed: int, lengths: Sequence[int] = LONG) -> Iterator[Item]:
    """The same place of a novel after more and more of it."""
    longest = max(lengths)
    for source, ids, start in _places(reader, data, seed, length=longest + LONG_SCORED):
        end = start + longest
        for length in lengths:
            query = reader.decode(ids[end - QUERY : end])
            following = ids[end : end + LONG_SCORED]
            yield _following(reader, source, ids[end - length : end], following, query=query, group=f"{length} tokens")


def qa(reader: Reader, data: Data, seed: int) -> Iterator[Item]:
    """Stories up to some section, and questions about sections near and far."""
    draw = random.Random(seed)
    stories = data.stories()
    draw.shuffle(stories)
    told = [(number, _gold(reader, entry)) for number, story in enumerate(stories) for entry in story["questions"]]
    asked: set[tuple[int, int]] = set()
    before = -1
    while len(asked) > before:  # until a round over all stories finds nothing new to ask
        before = len(asked)
        for number, story in enumerate(stories):
            if item := _asked(reader, story, number, asked, told, draw):
                yield item


def _asked(
    reader: Reader,
    story: dict[str, Any],
    index: int,
    asked: set[tuple[int, int]],
    told: Sequence[tuple[int, tuple[int, ...]]],
    draw: random.Random,
) -> Item | None:
    """A story up to a section drawn, and what was not asked of it yet, near and far."""
    sections = [str(section).strip() for section in story["sections"]]
    last = draw.randint(min(5, len(sections)), len(sections))
    first = max(0, last - SECTIONS)
    questions: list[Question] = []
    for number, entry in draw.sample(list(enumerate(story["questions"])), len(story["questions"])):
        about = [int(part) for part in str(entry["section"]).replace(",", " ").split()]
        group = _back(last - max(about) + 1) if first < min(about) <= max(about) <= last else ""
        if (index, number) in asked or not group or sum(question.group == group for question in questions) >= EACH:
            continue
        asked.add((index, number))
        gold = tuple(str(answer) for answer in entry["answer"])
        right = _gold(reader, entry)
        foreign = sorted({answer for number, answer in told if number != index and answer != right})
        draw.shuffle(foreign)
        near = sorted(foreign, key=lambda answer: abs(len(answer) - len(right)))[:NEAR]
        answers = (right, *draw.sample(near, min(CHOICES - 1, len(near))))
        prompt = reader.prompt(f"{entry['question']} Answer in a few words.")
        questions.append(Question(prompt, answers, query=str(entry["question"]), gold=gold, group=group))
    context = (*reader.start, *reader.encode("\n\n".join(sections[first:last])))
    return Item(str(story.get("story", index)), reader.start, context, tuple(questions)) if questions else None


def _gold(reader: Reader, entry: dict[str, Any]) -> tuple[int, ...]:
    """The right answer as it would begin a reply."""
    gold = str(entry["answer"][0])
    return reader.answer(gold[:1].upper() + gold[1:])


def dialogue(reader: Reader, data: Data, seed: int) -> Iterator[Item]:
    """Whole conversations, and what the user said in them."""
    draw = random.Random(seed)
    talks = data.dialogues()
    values: dict[str, list[str]] = {}
    for talk in talks:
        for slot, value, _ in _stated(talk["turns"]):
            if value not in values.setdefault(slot, []):
                values[slot].append(value)
    for index in draw.sample(range(len(talks)), len(talks)):
        turns = talks[index]["turns"]
        said = " ".join(str(turn["content"]) for turn in turns).lower()
        questions = []
        for slot, value, back in _stated(turns):
            others = [
                other for other in values[slot] if other.lower() not in said and value.lower() not in other.lower()
            ]
            if len(others) < CHOICES - 1:
                continue
            name = slot.replace("_", " ")
            choices = [value, *draw.sample(others, CHOICES - 1)]
            questions.append(
                Question(
                    reader.prompt(f"What was the {name} I told you?", begin=f"The {name} you told me was"),
                    tuple(reader.answer(f" {choice}.") for choice in choices),
                    query=f"What was the {name} I told you?",
                    group=_back(back),
                )
            )
        if questions:
            ids = [i for turn in turns for i in reader.transcript.turn({k: turn[k] for k in ("role", "content")})]
            yield Item(str(index), reader.start, (*reader.start, *ids), tuple(questions))


def needle(reader: Reader, data: Data, seed: int, lengths: Sequence[int] = LENGTHS) -> Iterator[Item]:
    """Texts of each length with a fact at each depth; the wrong answers are the other facts' and made up ones."""
    draw = random.Random(seed)
    places = _places(reader, data, seed, length=max(lengths))
    for (source, ids, start), length in zip(places, cycle(lengths), strict=False):
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
            questions.append(Question(prompt, answers, query=asked, group=f"{length} tokens, depth {depth}"))
        yield Item(source, reader.start, tuple(context), tuple(questions))


Maker = Callable[..., Iterator[Item]]
# name -> makes items, headline figure, how many tokens stay raw, what it is
TASKS: dict[str, tuple[Maker, str, int, str]] = {
    "prose": (prose, "kept", 0, "share of the context's worth kept, next 128 tokens after 256"),
    "copy": (copying, "loss", 0, "loss on the same 128 tokens again, in nats"),
    "qa": (
        qa,
        "kept",
        0,
        f"share of the log-likelihood gap of right answers kept; accuracy among {CHOICES}",
    ),
    "dialogue": (dialogue, "accuracy", 0, f"the user's own words among {CHOICES} choices"),
    "needle": (needle, "accuracy", 0, f"a fact in a novel among {2 * len(DEPTHS)} choices"),
    "long": (long, "loss", RAW, f"loss on the next {LONG_SCORED} tokens of a novel, the newest {RAW} raw"),
}


def make_task(name: str, model: BeaconModel, data: Data, *, items: int, seed: int, **options: Any) -> Task:
    """A task with as many contexts as ask `items` questions. Raises InputError where the data is missing or too short.

    `options`: `lengths` of needle and long.
    """
    make, metric, raw, about = TASKS[name]
    found: list[Item] = []
    questions = 0
    for item in make(Reader(model), data, seed, **options):
        found.append(item)
        questions += len(item.questions)
        if questions >= items:
            break
    if not found:
        raise InputError(f"task {name} finds nothing to ask in the data")
    return Task(name, about, metric, tuple(found), raw)


def _places(reader: Reader, data: Data, seed: int, *, length: int) -> Iterator[tuple[str, list[int], int]]:
    """Text after text, and a place in it from which so many tokens follow. Raises InputError."""
    draw = random.Random(seed)
    texts = [(name, reader.encode(text)) for name, text in data.texts().items()]
    enough = [(name, ids) for name, ids in texts if len(ids) >= length]
    if not enough:
        longest = max(len(ids) for _, ids in texts)
        raise InputError(f"texts of {length} tokens are needed, the longest here has {longest}: give longer ones")
    for number in count():
        name, ids = enough[number % len(enough)]
        yield name, ids, draw.randrange(len(ids) - length + 1)


def _following(
    reader: Reader, source: str, context: Sequence[int], following: Sequence[int], *, query: str, group: str = ""
) -> Item:
    """What follows a context; its first token is given, since without memory nothing could predict it."""
    question = Question(tuple(following[:1]), (tuple(following[1:]),), query=query, group=group)
    return Item(source, reader.start, (*reader.start, *context), (question,))


def _stated(turns: Sequence[dict[str, Any]]) -> list[tuple[str, str, int]]:
    """What the user said in so many words: slot, value, and how many turns ago; slots with two values are left out."""
    everything: dict[str, set[str]] = {}
    for turn in turns:
        for slot, value in turn.get("slots", {}).items():
            everything.setdefault(slot, set()).add(str(value).lower())
    found: dict[str, tuple[str, str, int]] = {}
    for number, turn in enumerate(turns):
        for slot, value in turn.get("slots", {}).items():
            if turn["role"] == "user" and len(everything[slot]) == 1 and str(value).lower() in turn["content"].lower():
                found[slot] = (slot, str(value), len(turns) - number)
    return list(found.values())


def _back(distance: int) -> str:
    return next(name for limit, name in BACK if distance <= limit)
