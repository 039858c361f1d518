"""Documents that are read once, get a name, and stand in front of any question: sessions that hold only documents."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from beacon_memory.errors import InputError, SessionNotFound
from beacon_memory.models.given import given_list
from beacon_memory.sessions.documents import Documents
from beacon_memory.sessions.looking.source import Traced, names_of
from beacon_memory.sessions.stored import CONTEXT, context_name
from beacon_memory.state.source import Origin
from beacon_memory.state.state import BeaconState
from beacon_memory.talk.sources import as_documents, check_text

if TYPE_CHECKING:
    from beacon_memory.sessions.repository import Repository
    from beacon_memory.state.head import SessionHead


def read_context(
    memory: Repository,
    texts: Iterable[tuple[str, str]],
    *,
    context_id: str | None = None,
    ratio: int | None = None,
    delete_missing: bool = False,
) -> str:
    """The id under which these texts, each with its name, are kept folded; made of the texts when none is given.

    A text takes the place of the older one of its name; texts of one name (the pages of a file) are one document; those
    without a name are "text 1", "text 2", …. With `delete_missing`, documents that are not among these are removed, but
    not those whose text is "": they could not be read. All of it is done or nothing. Raises InputError.
    """
    name, documents, unread = as_documents(texts, context_id)
    if not documents and not delete_missing:
        raise InputError("there is no document to read")
    Documents(memory, name, ratio=ratio).put(documents, delete_missing=delete_missing, keep=unread)
    return name


def read_apart(memory: Repository, texts: Iterable[str], *, ratio: int | None = None) -> Traced:
    """The state of these texts, "text 1", "text 2", …, each folded by itself, or where layers are recurrent behind
    those before it. What was folded before is not folded again; nothing is written.

    Raises InputError for an empty text, BudgetExceeded.
    """
    state, model = BeaconState(), memory.model
    origins: list[Origin] = []
    for number, text in enumerate(texts, 1):
        ids = [*memory.transcript.start, *model.encode(check_text(text))]
        behind = state.segments if model.recurrent else ()
        read = model.compress(ids, BeaconState(behind), ratio=ratio, document=True, known=memory.known)
        memory.keep(read.segments)
        state = read if behind else state.join(read.segments)
        origins += [Origin(document=f"text {number}")] * (len(state.segments) - len(origins))
    fitted = tuple(model.fit(state.segments, known=memory.known))
    memory.keep(fitted)
    return Traced(fitted, origins=tuple(origins))


def context_sessions(memory: Repository, context_id: str | Sequence[str] | None) -> list[str]:
    """The sessions of the documents in front. Raises InputError for one that is not there."""
    many = [context_id] if isinstance(context_id, str) else [] if context_id is None else given_list(context_id, "ids")
    ids = [context_name(one) for one in many]
    for one in ids:
        try:
            memory.load(one)
        except SessionNotFound as exc:
            raise InputError(f"no context {one.removeprefix(CONTEXT)!r}: read its documents by with_context") from exc
    return ids


def in_front(
    memory: Repository,
    context_id: str | Sequence[str] | None,
    texts: Sequence[str] = (),
    *,
    ratio: int | None = None,
    shelf: Repository | None = None,
) -> list[str | BeaconState]:
    """What stands in front of an answer: documents by their names, of `shelf` where that is another memory, and texts
    that are folded for this answer alone. Raises InputError.
    """
    theirs = memory if shelf is None else shelf
    named = context_sessions(theirs, context_id)
    kept = named if theirs is memory else [_traced(theirs, name) for name in named]
    return [*kept, *([read_apart(memory, given_list(texts, "texts"), ratio=ratio)] if texts else [])]


def _traced(memory: Repository, session_id: str) -> Traced:
    """The documents of a memory, for another one, which cannot look their names up."""

    def read(head: SessionHead) -> Traced:
        state, names = memory.state(head), names_of(memory, head)
        origins = [Origin(session_id, names.get(entry.document, entry.document)) for entry in head.entries]
        return Traced(state.segments, state.tail, origins=tuple(origins))

    return memory.view(session_id, read)[0]
