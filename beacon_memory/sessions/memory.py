"""The front door: a memory over one model and one store, and its sessions."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from threading import Event
from typing import Any, Self

from beacon_memory.config import BeaconConfig
from beacon_memory.errors import InputError, SessionExists
from beacon_memory.models.model import BeaconModel
from beacon_memory.sessions.repair import repair
from beacon_memory.sessions.repository import CACHE_BYTES, RESIDENT_BYTES, Repository
from beacon_memory.sessions.session import Session
from beacon_memory.sessions.stored import BRANCH
from beacon_memory.sessions.turn import batch_answers
from beacon_memory.state.archive import read_archive
from beacon_memory.state.codec import decode_ids, require
from beacon_memory.state.head import SessionHead, check_entry, read_note, read_page
from beacon_memory.stores import Head, StateStore, open_store


class BeaconMemory(Repository):
    """Sessions of one model in one store.

    >>> memory = BeaconMemory.open("smollm2", store="sqlite:///memory.db")    # doctest: +SKIP
    >>> alice = memory.session("alice")                                       # doctest: +SKIP
    >>> alice.add([{"role": "user", "content": "I live in Lyon."}])           # doctest: +SKIP
    >>> alice.ask("Where do I live?")                                         # doctest: +SKIP
    """

    @classmethod
    def open(
        cls,
        model: str | BeaconModel = "smollm2",
        store: str | StateStore = "memory://",
        *,
        config: BeaconConfig | None = None,
        adapter: str | Path | None = "auto",
        cache_bytes: int = CACHE_BYTES,
        resident_bytes: int = RESIDENT_BYTES,
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
            return cls(model, opened, cache_bytes=cache_bytes, resident_bytes=resident_bytes)
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
        Nothing is read or written here. Raises InputError for what is no id.
        """
        if isinstance(session_id, str) and session_id.startswith(BRANCH):
            raise InputError(f"a session's id does not begin with {BRANCH!r}: choose another")
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
        prompts = [self.session(name).prompt_for(question, system=system) for name, question in asked]
        return [answer.text for answer in batch_answers(self, prompts, left=left, **sampling)]

    def repair(self, session_id: str) -> int:
        """Fold a session's lost or damaged segments again from its ids and messages; gives their number.

        Raises SegmentMissing when these are lost too, SessionNotFound.
        """
        return repair(self, session_id)

    def sessions(self) -> list[str]:
        """The ids of all sessions, sorted; a session's branches are told by itself."""
        return [name for name in self.store.sessions() if not name.startswith(BRANCH)]

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
