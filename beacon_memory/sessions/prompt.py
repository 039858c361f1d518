"""A bare prompt, without a chat template: documents in front of it, and what does not fit raw is folded."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from beacon_memory.sessions.context import context_state
from beacon_memory.state.state import BeaconState

if TYPE_CHECKING:
    from beacon_memory.sessions.repository import Repository


def read_prompt(
    memory: Repository,
    ids: Sequence[int],
    *,
    contexts: Sequence[str | BeaconState] = (),
    answer: int = 256,
    ratio: int | None = None,
) -> tuple[list[int], BeaconState]:
    """The ids that stay raw, and the state in front of them: `contexts` are sessions of documents, or states; `answer`
    is how many tokens the answer may have. Raises SessionNotFound, BudgetExceeded.
    """
    model, start = memory.model, memory.transcript.start
    segments = context_state(memory, contexts).segments
    if len(ids) < model.positions - sum(segment.slots for segment in segments) - answer:
        return [*([] if segments else start), *ids], BeaconState(tuple(segments))
    folded = model.compress([*start, *ids], ratio=ratio, known=memory.known)
    joined = tuple(model.fit([*segments, *folded.segments], known=memory.known))
    memory.keep(joined)
    return model.tail(folded), BeaconState(joined)
