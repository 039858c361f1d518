"""Looking again: the passages that a question is about are found by its attention, and read raw in front of it."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from beacon_memory.config import check_recall
from beacon_memory.errors import ConfigError, InputError
from beacon_memory.models.finder import NEUTRAL, QUESTION
from beacon_memory.models.resident import ResidentPrefix
from beacon_memory.sessions.looking.source import sources_of
from beacon_memory.sessions.prompt import RECALLED, Prompt
from beacon_memory.state.source import Found, Origin, Source
from beacon_memory.talk.words import shares

if TYPE_CHECKING:
    from beacon_memory.sessions.repository import Repository
    from beacon_memory.talk.messages import Message

logger = logging.getLogger(__name__)

OLD = "its segments were written before places were: fold them again with repair(…, places=True)"


@dataclass(frozen=True)
class _Run:
    """Segments of one origin, one behind another."""

    origin: Origin | None
    start: int  # of its ids among all of the origin's
    ids: tuple[int, ...]


def look_again(
    memory: Repository,
    prompt: Prompt,
    *,
    since: Sequence[Message] = (),
    recall_tokens: int | None = None,
    answer: int = 256,
) -> Prompt:
    """The prompt with the passages that its question is about, raw in front of the question, and their sources.

    At most `recall_tokens` of them (default: the memory's), and no more than leave room for `answer` tokens. `since`
    are the messages from the user's newest on, where those are known: calls and results of tools may stand behind it.
    The prompt as it is where nothing is found, no question is asked, or the model has no finder. Raises ConfigError.
    """
    limit = check_recall(memory.recall_tokens if recall_tokens is None else recall_tokens)
    finder, start = memory.model.finder, _question(memory, prompt, since)
    if not limit or finder is None or start is None or not prompt.segments:
        return prompt
    if finder.heads and all(segment.placed is None for segment in prompt.segments):
        logger.warning("a memory cannot look again: %s", OLD)
        return prompt
    left = min(limit, memory.positions - prompt.slots - len(prompt.ids) - answer)
    ranked = _ranked(memory, prompt, start, room=limit + answer)
    chosen = [ranked[n] for n in finder.chosen([(found.score, len(found.ids)) for _, found in ranked], tokens=left)]
    if not chosen:
        return prompt
    again = [i for _, found in sorted(chosen, key=lambda one: one[0]) for i in found.ids]
    sources = sources_of(memory, [found for _, found in chosen])
    return replace(_inserted(prompt, start, again), sources=tuple(sources))


def search(memory: Repository, prompt: Prompt, *, limit: int) -> list[Source]:
    """The sources of the passages that a prompt's question is about, the best first, those below the threshold too.

    Raises ConfigError where the model has no finder, InputError where no segment has places or `limit` is no number.
    """
    if type(limit) is not int or limit < 0:
        raise InputError(f"limit is a number of passages, 0 or more, not {limit!r:.80}")
    if (finder := memory.model.finder) is None:
        raise ConfigError(
            "this model has no finder: load it with finder='words', or fit one with beacon-memory fit-finder"
        )
    start = _question(memory, prompt)
    if not prompt.segments or start is None:
        return []
    if finder.heads and all(segment.placed is None for segment in prompt.segments):
        raise InputError(f"this session cannot be searched: {OLD}")
    ranked = [found for _, found in _ranked(memory, prompt, start)]
    return sources_of(memory, [found for found in ranked if found.score > 0][:limit])


def _ranked(memory: Repository, prompt: Prompt, start: int, *, room: int = 0) -> list[tuple[int, Found]]:
    """All passages with their place in what was read, the best first; of equals the newest.

    The question begins at `start` of the prompt's ids; `room` more rows are to be read later.
    """
    finder = memory.model.finder
    assert finder is not None
    spans: list[tuple[int, int]] = []
    passages: list[tuple[int, Found]] = []
    before = 0
    for run in _runs(prompt):
        for begin, end in memory.cutter.spans(run.ids):
            spans.append((before + begin, before + end))
            passages.append((spans[-1][0], Found(run.ids[begin:end], run.start + begin, 0.0, run.origin)))
        before += len(run.ids)
    scores = [0.0] * len(spans)
    if finder.heads:
        scores = _paid(memory, prompt, start, spans, room=room)
    if finder.words:
        decode = memory.model.decode
        texts, frame = [decode(found.ids) for _, found in passages], decode(memory.transcript.question("."))
        said = shares(texts, decode(prompt.ids[start:]), frame=frame)
        scores = [paid + finder.words * share for paid, share in zip(scores, said, strict=True)]
    again = _overlap(memory, prompt)
    found = []
    for (place, passage), score in zip(passages, scores, strict=True):
        ids = passage.ids[: max(before - again - place, 0)]  # the newest tokens may stand in the raw tail too
        if ids:
            found.append((place, replace(passage, ids=ids, score=score)))
    return sorted(found, key=lambda one: (one[1].score, one[0]), reverse=True)


def _paid(memory: Repository, prompt: Prompt, start: int, spans: list[tuple[int, int]], *, room: int) -> list[float]:
    """What each passage scores by the attention of a question that begins at `start`."""
    model, finder = memory.model, memory.model.finder
    assert finder is not None
    # Where rows stay on the device, the question is read where it stands, for the answer too; elsewhere, alone.
    resident = memory.resident(*prompt.resident) if prompt.resident else None
    standing, first = resident or ResidentPrefix(model.empty), 0 if resident else max(start, len(prompt.ids) - QUESTION)
    with model.running.line:
        ids = prompt.ids[first:]
        shared = standing.stand(prompt.segments, ids[: start - first + 1], room=len(ids) + room)
        if standing.idle is None or standing.idle[0] != spans:
            slots = standing.past.leading(standing.segments[-1][1]).read_to(prompt.segments[-1].recurrent)
            neutral = memory.transcript.question(NEUTRAL)
            standing.idle = spans, finder.idle(model.lm, slots, prompt.segments, spans, neutral)
        how: dict[str, Any] = {"question": len(prompt.ids) - start, "idle": standing.idle[1]}
        scores = finder.read(model.lm, standing, prompt.segments, spans, ids[shared:], **how)
    if resident is not None:
        resident.release(resident)
    paid: list[float] = scores.tolist()
    return paid


def _runs(prompt: Prompt) -> Iterator[_Run]:
    """The prompt's segments by origin; one whose origin is not known stands alone."""
    known = prompt.origins if len(prompt.origins) == len(prompt.segments) else (None,) * len(prompt.segments)
    read: dict[Origin | None, int] = {}
    run: _Run | None = None
    for segment, origin in zip(prompt.segments, known, strict=True):
        if run is not None and origin is not None and origin == run.origin:
            run = replace(run, ids=run.ids + segment.ids)
        else:
            if run is not None:
                yield run
            run = _Run(origin, 0 if origin is None else read.get(origin, 0), segment.ids)
        read[origin] = read.get(origin, 0) + len(segment.ids)
    if run is not None:
        yield run


def _overlap(memory: Repository, prompt: Prompt) -> int:
    """How many of the newest segment's tokens are read again in front of the raw tail."""
    size = memory.model.config.overlap
    tail, newest = prompt.part("tail"), prompt.segments[-1].ids
    return size if size and tail[:size] == newest[-size:] else 0


def _question(memory: Repository, prompt: Prompt, since: Sequence[Message] = ()) -> int | None:
    """Where a prompt's question begins: its newest message, or the first of `since`. None where nothing is asked."""
    parts = {part.name: part for part in prompt.parts}
    asked = parts.get("asked")
    if "header" not in parts:
        # A bare prompt behind documents; what was itself too long to be read raw is no question.
        text = parts.get("text")
        return text.start if text is not None and text.end > text.start and prompt.origins else None
    end = parts["header"].start
    said = tuple(i for message in since for i in memory.transcript.turn(message))
    if said and prompt.ids[:end][-len(said) :] == said:
        return end - len(said)
    if len(since) > 1:  # the question is folded, or written in another way with the system prompt in it
        return None
    first = min((part.start for part in prompt.parts if part.name in ("tail", "asked")), default=end)
    openings = memory.transcript.openings
    for at in range(end - 1, first - 1, -1):
        if prompt.ids[at] in openings:
            return at
    # A template whose messages have no opening of their own.
    if openings or asked is None or asked.start == asked.end:
        return None
    return asked.start


def _inserted(prompt: Prompt, at: int, ids: Sequence[int]) -> Prompt:
    """The prompt with more ids in front of one of its own, as a part of their own."""
    pieces: list[tuple[str, Sequence[int]]] = []
    for part in prompt.parts:
        own, cut = prompt.ids[part.start : part.end], at - part.start
        if part.start <= at < part.end:
            pieces += [(part.name, own[:cut])] * bool(cut)
            pieces += [(RECALLED, ids), (part.name, own[cut:])]
        else:
            pieces.append((part.name, own))
    made = Prompt.of(prompt.segments, pieces)
    return replace(prompt, ids=made.ids, parts=made.parts)
