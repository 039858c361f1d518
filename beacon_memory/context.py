"""Documents by name, read once, that stand in front of whatever is asked: sessions that hold documents alone."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from beacon_memory.errors import InputError, SessionNotFound

if TYPE_CHECKING:
    from beacon_memory.memory import BeaconMemory

CONTEXT = "context:"  # in front of the ids of these sessions


def read_context(
    memory: BeaconMemory, texts: Iterable[tuple[str, str]], *, context_id: str | None = None, ratio: int | None = None
) -> str:
    """The id under which these texts, each with its name, are kept folded; made of the texts when none is given."""
    named = list(texts)
    if context_id is None:
        context_id = hashlib.sha256("\0".join(text for _, text in named).encode()).hexdigest()[:16]
    session = memory.session(CONTEXT + context_id, ratio=ratio)
    for name, text in named:
        session.add_text(text, name=name)
    return context_id


def context_sessions(memory: BeaconMemory, context_id: str | Sequence[str] | None) -> list[str]:
    """The sessions of the documents in front. Raises InputError for one that is not there."""
    ids = [CONTEXT + one for one in ([context_id] if isinstance(context_id, str) else context_id or [])]
    for one in ids:
        try:
            memory.load(one)
        except SessionNotFound as exc:
            raise InputError(f"no context {one.removeprefix(CONTEXT)!r}: read its documents by with_context") from exc
    return ids
