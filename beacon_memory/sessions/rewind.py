"""A session as it was: its first messages, and what had been folded of them then."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from beacon_memory.errors import InputError, TranscriptError
from beacon_memory.models.joining import joined
from beacon_memory.state.head import DOCUMENT, OWN, SessionHead
from beacon_memory.state.state import BeaconState

if TYPE_CHECKING:
    from beacon_memory.sessions.repository import Repository
    from beacon_memory.state.state import Segment

Past = Sequence[Mapping[str, Any]]
Changed = tuple[SessionHead, BeaconState, dict[str, bytes]]
Extend = Callable[[SessionHead, BeaconState, Past], Changed]


def back(memory: Repository, head: SessionHead, state: BeaconState, past: Past, messages: int) -> Changed:
    """Head and state as they were after the first `messages` of `past`, and the pages of those messages.

    Raises TranscriptError when the chat template has changed since then.
    """
    state = _rewound(memory, head, state, past, messages)
    entries = head.entries[: len(state.segments)]
    read = {entry.document for entry in entries}
    sources = {document: digest for document, digest in head.sources.items() if document in read}
    keys = {OWN, *(message.get("key") for message in past[:messages])}
    notes = {key: digest for key, digest in head.notes.items() if key in keys}
    before = replace(head, pages=(), recent=(), entries=entries, sources=sources, notes=notes)
    kept, pages = before.with_state(state).with_messages(list(past[:messages]))
    return kept, state, pages


def branch(memory: Repository, head: SessionHead, state: BeaconState, past: Past, kept: int) -> Changed:
    """Back to the first `kept` messages, not counting documents. Documents that were read later stay: they belong to
    no branch. Raises TranscriptError.
    """
    until = [n for n, message in enumerate(past) if message["role"] != DOCUMENT][kept]
    later = [message for message in past[until:] if message["role"] == DOCUMENT]
    entries = dict(zip(head.entries, state.segments, strict=True))
    head, state, pages = back(memory, head, state, past, until)
    for note in later:
        document = str(note["document"])
        own = [s for entry, s in entries.items() if entry.document == document]
        state = _joined(memory, head, state, own)
        head = head.with_state(state, document=document)
    head, more = head.with_messages(list(later))
    return head, state, pages | more


def reread(
    memory: Repository, head: SessionHead, state: BeaconState, past: Past, place: int, later: Past, extend: Extend
) -> Changed:
    """Head and state as if `later` had followed the first `place` messages of `past`. What was folded after those is
    folded again; documents were folded by themselves and stay folded. Raises TranscriptError.
    """
    entries = list(zip(head.entries, state.segments, strict=True))
    sources, notes, budget = head.sources, head.notes, head.budget
    head, state, pages = back(memory, head, state, past, place)
    run: list[Mapping[str, Any]] = []

    def say() -> None:
        nonlocal head, state
        head, state, more = extend(head, state, run)
        pages.update(more)
        run.clear()

    for message in later:
        if message["role"] != DOCUMENT:
            run.append(message)
            continue
        say()
        document = str(message["document"])
        state = _joined(memory, head, state, [segment for entry, segment in entries if entry.document == document])
        fitted = memory.model.fit(state.segments, budget=budget, slot_dtype=head.slot_dtype)
        state = replace(state, segments=tuple(fitted))
        head, more = head.with_state(state, document=document).with_messages([message])
        own = {name: digest for name, digest in sources.items() if name == document}
        about = {key: digest for key, digest in notes.items() if key == message.get("key")}
        head = replace(head, sources={**head.sources, **own}, notes={**head.notes, **about})
        pages.update(more)
    say()
    return head, state, pages


def _joined(memory: Repository, head: SessionHead, state: BeaconState, document: Sequence[Segment]) -> BeaconState:
    """The state with a document's segments behind its own."""
    how: dict[str, Any] = {"known": memory.known, "slot_dtype": head.slot_dtype}
    return replace(state, segments=joined(memory.model, state.segments, document, **how))


def place_of(past: Past, which: str | int, *, session: str) -> int:
    """Where a message or document stands in a transcript. Raises InputError."""
    if isinstance(which, int) and not isinstance(which, bool):
        if not 0 <= which < len(past):
            raise InputError(f"session {session!r} has {len(past)} messages: choose 0 to {len(past) - 1}, not {which}")
        return which
    if not isinstance(which, str):  # a message without an id has none, and is not the one without
        raise InputError(f"a message is told by its id or its place in messages(), not by {which!r:.80}")
    found = [n for n, message in enumerate(past) if message.get("id") == which]
    found = found or [n for n, m in enumerate(past) if m["role"] == DOCUMENT and m["content"] == which]
    if len(found) != 1:
        raise InputError(
            f"session {session!r} has {len(found)} messages or documents {which!r}: give an id, a document's name, "
            f"or a place in messages()"
        )
    return found[0]


def _rewound(memory: Repository, head: SessionHead, state: BeaconState, past: Past, messages: int) -> BeaconState:
    """The state as it was after the first `messages`: what was folded then, and the rest of the ids as tail."""
    transcript = memory.transcript
    talk = [[*transcript.turn(m)] if m["role"] != DOCUMENT else [] for m in past]
    conversation = [s for s, e in zip(state.segments, head.entries, strict=True) if not e.document]
    ids = [i for segment in conversation for i in segment.ids] + list(state.tail)
    opened = len(ids) - sum(map(len, talk))
    if opened not in (0, len(transcript.start)):
        raise TranscriptError("the model's chat template has changed since this session was written: it cannot rewind")
    ids = ids[: opened + sum(map(len, talk[:messages]))] if messages else []
    documents = {str(m["document"]) for m in past[:messages] if m["role"] == DOCUMENT}
    kept, folded = [], 0
    for segment, entry in zip(state.segments, head.entries, strict=True):
        if entry.document and entry.document not in documents:
            break
        if not entry.document:
            if folded + entry.tokens + memory.model.config.keep_last > len(ids):
                break
            folded += entry.tokens
        kept.append(segment)
    return BeaconState(tuple(kept), tuple(ids[folded:]))
