"""Whose words a passage is: the document or message that it was read in."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import accumulate
from typing import TYPE_CHECKING

from beacon_memory.state.head import DOCUMENT, SessionHead
from beacon_memory.state.source import Found, Origin, Source
from beacon_memory.state.state import BeaconState

if TYPE_CHECKING:
    from beacon_memory.sessions.repository import Repository
    from beacon_memory.talk.messages import Message


def origins_of(
    session: str | None, head: SessionHead, segments: int, *, later: Sequence[Message] = ()
) -> list[Origin | None]:
    """What each of a session's segments was folded from; those that its head does not know yet, from what was said."""
    documents = [entry.document for entry in head.entries] + [""] * segments
    return [Origin(session, document, head, tuple(later)) for document in documents[:segments]]


def context_origins(memory: Repository, contexts: Iterable[str | BeaconState]) -> list[Origin | None]:
    """The same of what stands in front of a talk: sessions of documents, by their ids, or states."""
    found: list[Origin | None] = []
    for one in contexts:
        if isinstance(one, BeaconState):
            found += [None] * len(one.segments)
        else:
            head, _ = memory.load(one)
            found += origins_of(one, head, len(head.entries))
    return found


def sources_of(memory: Repository, found: Sequence[Found]) -> list[Source]:
    """The sources of passages, in the order given."""
    return [source for one in found for source in _sources(memory, one)]


def _sources(memory: Repository, found: Found) -> Iterator[Source]:
    origin, decode = found.origin, memory.model.decode
    whole = Source(_plain(decode(found.ids)), found.score, found.start, found.end, origin.session if origin else None)
    if origin is None or origin.head is None:
        yield whole
        return
    if origin.document:
        name = _names(memory, origin.head).get(origin.document, origin.document)
        yield replace(whole, document=name)
        return
    parts = list(_messages(memory, origin, found))
    if not parts:  # the transcript does not give these ids: the chat template has changed since
        yield whole
    for place, start, end, text in parts:
        about = {name: str(place[1][name]) for name in ("id", "role", "time") if place[1].get(name) is not None}
        if text:
            yield Source(text, found.score, start, end, session=origin.session, message=place[0], **about)


def _names(memory: Repository, head: SessionHead) -> dict[str, str]:
    """The documents' keys, or names, by their ids."""
    notes = (message for message in memory.messages(head) if message["role"] == DOCUMENT)
    return {str(note["document"]): str(note.get("key", note["content"])) for note in notes}


def _messages(memory: Repository, origin: Origin, found: Found) -> Iterator[tuple[tuple[int, Message], int, int, str]]:
    """The messages that a passage is of, each with its place; which tokens of the passage are its own, and which of its
    words they are.
    """
    head, transcript = origin.head, memory.transcript
    assert head is not None
    said = [(n, m) for n, m in enumerate([*memory.messages(head), *origin.later]) if m["role"] != DOCUMENT]
    turns = [transcript.turn(message) for _, message in said]
    begin, ids = 0, [i for turn in turns for i in turn]
    if tuple(ids[found.start : found.end]) != found.ids:  # the stream may begin with an opening token
        begin, ids = len(transcript.start), [*transcript.start, *ids]
    if tuple(ids[found.start : found.end]) != found.ids:
        return
    ends = list(accumulate((len(turn) for turn in turns), initial=begin))
    for place, turn, first, last in zip(said, turns, ends, ends[1:], strict=False):
        start, end = max(first, found.start), min(last, found.end)
        if start < end:
            yield place, start, end, _words(memory, place[1], turn, start - first, end - first)


def _words(memory: Repository, message: Message, turn: Sequence[int], start: int, end: int) -> str:
    """Which words of a message some of its tokens are: what the chat template adds is none of them."""
    decode, words = memory.model.decode, str(message["content"]).strip()
    before = len(decode(turn).partition(words)[0])
    first, last = (max(len(decode(turn[:at])) - before, 0) for at in (start, end))
    return words[first:last].strip()


def _plain(text: str) -> str:
    """A text without what a cut through a letter leaves at its ends."""
    return text.strip("\ufffd").strip()
