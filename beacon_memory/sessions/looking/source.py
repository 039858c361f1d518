"""Whose words a passage is: the document or message that it was read in."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

from beacon_memory.state.head import DOCUMENT, SessionHead
from beacon_memory.state.source import Found, Origin, Source
from beacon_memory.state.state import BeaconState

if TYPE_CHECKING:
    from beacon_memory.sessions.repository import Repository

Message = Mapping[str, Any]


@dataclass(frozen=True)
class Traced(BeaconState):
    """A state that no session of this memory names, and what each of its segments was folded from."""

    origins: tuple[Origin, ...] = ()


def origins_of(
    session: str | None, head: SessionHead, segments: int, *, later: Sequence[Message] = ()
) -> list[Origin | None]:
    """What each of a session's segments was folded from; those that its head does not know yet, from what was said."""
    documents, said = [entry.document for entry in head.entries] + [""] * segments, tuple(later)
    return [Origin(session, document, head, said) for document in documents[:segments]]


def context_origins(memory: Repository, contexts: Iterable[str | BeaconState]) -> list[Origin | None]:
    """The same of what stands in front of a talk: sessions of documents, by their ids, or states."""
    found: list[Origin | None] = []
    for one in contexts:
        if isinstance(one, Traced):
            found += one.origins
        elif isinstance(one, BeaconState):
            found += [None] * len(one.segments)
        else:
            head, _ = memory.load(one)
            found += origins_of(one, head, len(head.entries))
    return found


def sources_of(memory: Repository, found: Sequence[Found]) -> list[Source]:
    """The sources of passages, in the order given."""
    # A head is asked once, however many passages are of it.
    names: dict[int, dict[str, str]] = {}
    said: dict[tuple[int, int], list[_Said]] = {}
    sources: list[Source] = []
    for one in found:
        origin = one.origin
        whole = Source(
            _plain(memory.model.decode(one.ids)), one.score, one.start, one.end, origin.session if origin else None
        )
        if origin is None or origin.head is None:
            sources.append(replace(whole, document=origin.document if origin else None))
        elif origin.document:
            if (head := id(origin.head)) not in names:
                names[head] = names_of(memory, origin.head)
            sources.append(replace(whole, document=names[head].get(origin.document, origin.document)))
        else:
            if (talk := (id(origin.head), id(origin.later))) not in said:
                said[talk] = list(_conversation(memory, origin))
            parts = _messages(memory, one, said[talk])
            sources += [whole] if parts is None else parts
    return sources


def names_of(memory: Repository, head: SessionHead) -> dict[str, str]:
    """The documents' keys, or names, by their ids. Raises SegmentMissing."""
    notes = (message for _, page in memory.pages(head) for message in page if message["role"] == DOCUMENT)
    return {str(note["document"]): str(note.get("key", note["content"])) for note in notes}


class _Said(NamedTuple):
    """A message of a conversation."""

    place: int  # in the transcript, documents counted
    message: Message
    start: int  # its tokens among the conversation's
    end: int


def _conversation(memory: Repository, origin: Origin) -> Iterator[_Said]:
    """The messages that an origin was folded from, and where their tokens are."""
    assert origin.head is not None
    place = at = 0
    for digest, page in [*memory.pages(origin.head), ("", origin.later)]:
        for message, size in zip(page, sizes_of(memory, digest, page), strict=True):
            if size:
                yield _Said(place, message, at, at + size)
            place, at = place + 1, at + size


def sizes_of(memory: Repository, digest: str, page: Sequence[Message]) -> tuple[int, ...]:
    """How many tokens each message of a page has; a document that was read there has none. A page never changes."""
    if digest and (known := memory.sizes.get(digest)) is not None:
        return known
    turn = memory.transcript.turn
    sizes = tuple(0 if message["role"] == DOCUMENT else len(turn(message)) for message in page)
    if digest:
        memory.sizes.put(digest, sizes, 64 + 8 * len(sizes))
    return sizes


def _messages(memory: Repository, found: Found, said: Sequence[_Said]) -> list[Source] | None:
    """A source for each message that a passage is of; None where the transcript does not give its ids: the chat
    template has changed since.
    """
    start = memory.transcript.start
    for begin in dict.fromkeys((0, len(start))):  # the stream may begin with an opening token
        own = [one for one in said if one.start + begin < found.end and found.start < one.end + begin]
        if not own:
            continue
        turns = [memory.transcript.turn(one.message) for one in own]
        opened = found.start < begin
        ids = [*(start if opened else ()), *(i for turn in turns for i in turn)]
        first = found.start - (0 if opened else own[0].start + begin)
        if tuple(ids[first : first + len(found.ids)]) == found.ids:
            parts = (_part(memory, found, one, turn, begin) for one, turn in zip(own, turns, strict=True))
            return [part for part in parts if part.text]
    return None


def _part(memory: Repository, found: Found, one: _Said, turn: Sequence[int], begin: int) -> Source:
    """What of a passage is a message's own."""
    first = one.start + begin
    start, end = max(first, found.start), min(one.end + begin, found.end)
    about = {name: str(one.message[name]) for name in ("id", "role", "time") if one.message.get(name) is not None}
    text = _words(memory, one.message, turn, start - first, end - first)
    session = found.origin.session if found.origin else None
    return Source(text, found.score, start, end, session=session, message=one.place, **about)


def _words(memory: Repository, message: Message, turn: Sequence[int], start: int, end: int) -> str:
    """Which words of a message some of its tokens are: what the chat template adds is none of them."""
    decode, words = memory.model.decode, str(message["content"]).strip()
    before = len(decode(turn).partition(words)[0])
    first, last = (max(len(decode(turn[:at])) - before, 0) for at in (start, end))
    return words[first:last].strip()


def _plain(text: str) -> str:
    """A text without what a cut through a letter leaves at its ends."""
    return text.strip("\ufffd").strip()
