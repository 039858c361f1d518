"""Streams that stand behind others: slots join as they are, recurrent states are read again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from beacon_memory.state.state import BeaconState

if TYPE_CHECKING:
    from beacon_memory.models.model import BeaconModel, Known
    from beacon_memory.state.state import Segment


def joined(
    model: BeaconModel,
    before: Sequence[Segment],
    segments: Sequence[Segment],
    *,
    known: Known | None = None,
    slot_dtype: str | None = None,
) -> tuple[Segment, ...]:
    """Segments of another stream behind those `before`.

    A model with recurrent layers folds them again there, each at its ratio, unless `known` has them: a recurrent state
    stands for all that was read before it, so two of them cannot be joined.
    """
    whole = list(before)
    for segment in segments:
        if before and model.recurrent:
            how: dict[str, Any] = {"ratio": segment.ratio, "sink": segment.sink, "slot_dtype": slot_dtype}
            segment = model.refold(segment.ids, whole, known=known, **how)
        whole.append(segment)
    return tuple(whole)


def with_document(
    model: BeaconModel,
    before: Sequence[Segment],
    ids: Sequence[int],
    *,
    ratio: int,
    budget: int | None,
    known: Known | None = None,
    slot_dtype: str | None = None,
    progress: Callable[[int], None] | None = None,
) -> tuple[tuple[Segment, ...], tuple[Segment, ...]]:
    """A document behind segments, all of it in `budget` slots; and the document as it was folded.

    It is folded by itself, in no context, so every session that reads it shares its segments. A model with recurrent
    layers folds it where it stands. Raises BudgetExceeded.
    """
    how: dict[str, Any] = {"budget": budget, "known": known, "slot_dtype": slot_dtype}
    behind = tuple(before) if model.recurrent else ()
    read = model.compress(ids, BeaconState(behind), ratio=ratio, document=True, progress=progress, **how).segments
    if behind or not before:
        return read, read[len(behind) :]
    return tuple(model.fit([*before, *read], **how)), read
