"""A prompt: segments in front as slots, raw ids behind them, and what each range of these ids is.

Every answer of a session, of a batch and of the frameworks is asked for by a prompt made here.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from beacon_memory.errors import BudgetExceeded, InputError
from beacon_memory.models.generation import Sampling
from beacon_memory.models.joining import joined
from beacon_memory.state.state import BeaconState, overlapped

if TYPE_CHECKING:
    from beacon_memory.sessions.repository import Repository
    from beacon_memory.state.source import Origin, Source
    from beacon_memory.state.state import Segment
    from beacon_memory.talk.messages import Message


Pieces = list[tuple[str, tuple[int, ...]]]


RECALLED = "recalled"  # the part that was read before, stands folded in front, and is read again


@dataclass(frozen=True)
class Part:
    """A range of a prompt's ids."""

    name: str  # what it is: "start", "system", "tail", "recalled", "asked", "header"; "text" of a bare prompt
    start: int
    end: int


@dataclass(frozen=True)
class Prompt:
    """What the model reads before an answer: a prefix of segments, and the ids behind it.

    >>> prompt = Prompt.of((), [("system", [1, 2]), ("tail", []), ("asked", [3]), ("header", [4])])
    >>> prompt.ids, prompt.part("asked")
    ((1, 2, 3, 4), (3,))
    """

    segments: tuple[Segment, ...]
    ids: tuple[int, ...]
    parts: tuple[Part, ...]  # they cover `ids`, in order
    resident: tuple[str, ...] = ()  # whose prefix may be on the device still: see `Repository.resident`
    stop: tuple[str, ...] = ()  # what ends the answer, whatever the caller adds
    foldable: bool = False  # whether what is asked may be folded to make room: a question by itself is read as it is
    origins: tuple[Origin | None, ...] = ()  # what each segment was folded from, where that is known
    sources: tuple[Source, ...] = ()  # of what is read again

    @classmethod
    def of(
        cls,
        segments: Sequence[Segment],
        pieces: Iterable[tuple[str, Sequence[int]]],
        *,
        resident: Sequence[str] = (),
        stop: Sequence[str] = (),
    ) -> Prompt:
        """A prompt of named pieces, in order."""
        ids: list[int] = []
        parts = []
        for name, piece in pieces:
            parts.append(Part(name, len(ids), len(ids) + len(piece)))
            ids += piece
        return cls(tuple(segments), tuple(ids), tuple(parts), tuple(resident), tuple(stop))

    def stops(self, own: str | Sequence[str] | None = None) -> tuple[str, ...]:
        """The stop strings of a caller and the prompt's own. Raises ConfigError for what is no string."""
        return tuple(dict.fromkeys([*Sampling(stop=own).stops, *self.stop]))

    @property
    def state(self) -> BeaconState:
        """What stands in front, as the model takes it."""
        return BeaconState(self.segments)

    @property
    def slots(self) -> int:
        """KV entries in front of the ids."""
        return sum(segment.slots for segment in self.segments)

    @property
    def tokens(self) -> int:
        """Tokens that the answer can see, folded or raw."""
        raw = sum(part.end - part.start for part in self.parts if part.name != RECALLED)
        return sum(len(segment.ids) for segment in self.segments) + raw

    def part(self, name: str) -> tuple[int, ...]:
        """The ids of a part; none where the prompt has no such part."""
        return tuple(i for part in self.parts if part.name == name for i in self.ids[part.start : part.end])


def make_prompt(
    memory: Repository,
    state: BeaconState,
    *,
    opens: bool,
    segments: Sequence[Segment] | None = None,
    asked: Sequence[Message] = (),
    newest: Message | None = None,
    system: str | None = None,
    tools: Sequence[Any] = (),
    resident: Sequence[str] = (),
    origins: Sequence[Origin | None] = (),
) -> Prompt:
    """The prompt for an answer behind a state: its slots, its raw tail, what is `asked` and the answer's header.

    The system prompt stands where the model expects it (`Transcript.pieces`). `newest` is the message that the tail
    ends with, where that is known. `segments` stand in front where these are not the state's own. The tail `opens` its
    stream where nothing of it is folded. Raises InputError, TranscriptError.
    """
    if not isinstance(system, str | None):
        raise InputError(f"system is text, or None for the model's own, not {system!r:.80}")
    front = state.segments if segments is None else tuple(segments)
    tail = memory.model.tail(state, opens=opens)
    how: dict[str, Any] = {"asked": asked, "newest": newest, "system": system, "tools": tools}
    pieces = memory.transcript.pieces(tail, behind=bool(front), opens=opens, **how)
    prompt = Prompt.of(front, pieces, resident=resident, stop=memory.transcript.stop)
    question = len(asked) == 1 and asked[0]["role"] == "user"
    return replace(prompt, origins=tuple(origins), foldable=not question)


def fitted(memory: Repository, prompt: Prompt, *, answer: int) -> Prompt:
    """The prompt with room for an answer of so many tokens; what it takes is done for this answer alone.

    Where what is raw takes more than half of the room, all of it but the newest tokens is folded, a question by itself
    left out; then old segments are folded again, coarser, until all fit. What fits as it is, or cannot be made to fit,
    is given back as it is.
    """
    model = memory.model
    room = memory.positions - answer
    if prompt.slots + len(prompt.ids) <= room:
        return prompt
    segments, pieces = list(prompt.segments), [(part.name, prompt.part(part.name)) for part in prompt.parts]
    tail = 0 if prompt.foldable else len(prompt.part("start")) + len(prompt.part("tail"))
    if not prompt.foldable and len(prompt.ids) - tail > room:
        return prompt
    try:
        if len(prompt.ids) > room // 2 and (prompt.foldable or tail):
            pieces, segments = _folded(memory, pieces, segments, asked=prompt.foldable)
        left = room - sum(len(ids) for _, ids in pieces)
        segments = model.fit(segments, budget=max(0, left), known=memory.known)
    except BudgetExceeded:
        return prompt
    memory.keep(segments)
    return Prompt.of(segments, pieces, resident=prompt.resident, stop=prompt.stop)


def _folded(
    memory: Repository, pieces: Pieces, segments: Sequence[Segment], *, asked: bool
) -> tuple[Pieces, list[Segment]]:
    """The pieces without what was said before the newest tokens, which stands in segments; what is `asked` may be."""
    model, named = memory.model, dict(pieces)
    tail, before = named.get("tail", ()), tuple(overlapped(segments, config=model.config))
    if before and tail[: len(before)] == before:
        tail = tail[len(before) :]  # the fold reads it itself
    said = [*named.get("start", ()), *tail, *(named.get("asked", ()) if asked else ())]
    state = model.compress(said, BeaconState(tuple(segments)), budget=memory.positions, known=memory.known)
    left = tuple(model.tail(state))
    named |= {"start": (), "tail": (), "asked": left} if asked else {"start": (), "tail": left}
    return list(named.items()), list(state.segments)


def text_prompt(
    memory: Repository,
    ids: Sequence[int],
    *,
    contexts: Sequence[str | BeaconState] = (),
    answer: int = 256,
    ratio: int | None = None,
) -> Prompt:
    """A bare prompt, without a chat template; what does not fit raw is folded.

    `contexts` are sessions of documents that stand in front, or states; `answer` is how many tokens the answer may
    have. Raises SessionNotFound, BudgetExceeded.
    """
    model, start = memory.model, memory.transcript.start
    segments = context_state(memory, contexts).segments
    if len(ids) < memory.positions - sum(segment.slots for segment in segments) - answer:
        return Prompt.of(segments, [("start", [] if segments else start), ("text", ids)])
    folded = model.compress([*start, *ids], ratio=ratio, known=memory.known)
    whole = joined(model, segments, folded.segments, known=memory.known)
    fitted = tuple(model.fit(whole, known=memory.known))
    memory.keep(fitted)
    return Prompt.of(fitted, [("text", model.tail(folded))])


def context_state(memory: Repository, contexts: Iterable[str | BeaconState]) -> BeaconState:
    """What stands in front: the documents of sessions, by their ids, or states; in the order given. Those of a model
    with recurrent layers are folded again behind each other; what was folded so before is on hand.
    """
    whole: tuple[Segment, ...] = ()
    for one in contexts:
        state = one if isinstance(one, BeaconState) else memory.view(one, memory.state)[0]
        whole = behind(memory, whole, state.segments)
    return BeaconState(whole)


def behind(
    memory: Repository, front: Sequence[Segment], segments: Sequence[Segment], **how: Any
) -> tuple[Segment, ...]:
    """Segments behind others, as `joining.joined` gives them; kept on hand, for the next turn."""
    whole = joined(memory.model, front, segments, **({"known": memory.known} | how))
    if front and memory.model.recurrent:
        memory.keep(whole[len(front) :])
    return whole
