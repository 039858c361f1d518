"""What all that is done with sessions stands on: one model, one store, and what is on hand of both.

Segments, pages and heads that were read once are not read again while there is room for them; what a turn has left on
the device waits for the next one.
"""

from __future__ import annotations

import json
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Generic, TypeVar

from beacon_memory.errors import SegmentMissing, SessionNotFound, SessionRolledBack
from beacon_memory.models.model import BeaconModel
from beacon_memory.models.resident import ResidentPrefix
from beacon_memory.state.codec import decode_segment, require
from beacon_memory.state.head import SessionHead, check_entry, read_page
from beacon_memory.state.state import BeaconState, Segment
from beacon_memory.stores import Head, StateStore
from beacon_memory.talk.transcript import Transcript

T = TypeVar("T")

CACHE_BYTES = 1 << 30  # segments kept on hand
RESIDENT_BYTES = 1 << 30  # and what turns have left on the device
PAGE_BYTES = 64 << 20  # pages of messages, as stored, and as many bytes of heads


class Repository:
    """Heads, states and messages of sessions, as values: read from one store for one model, and committed to it."""

    def __init__(
        self,
        model: BeaconModel,
        store: StateStore,
        *,
        cache_bytes: int = CACHE_BYTES,
        resident_bytes: int = RESIDENT_BYTES,
    ) -> None:
        """A loaded model and an open store.

        `cache_bytes` of segments are kept on hand, and `resident_bytes` of sessions as the model reads them, on its
        device: the least recently used leave first.
        """
        self.model = model
        self.store = store
        self.transcript = Transcript(model.tokenizer)
        self._segments = LRUCache[Segment](cache_bytes)
        self._pages = LRUCache[list[dict[str, Any]]](PAGE_BYTES)
        self._residents = LRUCache[ResidentPrefix](resident_bytes)
        self._heads = LRUCache[tuple[SessionHead, int]](PAGE_BYTES)

    def load(self, session_id: str, *, at_least: int = 0) -> tuple[SessionHead, int]:
        """A session's head and version. Raises SessionNotFound, SessionRolledBack, CodecError, ModelMismatch."""
        try:
            stored, version = self.store.load(session_id)
        except SessionNotFound as exc:
            if at_least:
                raise SessionRolledBack(f"session {session_id!r} is gone, version {at_least} was expected") from exc
            raise
        if version < at_least:
            raise SessionRolledBack(
                f"session {session_id!r} is at version {version}, {at_least} or later was expected: the store was "
                f"restored from an older copy, or lost a write; open it without at_least to go on from there"
            )
        held = self._heads.get(session_id)
        # No session has a version twice: an equal one is the same head.
        head = held[0] if held is not None and held[1] == version else SessionHead.from_bytes(stored.body)
        require(head.fingerprint, self.model.fingerprint, what=f"session {session_id!r}")
        self._heads.put(session_id, (head, version), 8 * len(stored.body))
        return head, version

    def view(
        self, session_id: str, read: Callable[[SessionHead], T], *, at_least: int = 0
    ) -> tuple[T, SessionHead, int]:
        """What `read` makes of a session's newest head, that head, and its version.

        Done again when another writer moved the session, and dropped blobs, meanwhile. Raises SegmentMissing when
        blobs are lost.
        """
        while True:
            head, version = self.load(session_id, at_least=at_least)
            try:
                return read(head), head, version
            except SegmentMissing:
                if self.store.version(session_id) == version:
                    raise

    def commit(self, session_id: str, head: SessionHead, blobs: Mapping[str, bytes], *, expected: int) -> None:
        """Write a session's next version. Raises SessionConflict, SegmentMissing."""
        self.store.commit(session_id, Head(head.to_bytes(), head.digests), blobs, expected=expected)

    def state(self, head: SessionHead) -> BeaconState:
        """The state a head names; segments on hand are not read again. Raises SegmentMissing, CodecError."""
        digests = dict.fromkeys(entry.digest for entry in head.entries)
        found = {digest: segment for digest in digests if (segment := self._segments.get(digest)) is not None}
        cold = [digest for digest in digests if digest not in found]
        read = {d: self.decode(blob, d) for d, blob in zip(cold, self.store.stream(cold), strict=True)}
        self.keep(tuple(read.values()))
        found |= read
        return BeaconState(tuple(check_entry(entry, found[entry.digest]) for entry in head.entries), head.tail)

    def messages(self, head: SessionHead) -> list[dict[str, Any]]:
        """Every message that a head's session remembers, oldest first."""
        found = {digest: page for digest in head.pages if (page := self._pages.get(digest)) is not None}
        for digest, blob in self.read([digest for digest in head.pages if digest not in found]):
            found[digest] = read_page(blob, digest)
            self._pages.put(digest, found[digest], len(blob))
        pages = [*(found[digest] for digest in head.pages), head.recent]
        return [dict(message) for page in pages for message in page]

    def known(self, digest: str) -> Segment | None:
        """A segment that was folded before, by this session or another, or None."""
        if (segment := self._segments.get(digest)) is None:
            try:
                segment = self.decode(self.store.read([digest])[0], digest)
            except SegmentMissing:
                return None
            self.keep([segment])
        return segment

    def resident(self, *sessions: str) -> ResidentPrefix:
        """What the last turn of these sessions, one behind another, left on the device; it is taken, and given back by
        its `give`. Nothing of it is trusted: what it stands for is compared with what is asked of it.
        """
        names = json.dumps(sessions)
        resident = self._residents.take(names) or ResidentPrefix(self.model.empty)
        resident.release = lambda resident: self._residents.put(names, resident, resident.nbytes)
        return resident

    def keep(self, segments: Sequence[Segment]) -> None:
        """Have these segments on hand, as far as memory goes."""
        for segment in segments:
            self._segments.put(segment.digest, segment, segment.nbytes)

    def decode(self, blob: bytes, digest: str) -> Segment:
        """A segment of this memory's model from its bytes."""
        return decode_segment(blob, fingerprint=self.model.fingerprint, digest=digest)

    def read(self, digests: Sequence[str]) -> Iterator[tuple[str, bytes]]:
        """Blobs with their digests."""
        return zip(digests, self.store.read(digests) if digests else [], strict=True)


class LRUCache(Generic[T]):
    """Values that are equal where their digests are, kept while there is room; any thread may use it.

    >>> hot = LRUCache[str](limit=2)
    >>> hot.put("a", "one", 1); hot.put("b", "two", 2)
    >>> hot.get("a"), hot.get("b")
    (None, 'two')
    """

    def __init__(self, limit: int) -> None:
        """`limit` in bytes, as `put` counts them."""
        self._limit = limit
        self._bytes = 0
        self._values: OrderedDict[str, tuple[T, int]] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, digest: str) -> T | None:
        """The value, when it is on hand."""
        with self._lock:
            if digest not in self._values:
                return None
            self._values.move_to_end(digest)
            return self._values[digest][0]

    def take(self, digest: str) -> T | None:
        """The value, when it is on hand, which it then is no more: for one that its user changes."""
        with self._lock:
            value, nbytes = self._values.pop(digest, (None, 0))
            self._bytes -= nbytes
            return value

    def put(self, digest: str, value: T, nbytes: int) -> None:
        """Have a value on hand, as far as there is room."""
        with self._lock:
            self._bytes += nbytes - self._values.pop(digest, (value, 0))[1]
            self._values[digest] = value, nbytes
            while self._bytes > self._limit:
                self._bytes -= self._values.popitem(last=False)[1][1]
