"""The front door: a memory over one model and one store, and its sessions."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from threading import Event
from typing import Any, Self, TypeVar

from beacon_memory.archive import read_archive
from beacon_memory.codec import decode_ids, decode_segment, require
from beacon_memory.config import BeaconConfig
from beacon_memory.errors import SegmentMissing, SessionExists, SessionNotFound, SessionRolledBack
from beacon_memory.front import Front
from beacon_memory.head import SessionHead, check_entry, read_note, read_page
from beacon_memory.hot import Hot
from beacon_memory.model import BeaconModel
from beacon_memory.repair import repair
from beacon_memory.session import Session
from beacon_memory.state import BeaconState, Segment
from beacon_memory.stores import Head, StateStore, open_store
from beacon_memory.transcript import Transcript

T = TypeVar("T")

HOT_BYTES = 1 << 30  # segments kept on hand
FRONT_BYTES = 1 << 30  # and what turns have left on the device
PAGE_BYTES = 64 << 20  # pages of messages, as stored, and as many bytes of heads


class BeaconMemory:
    """Sessions of one model in one store.

    >>> memory = BeaconMemory.open("smollm2", store="sqlite:///memory.db")    # doctest: +SKIP
    >>> alice = memory.session("alice")                                       # doctest: +SKIP
    >>> alice.add([{"role": "user", "content": "I live in Lyon."}])           # doctest: +SKIP
    >>> alice.ask("Where do I live?")                                         # doctest: +SKIP
    """

    def __init__(
        self,
        model: BeaconModel,
        store: StateStore,
        *,
        hot_bytes: int = HOT_BYTES,
        front_bytes: int = FRONT_BYTES,
    ) -> None:
        """A memory over a loaded model and an open store; closing it closes the store.

        `hot_bytes` of segments are kept on hand, and `front_bytes` of sessions as the model reads them, on its device:
        the least recently used leave first.
        """
        self.model = model
        self.store = store
        self.transcript = Transcript(model.tokenizer)
        self._hot = Hot[Segment](hot_bytes)
        self._pages = Hot[list[dict[str, Any]]](PAGE_BYTES)
        self._fronts = Hot[Front](front_bytes)
        self._heads = Hot[tuple[SessionHead, int]](PAGE_BYTES)

    @classmethod
    def open(
        cls,
        model: str | BeaconModel = "smollm2",
        store: str | StateStore = "memory://",
        *,
        config: BeaconConfig | None = None,
        adapter: str | Path | None = "auto",
        hot_bytes: int = HOT_BYTES,
        front_bytes: int = FRONT_BYTES,
        key: bytes | None = None,
        **options: Any,
    ) -> Self:
        """A memory by names: a model as `BeaconModel.from_pretrained` takes it (with its options), a store by URL.

        Stores: memory://, sqlite:///path, redis://, rediss://, unix://, redis+cluster://, redis+sentinel://; `key`
        seals what a Redis store keeps. The store is opened first, so that a wrong URL does not cost a model. Raises
        ModelError, StoreUnavailable, ConfigError.
        """
        opened = open_store(store, key=key)
        try:
            if isinstance(model, str):
                model = BeaconModel.from_pretrained(model, config, adapter=adapter, **options)
            return cls(model, opened, hot_bytes=hot_bytes, front_bytes=front_bytes)
        except BaseException:
            if opened is not store:
                opened.close()
            raise

    def session(
        self,
        session_id: str,
        *,
        ratio: int | None = None,
        budget: int | None = None,
        slot_dtype: str | None = None,
        at_least: int = 0,
    ) -> Session:
        """A session by its id; it is created by the first thing added.

        `ratio` and `slot_dtype` ("bfloat16", "int8", "int4", …) hold for what is folded from now on (default: what the
        session has, else the model's). `budget` is the most slots it may keep. With `at_least`, a version from
        `info()`, a session that stands before it, or is gone, raises SessionRolledBack: the store went back in time.
        Nothing is read or written here.
        """
        return Session(self, session_id, ratio=ratio, budget=budget, slot_dtype=slot_dtype, at_least=at_least)

    def ask_many(
        self,
        asked: Sequence[tuple[str, str]],
        *,
        system: str | None = None,
        left: Sequence[Event] | None = None,
        **sampling: Any,
    ) -> list[str]:
        """Answers to pairs of a session's id and a question, all in one batch; nothing is written.

        Each is what `Session.ask` gives, but for rounding: many rows are other matrix products. An event of `left`, one
        for each pair, ends its answer where it is. Raises SessionNotFound, PromptTooLong.

        >>> from beacon_memory.testing import tiny_model
        >>> memory = BeaconMemory.open(tiny_model())
        >>> for name in ("ada", "bob"): memory.session(name).add(f"I am {name}.")
        >>> len(memory.ask_many([("ada", "Who am I?"), ("bob", "And I?")], max_new_tokens=4))
        2
        """
        if not asked:
            return []
        told = [self.session(name).prompt(question, system=system) for name, question in asked]
        fronts = [self.front(name) for name, _ in asked]
        sampling = {"stop": self.transcript.stop} | sampling
        prompts, states = zip(*told, strict=True)
        return [one.text for one in self.model.answers(prompts, states, fronts=fronts, left=left, **sampling)]

    def repair(self, session_id: str) -> int:
        """Fold a session's lost or damaged segments again from its ids and messages; gives their number.

        Raises SegmentMissing when these are lost too, SessionNotFound.
        """
        return repair(self, session_id)

    def sessions(self) -> list[str]:
        """The ids of all sessions, sorted."""
        return self.store.sessions()

    def import_session(self, path: str | Path, *, name: str | None = None) -> Session:
        """A session from a file that `Session.export` wrote, under its own name or another.

        Everything is checked before anything is written. Raises CodecError, ModelMismatch, SessionExists.
        """
        exported = read_archive(path)
        head = SessionHead.from_bytes(exported.head)
        require(head.fingerprint, self.model.fingerprint, what=f"session {exported.name!r}")
        for entry in head.entries:
            check_entry(entry, self.decode(exported.blobs[entry.digest], entry.digest))
        for digest in head.pages:
            read_page(exported.blobs[digest], digest)
        for digest in head.sources.values():
            decode_ids(exported.blobs[digest], digest)
        for digest in head.notes.values():
            read_note(exported.blobs[digest], digest)
        session = name or exported.name
        if self.store.version(session):
            raise SessionExists(f"session {session!r} exists already: import under another name, or forget it first")
        self.store.commit(session, Head(exported.head, head.digests), exported.blobs, expected=0)
        return self.session(session)

    def close(self) -> None:
        """Close the store."""
        self.store.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

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
        found = {digest: segment for digest in digests if (segment := self._hot.get(digest)) is not None}
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
        if (segment := self._hot.get(digest)) is None:
            try:
                segment = self.decode(self.store.read([digest])[0], digest)
            except SegmentMissing:
                return None
            self.keep([segment])
        return segment

    def front(self, *sessions: str) -> Front:
        """What the last turn of these sessions, one behind another, left on the device; it is taken, and given back by
        its `give`. Nothing of it is trusted: what it stands for is compared with what is asked of it.
        """
        names = json.dumps(sessions)
        front = self._fronts.take(names) or Front(self.model.empty)
        front.give = lambda front: self._fronts.put(names, front, front.nbytes)
        return front

    def keep(self, segments: Sequence[Segment]) -> None:
        """Have these segments on hand, as far as memory goes."""
        for segment in segments:
            self._hot.put(segment.digest, segment, segment.nbytes)

    def decode(self, blob: bytes, digest: str) -> Segment:
        """A segment of this memory's model from its bytes."""
        return decode_segment(blob, fingerprint=self.model.fingerprint, digest=digest)

    def read(self, digests: Sequence[str]) -> Iterator[tuple[str, bytes]]:
        """Blobs with their digests."""
        return zip(digests, self.store.read(digests) if digests else [], strict=True)
