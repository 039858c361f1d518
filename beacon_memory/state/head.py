"""A session's head: the segments it names, the raw tail, and where its transcript is."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Container, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Self

from beacon_memory.config import RATIOS, SLOT_DTYPES
from beacon_memory.errors import CodecError, InputError
from beacon_memory.state.codec import HEAD, NOTE, PAGE, checksum, decode_json, encode_json
from beacon_memory.state.info import DOCUMENT as DOCUMENT
from beacon_memory.state.state import BeaconState, Fingerprint, Segment

OWN = ""  # the key, which no document has, of what is kept beside the session itself
_DIGEST = re.compile("[0-9a-f]{64}")
PAGE_MESSAGES = 64  # so many messages leave the head and become a page


@dataclass(frozen=True)
class Entry:
    """How a head refers to one segment.

    The digest identifies what was folded, the checksum the bytes that came out. A segment that was folded here is
    stored under its digest, so that anyone who folds the same finds it. Any other segment (imported, or with other bits
    than the one already stored) is stored under its checksum, so that only heads which name it can find it.
    """

    digest: str
    tokens: int
    slots: int
    ratio: int
    document: str = ""  # the id of the document it belongs to; the conversation's own have none
    checksum: str = ""  # of its bytes (`codec.checksum`); older releases wrote none
    apart: bool = False  # stored under its checksum

    @classmethod
    def of(cls, segment: Segment, document: str = "") -> Self:
        """The entry of a segment that belongs to this document, or without one to the conversation."""
        tokens, slots, ratio = len(segment.ids), segment.slots, segment.ratio
        return cls(segment.digest, tokens, slots, ratio, document, segment.apart, bool(segment.apart))

    @property
    def blob(self) -> str:
        """The name of its bytes in a store."""
        return self.checksum if self.apart else self.digest


@dataclass(frozen=True)
class SessionHead:
    """A session at one version. It stays small: it only names segments and old messages, however many there are."""

    fingerprint: Fingerprint
    ratio: int
    budget: int | None = None
    entries: tuple[Entry, ...] = ()
    tail: tuple[int, ...] = ()
    pages: tuple[str, ...] = ()  # blobs of PAGE_MESSAGES messages each, oldest first
    recent: tuple[Mapping[str, Any], ...] = ()  # the messages after the last page
    sources: Mapping[str, str] = field(default_factory=dict)  # document -> the blob of its ids
    slot_dtype: str | None = None  # of slots folded from now on; None: the model's
    notes: Mapping[str, str] = field(default_factory=dict)  # document's key -> the blob its owner keeps beside it
    branches: tuple[int, ...] = ()  # numbers of its branches, which are sessions of their own

    @property
    def digests(self) -> tuple[str, ...]:
        """Every blob the head names, each once."""
        segments = (entry.blob for entry in self.entries)
        return tuple(dict.fromkeys([*segments, *self.pages, *self.sources.values(), *self.notes.values()]))

    @property
    def unfolded(self) -> bool:
        """Whether nothing of the conversation is folded: every segment belongs to a document."""
        return all(entry.document for entry in self.entries)

    @property
    def messages(self) -> int:
        """The number of messages, counting documents."""
        return PAGE_MESSAGES * len(self.pages) + len(self.recent)

    def with_state(self, state: BeaconState, *, document: str = "") -> Self:
        """The head after a fold. New segments belong to `document`, or without one to the conversation."""
        # A segment that is folded again keeps its place, and so its document.
        named = [entry.document for entry in self.entries]
        named += [document] * (len(state.segments) - len(named))
        entries = (Entry.of(segment, name) for segment, name in zip(state.segments, named, strict=True))
        return replace(self, entries=tuple(entries), tail=state.tail).where(self)

    def where(self, before: SessionHead, blobs: Mapping[str, bytes] | None = None) -> Self:
        """The head with the checksums of its segments: from `blobs` (digest -> bytes) where one is in it,
        otherwise from the head `before`.
        """
        known = {entry.digest: entry.checksum for entry in before.entries if not entry.apart}
        known |= {digest: checksum(blob) for digest, blob in (blobs or {}).items()}
        entries = (
            entry if entry.apart else replace(entry, checksum=known.get(entry.digest, entry.checksum))
            for entry in self.entries
        )
        return replace(self, entries=tuple(entries))

    def apart(self, digests: Container[str]) -> Self:
        """The head with these segments stored under their checksums."""
        entries = (replace(entry, apart=True) if entry.digest in digests else entry for entry in self.entries)
        return replace(self, entries=tuple(entries))

    def with_messages(self, messages: list[Mapping[str, Any]]) -> tuple[Self, dict[str, bytes]]:
        """The head with more messages, and the pages that became full (digest -> bytes)."""
        recent, pages, blobs = [*self.recent, *messages], list(self.pages), {}
        while len(recent) >= PAGE_MESSAGES:
            blob = encode_json(PAGE, recent[:PAGE_MESSAGES])
            digest = hashlib.sha256(blob).hexdigest()
            pages.append(digest)
            blobs[digest] = blob
            recent = recent[PAGE_MESSAGES:]
        return replace(self, pages=tuple(pages), recent=tuple(recent)), blobs

    def to_bytes(self) -> bytes:
        """The head's bytes (docs/format.md)."""
        # The fields that a turn changes are next to each other, so that a store sends only those (stores/delta.py).
        value = {
            "fingerprint": asdict(self.fingerprint),
            "ratio": self.ratio,
            "budget": self.budget,
            "slot_dtype": self.slot_dtype,
            "entries": [_listed(entry) for entry in self.entries],
            "recent": self.recent,
            "tail": self.tail,
            "pages": self.pages,
            "sources": dict(self.sources),
            "notes": dict(self.notes),
        }
        if self.branches:
            value["branches"] = self.branches
        return encode_json(HEAD, value)

    @classmethod
    def from_bytes(cls, blob: bytes) -> Self:
        """The head that `to_bytes` wrote. Raises CodecError."""
        value = decode_json(HEAD, blob)
        try:
            head = cls(
                fingerprint=Fingerprint(**value["fingerprint"]),
                ratio=value["ratio"],
                budget=value["budget"],
                entries=tuple(Entry(*entry) for entry in value["entries"]),
                tail=tuple(value["tail"]),
                pages=tuple(value["pages"]),
                recent=tuple(value["recent"]),
                sources=dict(value.get("sources", {})),
                slot_dtype=value.get("slot_dtype"),
                notes=dict(value.get("notes", {})),
                branches=tuple(value.get("branches", ())),
            )
        except (KeyError, TypeError, ValueError, AttributeError) as exc:
            raise CodecError(f"head: not a readable payload: {exc!r}") from exc
        _check(head)
        return head


def _listed(entry: Entry) -> list[object]:
    """An entry as it is written. Empty fields at its end are left out, so that older heads keep their bytes."""
    listed: list[object] = [entry.digest, entry.tokens, entry.slots, entry.ratio, entry.document]
    if entry.checksum:
        listed.append(entry.checksum)
    if entry.apart:
        listed.append(True)
    return listed


def _check(head: SessionHead) -> None:
    """Raises CodecError unless every field is what this package writes there."""
    named = [*(entry.digest for entry in head.entries), *head.pages, *head.sources.values(), *head.notes.values()]
    named += [entry.checksum for entry in head.entries if entry.checksum or entry.apart]
    texts = [*asdict(head.fingerprint).values(), *(entry.document for entry in head.entries)]
    texts += [*head.sources, *head.notes]
    numbers = [*head.tail, *head.branches, *(n for e in head.entries for n in (e.tokens, e.slots))]
    if head.budget is not None:
        numbers.append(head.budget)
    if not (
        all(isinstance(text, str) for text in texts)
        and all(type(number) is int and 0 <= number < 1 << 31 for number in numbers)
        and all(isinstance(digest, str) and _DIGEST.fullmatch(digest) for digest in named)
        and all(type(ratio) is int and ratio in RATIOS for ratio in (head.ratio, *(e.ratio for e in head.entries)))
        and all(type(entry.apart) is bool for entry in head.entries)
        and (head.slot_dtype is None or head.slot_dtype in SLOT_DTYPES)
        and all(_is_message(message) for message in head.recent)
        and len(head.recent) < PAGE_MESSAGES
    ):
        raise CodecError("head: not a readable payload: a field is not what this package writes there")


def _is_message(message: object) -> bool:
    """Whether this can be a transcript's message, or its entry that a document was read."""
    if not isinstance(message, dict) or not isinstance(message.get("role"), str):
        return False
    if message["role"] != DOCUMENT:
        return True
    about = (message.get("content"), message.get("document"), message.get("key", ""), message.get("hash", ""))
    return all(isinstance(text, str) for text in about) and type(message.get("tokens")) is int


def read_page(blob: bytes, digest: str) -> list[dict[str, Any]]:
    """A page's messages. Raises CodecError when it is not the page that `digest` names."""
    if hashlib.sha256(blob).hexdigest() != digest:
        raise CodecError(f"page: its contents are not those of {digest}")
    messages: list[dict[str, Any]] = decode_json(PAGE, blob)
    if not isinstance(messages, list) or not all(map(_is_message, messages)):
        raise CodecError("page: not a readable payload: a list of messages expected")
    return messages


def write_note(about: Mapping[str, Any]) -> tuple[str, bytes]:
    """Digest and bytes of what a document's owner keeps beside it. Raises InputError when that is not JSON."""
    try:
        blob = encode_json(NOTE, about)
    except (TypeError, ValueError, RecursionError) as exc:
        raise InputError(f"what is kept beside a document must be JSON: {exc}") from exc
    return hashlib.sha256(blob).hexdigest(), blob


def read_note(blob: bytes, digest: str) -> dict[str, Any]:
    """What `write_note` was given. Raises CodecError when it is not the note that `digest` names."""
    if hashlib.sha256(blob).hexdigest() != digest:
        raise CodecError(f"note: its contents are not those of {digest}")
    about = decode_json(NOTE, blob)
    if not isinstance(about, dict):
        raise CodecError("note: not a readable payload: an object expected")
    return about


def check_entry(entry: Entry, segment: Segment) -> Segment:
    """The segment, if it matches the head's entry. Raises CodecError."""
    found = (segment.digest, len(segment.ids), segment.slots, segment.ratio)
    if (entry.digest, entry.tokens, entry.slots, entry.ratio) != found:
        raise CodecError(f"head: entry {entry.digest[:12]} does not describe the segment it names")
    return segment
