"""A memory that looks again: passages that a question is about are read raw in front of it, as a session reads them.

`beacon+look` has as many KV entries as every other method, what it reads again counted: the oldest windows are folded
coarser until there is room for the passages. `beacon+recall` has the slots of `beacon`, and the passages beside them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from beacon_memory.config import RATIOS, RECALL_TOKENS
from beacon_memory.errors import BudgetExceeded
from beacon_memory.evaluation.items import Question
from beacon_memory.evaluation.memories import Folded, Memories
from beacon_memory.models.finder import NEUTRAL, QUESTION, Finder
from beacon_memory.models.model import BeaconModel
from beacon_memory.models.passages import Cutter
from beacon_memory.talk.transcript import Transcript
from beacon_memory.talk.words import shares

LOOKS = ("beacon+look", "beacon+recall")


class Looking:
    """One item's memory, and what each of its questions has read again."""

    def __init__(self, model: BeaconModel, finder: Finder, folded: Folded, *, tokens: int) -> None:
        self.past = folded.past
        self._model, self._finder, self._folded, self._tokens = model, finder, folded, tokens
        self._talk = Transcript(model.tokenizer)
        self._ids = [i for segment in folded.segments for i in segment.ids]
        self.passages = Cutter(model.decode, openings=self._talk.openings).spans(self._ids)
        self._idle = None
        if folded.segments and finder.heads:
            slots = folded.past.leading(folded.slots).read_to(folded.segments[-1].recurrent)
            neutral = self._talk.question(NEUTRAL)
            self._idle = finder.idle(model.lm, slots, folded.segments, self.passages, neutral)

    def asked(self, question: Question) -> tuple[Question, int]:
        """The question with what is read again in front of it, and how many tokens that is."""
        again = self._again(question.asked)
        if not again:
            return question, 0
        prompt, ask = (self._behind(again, ids) if ids else ids for ids in (question.prompt, question.ask))
        return replace(question, prompt=prompt, ask=ask), len(again)

    def _behind(self, again: tuple[int, ...], ids: tuple[int, ...]) -> tuple[int, ...]:
        at = self._start(ids) or 0
        return (*ids[:at], *again, *ids[at:])

    def texts(self) -> list[str]:
        """What stands in each passage."""
        return [self._model.decode(self._ids[slice(*span)]) for span in self.passages]

    def scores(self, ids: Sequence[int]) -> list[float] | None:
        """What each passage scores for the question that a prompt ends in; None where it ends in none."""
        if (start := self._start(ids)) is None or not self._folded.segments:
            return None
        rows, folded, finder = list(ids[start:][-QUESTION:]), self._folded, self._finder
        found = [0.0] * len(self.passages)
        if finder.heads:
            lm, segments = self._model.lm, folded.segments
            found = finder.scores(
                lm, self.past, segments, self.passages, rows, slots=folded.slots, idle=self._idle
            ).tolist()
        if finder.words:
            decode = self._model.decode
            said = shares(self.texts(), decode(ids[start:]), frame=decode(self._talk.question(".")))
            found = [paid + finder.words * share for paid, share in zip(found, said, strict=True)]
        return found

    def _again(self, ids: Sequence[int]) -> tuple[int, ...]:
        """What is read again for a prompt, in the order of the text."""
        if not self._tokens or (found := self.scores(ids)) is None:
            return ()
        read = len(self._ids) - self._folded.again  # what stands behind it is raw already
        spans = [(begin, min(end, read)) for begin, end in self.passages]
        order = sorted(range(len(spans)), key=lambda n: (found[n], n), reverse=True)
        order = [n for n in order if spans[n][0] < spans[n][1]]
        sizes = [(found[n], spans[n][1] - spans[n][0]) for n in order]
        chosen = sorted(order[n] for n in self._finder.chosen(sizes, tokens=self._tokens))
        return tuple(i for n in chosen for i in self._ids[slice(*spans[n])])

    def _start(self, ids: Sequence[int]) -> int | None:
        """Where the message begins that a prompt asks an answer to; None where it asks none."""
        header, system = (tuple(part) for part in (self._talk.header(), self._talk.system(None)))
        places = range(len(ids) - len(header), 0, -1)
        end = next((n for n in places if tuple(ids[n : n + len(header)]) == header), None)
        if end is None:
            return None
        start = next((n for n in range(end - 1, -1, -1) if ids[n] in self._talk.openings), None)
        return start if start is not None else len(system) * (tuple(ids[: len(system)]) == system)


def looking(memories: Memories, kind: str, ratio: int) -> Looking | None:
    """A memory that looks again; None where it does not fit the model's window, or slots cannot give way any more."""
    model, planned, finder = memories.model, memories.plan(ratio), memories.model.finder
    assert finder is not None
    if not planned.slots:
        past = memories.make("beacon", ratio)
        return None if past is None else Looking(model, finder, Folded((), past, 0), tokens=0)
    if (
        planned.entries + len(memories.item.system) + (RECALL_TOKENS if kind == "beacon+recall" else 0)
        >= model.positions
    ):
        return None
    if kind == "beacon+recall":
        return Looking(model, finder, memories.folded(ratio), tokens=RECALL_TOKENS)
    if 2 * ratio > RATIOS[-1]:
        return None
    # Not more than half of the slots give way.
    budget = max(planned.slots - RECALL_TOKENS, memories.plan(2 * ratio).slots)
    try:
        folded = memories.folded(ratio, budget=budget)
    except BudgetExceeded:
        return None
    return Looking(model, finder, folded, tokens=min(RECALL_TOKENS, planned.slots - folded.slots))
