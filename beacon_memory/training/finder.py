"""A finder fitted to a model: which KV heads look, in a memory, at the passage that a question asks for.

Memories are made of texts with facts put into them, of documents and of dialogues, folded at any ratio. Questions are
asked of them: for the facts, for what stands behind a quotation, and, where the files have some, the documents' and
dialogues' own. Each question is read once behind the slots and what stands raw behind them. The weights of the heads,
none below zero, are a logistic regression that tells the passage that answers from the others, or from none where
nothing does.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from beacon_memory.config import RATIOS
from beacon_memory.errors import InputError
from beacon_memory.fold.family import kv_heads
from beacon_memory.models.finder import NEUTRAL, Finder, attention, levelled, read_on
from beacon_memory.models.model import BeaconModel
from beacon_memory.models.passages import Cutter
from beacon_memory.models.resident import ResidentPrefix
from beacon_memory.talk.transcript import Transcript
from beacon_memory.training.data import Corpus
from beacon_memory.training.facts import REPLIES, draw_facts, draw_own

MEMORIES = 60
LENGTHS = (768, 1024, 1536, 2048)  # tokens of a memory
TAILS = (0, 128, 512)  # raw tokens between a memory and its questions
FACTS = (4, 10)  # facts of a memory, at least and at most
ASKED, QUOTED, ABSENT, FOREIGN = 8, 3, 2, 3  # questions of a memory: for what is told, for facts that are not, others'
HEADS = 16  # that a finder has, at most
LIGHT = 0.03  # a head of less than this share of the greatest weight is left out
SCALE = 10.0  # attention is a few hundredths: steps of the regression are made for numbers around one
STEPS, RATE, SPARSE = 300, 0.05, 0.01
BASELINE = 0.7  # the share that is taken off of what a question about nothing pays
QUIET = 0.95  # share of the questions that nothing answers for which nothing may be found
QUOTES = (
    'What comes after "{}"?',
    'How does the sentence "{}..." go on?',
    'Where does it say "{}", and what is said then?',
    '"{}" - what happens next?',
)


@dataclass(frozen=True)
class Asked:
    """A question, and the range of the memory's ids that answers it; None where nothing does."""

    text: str
    answer: tuple[int, int] | None
    foreign: bool = False  # asked of another memory: nothing here is even like its answer


@dataclass(frozen=True)
class Looked:
    """Where a question's heads looked."""

    attention: Tensor  # (heads, passages), the KV heads of all layers
    idle: Tensor  # the same for a question about nothing
    right: Tensor  # (passages,), bool
    foreign: bool


def fit_finder(
    model: BeaconModel,
    corpus: Corpus,
    *,
    memories: int = MEMORIES,
    lengths: Sequence[int] = LENGTHS,
    seed: int = 0,
    progress: Callable[[int], None] | None = None,
) -> Finder:
    """A finder for this model as it folds now. `progress` gets 1 after each memory.

    Raises InputError for texts of which none is long enough.
    """
    looked: list[Looked] = []
    for found in look(model, corpus, memories=memories, lengths=lengths, seed=seed):
        looked += found
        if progress:
            progress(1)
    return fitted(looked, heads=kv_heads(model.lm.config))


def look(
    model: BeaconModel, corpus: Corpus, *, memories: int, lengths: Sequence[int] = LENGTHS, seed: int = 0
) -> Iterator[list[Looked]]:
    """What all heads look at, memory by memory. Raises InputError."""
    maker = _Maker(model, corpus, max(lengths))
    heads = kv_heads(model.lm.config)
    ratios = [ratio for ratio in RATIOS[1:] if not model.config.window % ratio]
    draw = random.Random(seed)
    before: list[Asked] = []
    for number in range(memories):
        ids, asked = maker.make(draw, draw.choice(lengths))
        foreign = [Asked(one.text, None, foreign=True) for one in before if one.answer]
        before = asked
        state = model.compress(ids, ratio=ratios[number % len(ratios)], document=True)
        passages = Cutter(model.decode).spans([i for segment in state.segments for i in segment.ids])
        resident = ResidentPrefix(model.empty)
        tail = maker.tail(draw, TAILS[number // len(ratios) % len(TAILS)])
        resident.stand(state.segments, room=len(tail))
        slots, neutral = resident.past.slots, maker.question(NEUTRAL)
        idle = attention(model.lm, resident.past, state.segments, passages, neutral, heads=heads)
        if tail:
            read_on(model.lm, resident, tail)
        found = []
        for one in asked + draw.sample(foreign, min(FOREIGN, len(foreign))):
            rows = maker.question(one.text)
            paid = attention(model.lm, resident.past, state.segments, passages, rows, heads=heads, slots=slots)
            start, end = one.answer or (0, 0)
            right = torch.tensor([begin < end and start < stop for begin, stop in passages])
            found.append(Looked(paid, idle, right, one.foreign))
        yield found


def fitted(looked: Sequence[Looked], *, heads: Sequence[tuple[int, int]]) -> Finder:
    """The heads and weights that tell right passages from wrong ones."""
    count, most = len(looked), max(len(one.right) for one in looked)
    paid, (right, real) = torch.zeros(count, len(heads), most), torch.zeros(2, count, most).bool()
    for row, one in enumerate(looked):
        passages = len(one.right)
        paid[row, :, :passages] = one.attention - BASELINE * one.idle
        right[row, :passages], real[row, :passages] = one.right, True
    weights = _regression(paid, right, real, torch.ones(len(heads)))
    chosen = torch.zeros(len(heads)).scatter(0, weights.topk(min(HEADS, len(heads))).indices, 1.0)
    chosen *= weights > LIGHT * weights.max()
    weights = _regression(paid, right, real, chosen)
    order = [int(i) for i in weights.argsort(descending=True, stable=True) if weights[i] > 0]
    foreign = [one for one in looked if one.foreign] or [one for one in looked if not one.right.any()]
    absent = [levelled(weights @ one.attention, BASELINE * (weights @ one.idle)).max() for one in foreign]
    threshold = float(torch.stack(absent).quantile(QUIET)) if absent else 0.0
    found = tuple(heads[head] for head in order)
    return Finder(found, tuple(float(weights[head]) for head in order), threshold, BASELINE)


def _regression(paid: Tensor, right: Tensor, real: Tensor, chosen: Tensor) -> Tensor:
    """Weights, none below zero, of the chosen heads.  # (heads,)"""
    weights = (chosen / chosen.sum()).requires_grad_()
    bias = torch.ones(1, requires_grad=True)  # the score of "nothing answers it"
    optimizer = torch.optim.Adam([weights, bias], lr=RATE)
    rightly = torch.cat([right, ~right.any(dim=1, keepdim=True)], dim=1)
    paid = SCALE * paid
    for _ in range(STEPS):
        scores = torch.einsum("h,nhp->np", weights, paid).masked_fill(~real, -1e9)
        told = torch.cat([scores, bias.expand(len(scores), 1)], dim=1).log_softmax(dim=1)
        loss = -told.masked_fill(~rightly, -1e9).logsumexp(dim=1).mean() + SPARSE * weights.sum()
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        with torch.no_grad():
            weights.clamp_(min=0).mul_(chosen)
    return weights.detach() * SCALE


class _Maker:
    """Memories and questions, made of a corpus."""

    def __init__(self, model: BeaconModel, corpus: Corpus, longest: int) -> None:
        self._model = model
        self._talk = Transcript(model.tokenizer)
        self._corpus = corpus
        self._texts = [ids for text in corpus.texts if len(ids := model.encode(text)) > longest]
        self._documents = [one for one in corpus.documents if one.questions]
        self._dialogues = [one for one in corpus.dialogues if one.questions]
        if not self._texts:
            raise InputError(
                f"fitting needs a text of more than {longest} tokens; none of the {len(corpus.texts)} given has them"
            )

    def question(self, text: str) -> list[int]:
        """The rows of a question, as a session asks it."""
        return self._talk.question(text)

    def make(self, draw: random.Random, length: int) -> tuple[list[int], list[Asked]]:
        """The ids of a memory of about this length, and its questions."""
        kinds: list[Any] = [self._facts]
        kinds += [self._document] * bool(self._documents) + [self._dialogue] * bool(self._dialogues)
        ids, asked, absent = draw.choice(kinds)(draw, length)
        told = draw.sample(asked, min(ASKED, len(asked))) + absent
        return ids, told + [quote for _ in range(QUOTED) if (quote := self._quote(draw, ids))]

    def tail(self, draw: random.Random, length: int) -> list[int]:
        """Something else that stands raw behind a memory."""
        stream = draw.choice(self._texts)
        at = draw.randrange(len(stream) - min(length, len(stream) // 2))
        return stream[at : at + length]

    def _facts(self, draw: random.Random, length: int) -> tuple[list[int], list[Asked], list[Asked]]:
        """A text with facts in it, plainly or as somebody tells them of himself."""
        count = draw.randint(*FACTS)
        own = draw.random() < 0.5
        facts = (draw_own if own else draw_facts)(draw, count + ABSENT)
        facts, others = facts[:-ABSENT], facts[-ABSENT:]
        told = [self._told(draw, fact.told, said=own and draw.random() < 0.5) for fact in facts]
        stream = draw.choice(self._texts)
        room = max(length - sum(map(len, told)), len(told))
        at = draw.randrange(len(stream) - room)
        run, cuts = stream[at : at + room], sorted(draw.randint(0, room) for _ in told)
        ids, asked = [*self._talk.start, *run[: cuts[0]]], []
        for fact, one, cut, end in zip(facts, told, cuts, [*cuts[1:], room], strict=True):
            asked.append(Asked(fact.ask, (len(ids), len(ids) + len(one))))
            ids += [*one, *run[cut:end]]
        return ids, asked, [Asked(fact.ask, None) for fact in others]

    def _told(self, draw: random.Random, text: str, *, said: bool) -> list[int]:
        if not said:
            return self._model.encode(f" {text} ")
        reply = {"role": "assistant", "content": draw.choice(REPLIES)}
        return [*self._talk.turn({"role": "user", "content": text}), *self._talk.turn(reply)]

    def _document(self, draw: random.Random, length: int) -> tuple[list[int], list[Asked], list[Asked]]:
        """Sections of a document, and other documents' where it is short, and what is asked about it."""
        document = draw.choice(self._documents)
        ids, asked = list(self._talk.start), []
        for part, section in enumerate(document.sections):
            begin = len(ids)
            if begin > length:
                break
            ids += self._model.encode(section + "\n")
            for question in document.questions:
                if question.part == part:
                    asked.append(Asked(question.ask, self._within(section, question.answer, begin, len(ids))))
        while len(ids) < length:
            ids += [i for one in draw.choice(self._documents).sections for i in self._model.encode(one + "\n")]
        return ids[:length], [one for one in asked if one.answer and one.answer[1] <= length], []

    def _within(self, section: str, answer: str, begin: int, end: int) -> tuple[int, int]:
        """Where a section gives an answer in its words; the whole of it where it does not."""
        at = section.lower().find(answer.lower().strip(" ."))
        if at < 0:
            return begin, end
        start = begin + len(self._model.encode(section[:at]))
        return start, max(begin + len(self._model.encode(section[: at + len(answer)])), start + 1)

    def _dialogue(self, draw: random.Random, length: int) -> tuple[list[int], list[Asked], list[Asked]]:
        """A dialogue behind and in front of others, and what was said in it."""
        dialogue = draw.choice(self._dialogues)
        own = [self._talk.turn(message) for message in dialogue.messages]
        room, others = max(length - sum(map(len, own)), 0), list[list[int]]()
        while sum(map(len, others)) < room:
            others += [self._talk.turn(message) for message in draw.choice(self._corpus.dialogues).messages]
        place = draw.randint(0, len(others))
        ids, spans = [*self._talk.start, *(i for turn in others[:place] for i in turn)], []
        for turn in own:
            spans.append((len(ids), len(ids) + len(turn)))
            ids += turn
        ids += [i for turn in others[place:] for i in turn]
        return ids, [Asked(question.ask, spans[question.part]) for question in dialogue.questions], []

    def _quote(self, draw: random.Random, ids: Sequence[int]) -> Asked | None:
        """The beginning of a sentence, to be gone on with."""
        sentences = [span for span in Cutter(self._model.decode, size=32).spans(ids) if span[1] - span[0] > 16]
        if not sentences:
            return None
        start, end = draw.choice(sentences)
        said = self._model.decode(ids[start : start + draw.randint(6, (end - start) // 2 + 2)]).strip()
        return Asked(draw.choice(QUOTES).format(said), (start, end))
