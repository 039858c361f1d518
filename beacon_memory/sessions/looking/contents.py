"""What of a session is raw, and what is folded at which ratio: message by message, document by document."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from beacon_memory.sessions.looking.source import names_of, sizes_of
from beacon_memory.state.codec import decode_ids
from beacon_memory.state.head import DOCUMENT, SessionHead

if TYPE_CHECKING:
    from beacon_memory.sessions.repository import Repository


@dataclass(frozen=True)
class Held:
    """How some tokens in a row are kept."""

    tokens: int
    ratio: int | None  # tokens a slot; None: they are raw


@dataclass(frozen=True)
class Content:
    """One message, or one document, and how its tokens are kept."""

    place: int  # in the transcript, from 0
    tokens: int
    held: tuple[Held, ...]  # in order; empty for a message where the chat template has changed since it was read
    document: str | None = None  # the document's key or name; None for a message


def contents_of(memory: Repository, session_id: str) -> list[Content]:
    """The messages and documents of a session or of documents, in the transcript's order; no segment is read.

    Raises SessionNotFound, ModelMismatch, SegmentMissing.
    """
    return memory.view(session_id, lambda head: list(_contents(memory, head)))[0]


def text_of(memory: Repository, session_id: str, document: str) -> str | None:
    """A document's text, by its key, name or id, as the tokenizer gives it back. None where there is none, or where an
    older release kept no text. Raises SessionNotFound, ModelMismatch, SegmentMissing.
    """

    def read(head: SessionHead) -> str | None:
        names = names_of(memory, head)
        found = [one for one, name in names.items() if document in (one, name) and one in head.sources]
        if not found:
            return None
        digest = head.sources[found[-1]]
        (blob,) = memory.store.read([digest])
        return memory.model.decode(decode_ids(blob, digest))

    return memory.view(session_id, read)[0]


def _contents(memory: Repository, head: SessionHead) -> Iterator[Content]:
    names = names_of(memory, head)
    documents: dict[str, list[Held]] = {name: [] for name in names}
    talk: list[Held] = []
    for entry in head.entries:
        documents.setdefault(entry.document, talk if not entry.document else []).append(Held(entry.tokens, entry.ratio))
    talk.append(Held(len(head.tail), None))
    pages = memory.pages(head)
    sizes = [sizes_of(memory, digest, page) for digest, page in pages]
    # The stream may begin with an opening token, which belongs to no message.
    at = sum(one.tokens for one in talk) - sum(map(sum, sizes))
    known = at in (0, len(memory.transcript.start))
    place = 0
    for (_, page), lengths in zip(pages, sizes, strict=True):
        for message, length in zip(page, lengths, strict=True):
            if message["role"] == DOCUMENT:
                document = str(message["document"])
                whole = _cut(documents[document], 0, int(message["tokens"]))
                yield Content(place, int(message["tokens"]), whole, names[document])
            else:
                yield Content(place, length, _cut(talk, at, at + length) if known else ())
                at += length
            place += 1


def _cut(held: Sequence[Held], start: int, end: int) -> tuple[Held, ...]:
    """How the tokens from `start` to `end` are kept, those of one ratio together.

    >>> _cut([Held(8, 4), Held(8, 4), Held(5, None)], 6, 18)
    (Held(tokens=10, ratio=4), Held(tokens=2, ratio=None))
    """
    found: list[Held] = []
    at = 0
    for one in held:
        tokens = min(end, at + one.tokens) - max(start, at)
        at += one.tokens
        if tokens <= 0:
            continue
        if found and found[-1].ratio == one.ratio:
            tokens += found.pop().tokens
        found.append(Held(tokens, one.ratio))
    return tuple(found)
