"""Examples by number: what is folded, and what is then read behind it."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch.utils.data import Dataset

from beacon_memory.config import BeaconConfig, check_ratio
from beacon_memory.errors import ConfigError, InputError
from beacon_memory.models.model import BeaconModel
from beacon_memory.talk.transcript import Transcript
from beacon_memory.training.chats import draw_told
from beacon_memory.training.data import Corpus, Dialogue, Document, Question
from beacon_memory.training.facts import REPLIES, Fact, draw_facts, draw_own
from beacon_memory.training.objective import Example

KINDS = ("text", "question", "dialogue", "fact", "chat", "near")
APART = 64  # tokens of text for each fact that is put into it, at least
ASKED = 4  # questions of a context, at most
CHATTED = 48  # tokens of a talk for each fact in it, at least
TALKS = 2  # short talks that are read behind a text of something else
UNSCORED, SCORED, ANSWER = range(3)  # how a token of a tail counts
RECALLED = 12  # made-up facts that are asked for, at most: short answers, so many of them for one context


@dataclass(frozen=True)
class Mixture:
    """What examples are made of. Raises ConfigError.

    `text`: a text is folded; what follows is read behind it, and a stretch of the text itself again (auto-encoding).
    `question`: a question is asked behind a folded text. `dialogue`: a dialogue goes on behind its folded start, a
    stretch is said again, and what was said is asked for. `fact`: a fact is put into a text that does not tell it,
    plainly or as what a user says of himself, and is asked for. `chat`: facts are told in passing,
    corrected and outdated, between the turns of dialogues, and asked for in free words. `near`: what is folded has
    nothing to do with what is read behind it, a short talk with a question about it, and other prose; with a teacher,
    slots learn to leave such things alone.
    """

    text: float = 0.5  # shares of the examples
    question: float = 0.25
    dialogue: float = 0.25
    fact: float = 0.0
    chat: float = 0.0
    near: float = 0.0
    windows: tuple[int, ...] = (64, 128, 256)  # tokens of a window, one drawn per example
    depth: int = 2  # windows of an example, at most
    tail: int = 128  # tokens of a tail, at most
    ratios: tuple[int, ...] = (2, 4, 8)  # one drawn per window (paper, section 3.3)
    batch: int = 1  # contexts of an example
    follow: bool = True  # read what follows
    again: bool = True  # read a stretch of the folded text again

    def __post_init__(self) -> None:
        shares = self.shares
        if min(shares) < 0 or sum(shares) <= 0:
            raise ConfigError(f"shares are 0 or more and one is above, not {shares}")
        if min(self.depth, self.tail - 1, self.batch, *self.windows) < 1:
            raise ConfigError("windows, depth and batch are 1 or more, a tail is at least 2 tokens")
        if not self.follow and not self.again:
            raise ConfigError("a text is followed, read again, or both")
        for window in self.windows:
            for ratio in self.ratios:
                check_ratio(ratio, window)

    @property
    def shares(self) -> tuple[float, ...]:
        """The share of each of KINDS."""
        return self.text, self.question, self.dialogue, self.fact, self.chat, self.near


class Examples(Dataset[Example]):
    """A corpus as numbered examples: the same number and seed, the same example, on every machine."""

    def __init__(
        self, corpus: Corpus, model: BeaconModel, *, config: BeaconConfig, mixture: Mixture, seed: int, count: int
    ) -> None:
        """Raises InputError when the corpus has nothing of a kind that the mixture asks for, or nothing long enough."""
        self._transcript = Transcript(model.tokenizer)
        self._model = model
        self._sink = config.sink
        self._mixture = mixture
        self._seed = seed
        self._count = count
        longest = max(mixture.windows) * mixture.depth + config.sink + mixture.tail
        self._corpus = corpus
        self._encoded: dict[int, list[int]] = {}
        # A shorter text has fewer tokens than it has bytes; which of the others are too short, drawing shows.
        self._texts = [number for number, text in enumerate(corpus.texts) if len(text.encode()) > longest]
        prose, talk = mixture.text or mixture.fact or mixture.near, mixture.dialogue or mixture.chat
        if prose and not any(len(self._ids(number)) > longest for number in self._texts):
            self._texts = []
        for kind, found, share in (
            ("text", self._texts, prose),
            ("question", corpus.documents, mixture.question),
            ("dialogue", corpus.dialogues, talk),
        ):
            if share and not found:
                raise InputError(
                    f"the files hold no {kind}"
                    + (f" of more than {longest} tokens" if kind == "text" else "")
                    + f": give some, or set the share of {kind} to 0"
                )

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, number: int) -> Example:
        draw = random.Random(f"{self._seed}:{number}")
        mixture = self._mixture
        kind = draw.choices(KINDS, mixture.shares)[0]
        window = draw.choice(mixture.windows)
        depth = draw.randint(1, mixture.depth)
        rows = [getattr(self, f"_{kind}")(draw, window * depth + self._sink) for _ in range(mixture.batch)]
        contexts = torch.tensor([context for context, _ in rows])
        windows = torch.split(contexts, [window + self._sink] + [window] * (depth - 1), dim=1)
        tails, counts = self._padded([tails for _, tails in rows])
        ratios = tuple(draw.choice(mixture.ratios) for _ in windows)
        return Example(windows, ratios, tails, counts > UNSCORED, counts == ANSWER)

    def _text(self, draw: random.Random, length: int) -> tuple[list[int], list[Tail]]:
        run = self._run(draw, length + self._mixture.tail)
        context = run[:length]
        tails = [_all(run[length:], first=True)] if self._mixture.follow else []
        return context, tails + ([self._repeat(draw, context)] if self._mixture.again else [])

    def _fact(self, draw: random.Random, length: int) -> tuple[list[int], list[Tail]]:
        """Facts put anywhere into a text, or told in talks in the middle of it, and questions about some of them."""
        count = draw.randint(1, max(length // APART, 1))
        if draw.random() < 0.5:
            facts = draw_facts(draw, count)
            told = [self._model.encode(f" {fact.told} ") for fact in facts]
        else:
            facts = draw_own(draw, count)
            told = self._talks(draw, facts)
        room = max(length - sum(map(len, told)), 0)
        run = self._run(draw, room)
        cuts = sorted(draw.randint(0, room) for _ in told)
        context = run[: cuts[0]]
        for ids, cut, end in zip(told, cuts, [*cuts[1:], room], strict=True):
            context += [*ids, *run[cut:end]]
        asked = draw.sample(facts, min(RECALLED, len(facts)))
        return context[:length], [self._asked(Question(fact.ask, fact.answer)) for fact in asked]

    def _chat(self, draw: random.Random, length: int) -> tuple[list[int], list[Tail]]:
        """Facts told in passing between the turns of other talk, and questions about those that are there."""
        told = [draw_told(draw) for _ in range(draw.randint(1, max(length // CHATTED, 1)))]
        parts = [[self._said(part) for part in one.parts] for one in told]
        turns: list[list[int]] = []
        room = length - sum(len(ids) for one in parts for ids in one)
        while room > 0:
            more = self._turns(draw.choice(self._corpus.dialogues))
            turns, room = turns + more, room - sum(map(len, more))
        # Where each part stands among the turns; those of one fact in their order.
        placed: list[tuple[float, int, list[int]]] = [(float(n), -1, ids) for n, ids in enumerate(turns)]
        for number, one in enumerate(parts):
            places = sorted(draw.uniform(-1, len(turns)) for _ in one)
            placed += [(place, number, ids) for place, ids in zip(places, one, strict=True)]
        context: list[int] = []
        whole = [len(one) for one in parts]
        for _, number, ids in sorted(placed, key=lambda entry: entry[0]):
            context += ids
            if number >= 0 and len(context) <= length:
                whole[number] -= 1
        known = [one for one, left in zip(told, whole, strict=True) if not left]
        tails = [self._asked(Question(*one.asked(draw))) for one in draw.sample(known, min(RECALLED, len(known)))]
        return context[:length], tails or [self._repeat(draw, context[:length])]

    def _near(self, draw: random.Random, length: int) -> tuple[list[int], list[Tail]]:
        """Prose or dialogues; behind them, what has nothing to do with them: short talks asked about, other prose"""
        tails: list[Tail] = []
        for _ in range(TALKS):
            told = [draw_told(draw) for _ in range(draw.randint(1, 3))]
            said = [i for one in told for part in one.parts for i in self._said(part)]
            asked = draw.choice(told)
            first = draw.random() < 0.5  # the system prompt may stand in front of the talk, or of the question
            if first:
                said = [*self._transcript.system(None), *said]
            ids, scored = self._asked(Question(*asked.asked(draw)), system=not first)
            tails.append(([*said, *ids], [UNSCORED] + [SCORED] * (len(said) - 1) + scored))
        tails.append(_all(self._run(draw, self._mixture.tail), first=False))
        if self._corpus.dialogues and draw.random() < 0.5:
            return self._small_talk(draw, length), tails
        return self._run(draw, length), tails

    def _small_talk(self, draw: random.Random, length: int) -> list[int]:
        """So many tokens of dialogues, one after another."""
        found: list[int] = []
        while len(found) < length:
            found += [i for turn in self._turns(draw.choice(self._corpus.dialogues)) for i in turn]
        return found[:length]

    def _said(self, part: Sequence[Mapping[str, str]]) -> list[int]:
        return [i for message in part for i in self._transcript.turn(message)]

    def _talks(self, draw: random.Random, facts: Sequence[Fact]) -> list[list[int]]:
        """A few facts at a time as a user tells them, and a reply."""
        left, talks = list(facts), []
        while left:
            said, left = left[: (size := draw.randint(1, 4))], left[size:]
            told = {"role": "user", "content": " ".join(fact.told for fact in said)}
            reply = {"role": "assistant", "content": draw.choice(REPLIES)}
            talks.append([*self._transcript.turn(told), *self._transcript.turn(reply)])
        return talks

    def _run(self, draw: random.Random, length: int) -> list[int]:
        """So many tokens of some text, from anywhere in it."""
        while len(ids := self._ids(draw.choice(self._texts))) < length:
            pass
        start = draw.randrange(len(ids) - length + 1)
        return ids[start : start + length]

    def _question(self, draw: random.Random, length: int) -> tuple[list[int], list[Tail]]:
        """Sections up to the one that is asked about; if they are short, other texts before and behind them."""
        document = draw.choice(self._corpus.documents)
        sections, questions = self._sections(document), document.questions
        asked = draw.choice(questions)
        ends = list(accumulate(map(len, sections)))
        whole = [i for section in sections for i in section]
        while len(whole) < length:
            whole += [i for section in self._sections(draw.choice(self._corpus.documents)) for i in section]
        # The asked section lies anywhere in the context, whole where it fits.
        begin, end = ends[asked.part] - len(sections[asked.part]), ends[asked.part]
        low, high = max(0, end - length), min(begin, len(whole) - length)
        start = draw.randint(min(low, high), max(low, high))
        start = min(max(start, 0), len(whole) - length)
        inside = [q for q in questions if _inside(q.part, sections, ends, start, start + length)] or [asked]
        return whole[start : start + length], [self._asked(q) for q in draw.sample(inside, min(ASKED, len(inside)))]

    def _dialogue(self, draw: random.Random, length: int) -> tuple[list[int], list[Tail]]:
        """A dialogue's start (other dialogues before it if it is short), how it goes on, a stretch again, its facts."""
        dialogue = draw.choice(self._corpus.dialogues)
        turns, questions = self._turns(dialogue), dialogue.questions
        said = draw.randint(max(len(turns) // 2, 1), len(turns))
        context = [i for turn in turns[:said] for i in turn]
        while len(context) < length:
            context = [i for turn in self._turns(draw.choice(self._corpus.dialogues)) for i in turn] + context
        context = context[-length:]
        tails = [self._repeat(draw, context)] if self._mixture.again else []
        rest = [i for turn in turns[said:] for i in turn][: self._mixture.tail]
        if len(rest) > 1 and self._mixture.follow:
            tails.append(_all(rest, first=True))
        known = [q for q in questions if q.part < said and len([i for t in turns[q.part : said] for i in t]) <= length]
        tails += [self._asked(q) for q in draw.sample(known, min(2, len(known)))]
        return context, tails or [self._repeat(draw, context)]

    def _ids(self, number: int) -> list[int]:
        """A text's ids; reading all of a large corpus before the first step would take minutes."""
        if number not in self._encoded:
            self._encoded[number] = self._model.encode(self._corpus.texts[number])
        return self._encoded[number]

    def _sections(self, document: Document) -> list[list[int]]:
        return [self._model.encode(section + "\n") for section in document.sections]

    def _turns(self, dialogue: Dialogue) -> list[list[int]]:
        return [self._transcript.turn(message) for message in dialogue.messages]

    def _repeat(self, draw: random.Random, context: list[int]) -> Tail:
        """A stretch of the context again; its first token cannot be known."""
        size = min(self._mixture.tail, len(context))
        # As often from the start, where slots lose most, as from anywhere.
        start = 0 if draw.random() < 0.5 else draw.randrange(len(context) - size + 1)
        return _all(context[start : start + size], first=False)

    def _asked(self, question: Question, *, system: bool = True) -> Tail:
        """A question as a session asks it, and its answer, which alone is scored."""
        talk = self._transcript
        told = talk.system(None) if system else []
        before = [*told, *talk.turn({"role": "user", "content": question.ask}), *talk.header()]
        answer = talk.turn({"role": "assistant", "content": question.answer})
        header = talk.header()
        answer = answer[len(header) :] if answer[: len(header)] == header else self._model.encode(question.answer)
        ids = [*before, *answer]
        return ids, [UNSCORED] * len(before) + [ANSWER] * len(answer)

    def _padded(self, rows: Sequence[list[Tail]]) -> tuple[torch.Tensor, torch.Tensor]:
        """Tails of one length and number, and how each token counts; the padding is not scored."""
        count, size = max(map(len, rows)), max(len(ids) for tails in rows for ids, _ in tails)
        ids = torch.zeros(len(rows), count, size, dtype=torch.long)
        scored = torch.full((len(rows), count, size), UNSCORED)
        for row, tails in enumerate(rows):
            for column, (tail, mask) in enumerate(tails):
                ids[row, column, : len(tail)] = torch.tensor(tail)
                scored[row, column, : len(tail)] = torch.tensor(mask)
        return ids, scored


Tail = tuple[list[int], list[int]]  # ids, and how each counts


def _all(ids: list[int], *, first: bool) -> Tail:
    return ids, [SCORED if first else UNSCORED] + [SCORED] * (len(ids) - 1)


def _inside(part: int, parts: Sequence[Sequence[int]], ends: Sequence[int], start: int, end: int) -> bool:
    return start <= ends[part] - len(parts[part]) and ends[part] <= end
