"""One model, one store and their caches: everything that is done with sessions is built on this.

Segments, pages and heads are read once and then cached while there is room. What a turn leaves on the device is kept
for the next one.
"""

from __future__ import annotations

import json
from collections import Counter, OrderedDict
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import Any, Generic, TypeVar
from weakref import WeakKeyDictionary, WeakValueDictionary

from beacon_memory.config import RECALL_TOKENS, check_bytes, check_recall
from beacon_memory.errors import (
    BeaconError,
    BlobDiffers,
    CodecError,
    SegmentMissing,
    SessionNotFound,
    SessionRolledBack,
)
from beacon_memory.fold.family import slot_shape
from beacon_memory.locks import Lock, renewed
from beacon_memory.models.model import BeaconModel
from beacon_memory.models.passages import Cutter
from beacon_memory.models.resident import ResidentPrefix
from beacon_memory.models.running.elsewhere import Elsewhere
from beacon_memory.state.codec import decode_segment, require
from beacon_memory.state.head import Entry, SessionHead, check_entry, read_page
from beacon_memory.state.state import BeaconState, Segment
from beacon_memory.stores import Head, StateStore
from beacon_memory.stores.base import check_session, not_found, retrying
from beacon_memory.stores.chain import descends
from beacon_memory.talk.transcript import Transcript

T = TypeVar("T")

CACHE_BYTES = 1 << 30  # of segments
RESIDENT_BYTES = 1 << 30  # of what turns have left on the device
SEEN, SEEN_BYTES = 100_000, 256  # sessions whose newest version is remembered, and about how many bytes each takes
PAGE_BYTES = 64 << 20  # of pages of messages, as stored, and as many of heads


class Repository:
    """Heads, states and messages of sessions, as values: read from one store for one model, and committed to it."""

    def __init__(
        self,
        model: BeaconModel,
        store: StateStore,
        *,
        cache_bytes: int = CACHE_BYTES,
        resident_bytes: int = RESIDENT_BYTES,
        recall_tokens: int = RECALL_TOKENS,
    ) -> None:
        """A loaded model and an open store.

        Before an answer, up to `recall_tokens` of what was folded are read again where the question is about them.
        `cache_bytes` of segments are kept on hand, and `resident_bytes` of sessions as the model reads them, on its
        device: the least recently used leave first. Raises ConfigError.
        """
        self.model = model
        self.store = store
        self.recall_tokens = check_recall(recall_tokens)
        self.elsewhere: Elsewhere | None = None  # what makes answers in the model's place
        self.transcript = Transcript(model.tokenizer)
        self.cutter = Cutter(model.decode, openings=self.transcript.openings)
        self._segments = LRUCache[Segment](check_bytes(cache_bytes, what="cache_bytes"))
        self._pages = LRUCache[list[dict[str, Any]]](PAGE_BYTES)
        self.sizes = LRUCache[tuple[int, ...]](PAGE_BYTES)  # by page: how many tokens each message has
        self._residents = LRUCache[ResidentPrefix](check_bytes(resident_bytes, what="resident_bytes"))
        self._heads = LRUCache[tuple[SessionHead, int]](PAGE_BYTES)
        self.folded = Counter[str]()  # tokens, slots and bytes of what was folded and stored here, for whoever counts
        self._seen = LRUCache[int](SEEN_BYTES * SEEN)  # the newest version of each session that was here
        self._turns: set[str] = set()  # sessions that a thread of this process writes to now
        renewed(self)
        self._lock = Lock()
        self._writing = WeakValueDictionary[str, Lock]()  # by session
        self._lent = WeakKeyDictionary[ResidentPrefix, tuple[str, ...]]()  # which are given back, unless let go

    def load(self, session_id: str, *, at_least: int = 0, any_model: bool = False) -> tuple[SessionHead, int]:
        """A session's head and version, which descends from what was seen of the session here before, and from
        `at_least`. Raises SessionNotFound, SessionRolledBack, CodecError, and, unless a head of `any_model` will do,
        ModelMismatch.

        A version seen here is checked once: after the error, the next call goes on from what is stored.
        """
        seen = self._seen.get(session_id) or 0  # before it is loaded: another thread may move it on meanwhile
        try:
            stored, version = self.store.load(session_id)
        except SessionNotFound as exc:
            self.let_go(session_id)
            if at_least:
                raise SessionRolledBack(
                    f"session {session_id!r} is gone, version {at_least} was expected: it was forgotten, or lost"
                ) from exc
            raise
        if seen and descends(version, stored.past, seen) is False:
            self.let_go(session_id)
            self._seen.take(session_id)
            raise SessionRolledBack(
                f"session {session_id!r} is at version {version}, which does not come after version {seen} that was "
                f"seen here: the store was restored from an older copy, lost a write, or it was forgotten and begun "
                f"anew; the next call goes on from there"
            )
        if at_least and (after := descends(version, stored.past, at_least)) is not True:
            raise SessionRolledBack(
                f"session {session_id!r} is at version {version}, {at_least} or what comes after it was expected: "
                + (
                    "that is too long ago to be told; open it without at_least and take its new version"
                    if after is None
                    else "the store was restored from an older copy, or lost a write; open it without at_least to go "
                    "on from there"
                )
            )
        held = self._heads.get(session_id)
        # No session has a version twice: an equal one is the same head.
        if held is not None and held[1] == version:
            head = held[0]
        else:
            head = SessionHead.from_bytes(stored.body)
            if head.fingerprint == self.model.fingerprint:
                self.check_ids(head.tail, what=f"session {session_id!r}")
        if not any_model:
            require(head.fingerprint, self.model.fingerprint, what=f"session {session_id!r}")
        self._heads.put(session_id, (head, version), 8 * len(stored.body))
        self._seen.put(session_id, version, SEEN_BYTES)
        return head, version

    @property
    def positions(self) -> int:
        """The number of positions that an answer is made in: memory, prompt and answer must fit."""
        return self.model.positions if self.elsewhere is None else self.elsewhere.positions

    @contextmanager
    def turn(self, session_id: str) -> Iterator[None]:
        """A writer's turn at a session, among all threads of this process, and all processes where the store has turns:
        no one folds in vain, and who takes long is not overtaken for ever. Within a turn another is the same one.
        """
        check_session(session_id)
        with self._lock:
            lock = self._writing.setdefault(session_id, Lock(recursive=True))
        with lock:
            if session_id in self._turns:
                yield
                return
            self._turns.add(session_id)
            try:
                with self.store.turn(session_id):
                    yield
            finally:
                self._turns.discard(session_id)

    def written(self, session_id: str, act: Callable[[], T]) -> T:
        """What `act`, which writes the session, gives, in a turn. It is called again where a writer without one was
        faster (see `retrying`).
        """
        with self.turn(session_id):
            return retrying(act)

    def after_fork(self) -> None:
        """Be in no turn: those are the parent's."""
        self._turns.clear()

    def begin(self, session_id: str, *, create: bool | None) -> None:
        """Check that a missing session may be created. Raises SessionNotFound when `create` is False, and
        SessionRolledBack (once) when it is None and the session was seen here before.
        """
        seen = self._seen.take(session_id)
        if create is False:
            raise not_found(session_id)
        if seen and create is None:
            raise SessionRolledBack(
                f"session {session_id!r} was at version {seen} when it was last seen here, and is gone: it was "
                f"forgotten elsewhere, or lost; the next call begins it anew"
            )

    def forget(self, session_id: str) -> list[str]:
        """Remove a session from the store and from this process; gives what is left to do, in sentences. Raises
        SessionNotFound.
        """
        with suppress(BeaconError):
            self.load(session_id)  # so that the caches drop what it names too
        try:
            self.store.delete(session_id)
            if (queue := self.store.queue()) is not None:
                queue.drop(session_id)
        finally:
            self.let_go(session_id)
            self._seen.take(session_id)
        return self.store.scrub()

    def let_go(self, session_id: str, segments: Sequence[Segment] = ()) -> None:
        """Drop this session and these segments from the caches."""
        for lent in self._lent.keyrefs():  # all at once: other threads are lent more meanwhile
            if (resident := lent()) is not None and session_id in self._lent.get(resident, ()):
                resident.release = lambda resident: None
        for name in self._residents.names():
            if session_id in json.loads(name):
                self._residents.take(name)
        held = self._heads.take(session_id)
        for digest in [*(held[0].digests if held else ()), *(segment.name for segment in segments)]:
            self._segments.take(digest)
            self._pages.take(digest)
            self.sizes.take(digest)

    def view(
        self, session_id: str, read: Callable[[SessionHead], T], *, at_least: int = 0, any_model: bool = False
    ) -> tuple[T, SessionHead, int]:
        """The result of `read` for a session's newest head, that head, and its version.

        Done again when another writer moved the session, and dropped blobs, meanwhile. Raises SegmentMissing when
        blobs are lost, and what `load` raises.
        """
        while True:
            head, version = self.load(session_id, at_least=at_least, any_model=any_model)
            try:
                return read(head), head, version
            except SegmentMissing:
                if self.store.version(session_id) == version:
                    raise

    def commit(
        self,
        session_id: str,
        head: SessionHead,
        blobs: Mapping[str, bytes],
        *,
        expected: int,
        damaged: Container[str] = (),
    ) -> int:
        """Write a session's next version; returns its number. A segment whose bits differ from those stored under its
        digest is stored under its checksum. Raises SessionConflict, SegmentMissing.
        """
        how: dict[str, Any] = {"damaged": damaged} if damaged else {}
        while True:
            try:
                named = Head(head.to_bytes(), head.digests)
                version = self.store.commit(session_id, named, blobs, expected=expected, **how)
                self._seen.put(session_id, version, SEEN_BYTES)
                self._count([entry for entry in head.entries if entry.blob in blobs], blobs)
                return version
            except BlobDiffers as exc:
                moved = [e for e in head.entries if e.digest == exc.digest and not e.apart]
                if not moved:
                    raise
                head = head.apart({exc.digest})
                blobs = {**blobs, moved[0].checksum: blobs[exc.digest]}

    def _count(self, new: Sequence[Entry], blobs: Mapping[str, bytes]) -> None:
        with self._lock:
            for entry in new:
                self.folded.update(tokens=entry.tokens, slots=entry.slots, bytes=len(blobs[entry.blob]))

    @property
    def caches(self) -> dict[str, LRUCache[Any]]:
        """The caches by name, for whoever counts what they hold."""
        return {"segments": self._segments, "pages": self._pages, "heads": self._heads, "residents": self._residents}

    def state(self, head: SessionHead) -> BeaconState:
        """The state that a head names; cached segments are not read again. Raises SegmentMissing, CodecError."""
        entries = {entry.blob: entry for entry in head.entries}
        found = {name: segment for name in entries if (segment := self._segments.get(name)) is not None}
        cold = [entry for name, entry in entries.items() if name not in found]
        blobs = self.store.stream([entry.blob for entry in cold])
        read = {entry.blob: self.decode(blob, entry) for entry, blob in zip(cold, blobs, strict=True)}
        self.keep(tuple(read.values()))
        found |= read
        return BeaconState(tuple(check_entry(entry, found[entry.blob]) for entry in head.entries), head.tail)

    def messages(self, head: SessionHead) -> list[dict[str, Any]]:
        """Every message that a head's session remembers, oldest first."""
        return [dict(message) for _, page in self.pages(head) for message in page]

    def pages(self, head: SessionHead) -> list[tuple[str, Sequence[Mapping[str, Any]]]]:
        """The same by page, with the page's digest; the newest messages, which have no page yet, under no digest."""
        found = {digest: page for digest in head.pages if (page := self._pages.get(digest)) is not None}
        for digest, blob in self.read([digest for digest in head.pages if digest not in found]):
            found[digest] = read_page(blob, digest)
            self._pages.put(digest, found[digest], len(blob))
        return [*((digest, found[digest]) for digest in head.pages), ("", head.recent)]

    def known(self, digest: str) -> Segment | None:
        """A segment that was folded before, by this session or another, or None."""
        if (segment := self._segments.get(digest)) is None:
            try:
                (blob,) = self.store.read([digest])
            except SegmentMissing:
                return None
            segment = self._shaped(decode_segment(blob, fingerprint=self.model.fingerprint, digest=digest))
            self.keep([segment])
        return segment

    def resident(self, *sessions: str) -> ResidentPrefix:
        """What the last turn of these sessions, joined in this order, left on the device. It is the caller's until
        its `release` is called. It may be out of date: each use compares what it holds with what is asked for.
        """
        names = json.dumps(sessions)
        resident = self._residents.take(names, counted=True) or ResidentPrefix(self.model.empty)
        resident.release = lambda resident: self._residents.put(names, resident, resident.nbytes)
        self._lent[resident] = sessions
        return resident

    def keep(self, segments: Sequence[Segment]) -> None:
        """Cache these segments, while there is room."""
        for segment in segments:
            self._segments.put(segment.name, segment, segment.nbytes)

    def decode(self, blob: bytes, entry: Entry) -> Segment:
        """The segment that a head's entry names, from its bytes. Raises CodecError, ModelMismatch."""
        ours, checked = self.model.fingerprint, entry.checksum
        segment = self._shaped(decode_segment(blob, fingerprint=ours, digest=entry.digest, checked=checked))
        return replace(segment, apart=entry.checksum) if entry.apart else segment

    def _shaped(self, segment: Segment) -> Segment:
        """The segment, if this model can read it. Raises CodecError."""
        layers, heads, _, width = (segment.packed.sink_keys if segment.packed else segment.keys).shape
        ours, theirs = slot_shape(self.model.lm.config), (layers, heads, width)
        if ours != theirs:
            raise CodecError(f"segment {segment.digest[:12]}: slots of {theirs}, this model's are of {ours}")
        read = {} if segment.recurrent is None else segment.recurrent.shapes
        if (needed := self.model.recurrent_shapes) != read:
            raise CodecError(
                f"segment {segment.digest[:12]}: a recurrent state of {read}, this model's are of {needed}"
            )
        self.check_ids(segment.ids, what=f"segment {segment.digest[:12]}")
        return segment

    def check_ids(self, ids: Sequence[int], *, what: str) -> None:
        """Raises CodecError for an id that is not in this model's vocabulary."""
        vocabulary = self.model.lm.get_input_embeddings().num_embeddings
        if ids and not 0 <= min(ids) <= max(ids) < vocabulary:
            raise CodecError(f"{what}: an id is not in the vocabulary of {vocabulary}")

    def read(self, digests: Sequence[str]) -> Iterator[tuple[str, bytes]]:
        """Blobs with their digests."""
        return zip(digests, self.store.read(digests) if digests else [], strict=True)


class LRUCache(Generic[T]):
    """A cache of values by digest, bounded in bytes; the least recently used leave first. Any thread may use it.

    >>> hot = LRUCache[str](limit=2)
    >>> hot.put("a", "one", 1); hot.put("b", "two", 2)
    >>> hot.get("a"), hot.get("b")
    (None, 'two')
    """

    def __init__(self, limit: int) -> None:
        """`limit` in bytes, as `put` counts them."""
        self._limit = limit
        self._bytes = 0
        self.hits = self.misses = 0  # of `get`, and of a counted `take`
        self._values: OrderedDict[str, tuple[T, int]] = OrderedDict()
        self._lock = Lock()

    def get(self, digest: str) -> T | None:
        """The value, if it is cached."""
        with self._lock:
            if digest not in self._values:
                self.misses += 1
                return None
            self.hits += 1
            self._values.move_to_end(digest)
            return self._values[digest][0]

    @property
    def nbytes(self) -> int:
        """The bytes of all cached values."""
        return self._bytes

    def take(self, digest: str, *, counted: bool = False) -> T | None:
        """The value, if it is cached, which it then is no more: for a value that its user changes.

        With `counted` it is a hit or a miss.
        """
        with self._lock:
            self.hits += counted and digest in self._values
            self.misses += counted and digest not in self._values
            value, nbytes = self._values.pop(digest, (None, 0))
            self._bytes -= nbytes
            return value

    def names(self) -> list[str]:
        """The digests of all cached values."""
        with self._lock:
            return list(self._values)

    def put(self, digest: str, value: T, nbytes: int) -> None:
        """Cache a value, while there is room."""
        with self._lock:
            self._bytes += nbytes - self._values.pop(digest, (value, 0))[1]
            self._values[digest] = value, nbytes
            while self._bytes > self._limit:
                self._bytes -= self._values.popitem(last=False)[1][1]
