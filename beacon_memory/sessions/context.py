"""Documents that are read once, get a name, and stand in front of any question: sessions that hold only documents."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from beacon_memory.errors import InputError, SessionNotFound
from beacon_memory.sessions.session import Session
from beacon_memory.sessions.stored import CONTEXT
from beacon_memory.state.state import BeaconState
from beacon_memory.talk.sources import check_text

if TYPE_CHECKING:
    from beacon_memory.sessions.repository import Repository


def read_context(
    memory: Repository, texts: Iterable[tuple[str, str]], *, context_id: str | None = None, ratio: int | None = None
) -> str:
    """The id under which these texts, each with a name, are kept folded. It is made from the texts if none is given."""
    named = list(texts)
    if context_id is None:
        context_id = hashlib.sha256("\0".join(text for _, text in named).encode()).hexdigest()[:16]
    session = Session(memory, CONTEXT + context_id, ratio=ratio)
    for name, text in named:
        session.add_text(text, name=name)
    return context_id


def read_apart(memory: Repository, texts: Iterable[str], *, ratio: int | None = None) -> BeaconState:
    """The state of these texts, each folded by itself. What was folded before is not folded again; nothing is written.

    Raises InputError for an empty text, BudgetExceeded.
    """
    state, model = BeaconState(), memory.model
    for text in texts:
        ids = [*memory.transcript.start, *model.encode(check_text(text))]
        read = model.compress(ids, ratio=ratio, document=True, known=memory.known)
        memory.keep(read.segments)
        state = state.join(read.segments)
    fitted = tuple(model.fit(state.segments, known=memory.known))
    memory.keep(fitted)
    return BeaconState(fitted)


def context_sessions(memory: Repository, context_id: str | Sequence[str] | None) -> list[str]:
    """The sessions of the documents in front. Raises InputError for one that is not there."""
    ids = [CONTEXT + one for one in ([context_id] if isinstance(context_id, str) else context_id or [])]
    for one in ids:
        try:
            memory.load(one)
        except SessionNotFound as exc:
            raise InputError(f"no context {one.removeprefix(CONTEXT)!r}: read its documents by with_context") from exc
    return ids
