"""The front door: a memory over one model and one store, and its sessions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING, Any, Self, Unpack

from beacon_memory.config import RECALL_TOKENS, BeaconConfig
from beacon_memory.errors import (
    CodecError,
    ConfigError,
    InputError,
    IntegrityError,
    SegmentMissing,
    SessionExists,
    SessionNotFound,
)
from beacon_memory.models.generation import Sampling
from beacon_memory.models.given import given_list
from beacon_memory.models.model import BeaconModel
from beacon_memory.sessions.repair import refold, repair
from beacon_memory.sessions.repository import CACHE_BYTES, RESIDENT_BYTES, Repository
from beacon_memory.sessions.session import Session
from beacon_memory.sessions.stored import CONTEXT, SessionOptions, check_talk, context_name, kind_of
from beacon_memory.sessions.turn import batch_answers
from beacon_memory.state.archive import read_archive
from beacon_memory.state.codec import decode_ids, require
from beacon_memory.state.head import DOCUMENT, SessionHead, check_entry, read_note, read_page
from beacon_memory.stores import StateStore, open_store
from beacon_memory.talk.messages import read_message

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


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
        model: str | Path | BeaconModel = "smollm2",
        store: str | StateStore = "memory://",
        *,
        config: BeaconConfig | None = None,
        adapter: str | Path | None = "auto",
        cache_bytes: int = CACHE_BYTES,
        resident_bytes: int = RESIDENT_BYTES,
        recall_tokens: int = RECALL_TOKENS,
        key: bytes | None = None,
        old_key: bytes | None = None,
        encrypt: bool = False,
        **options: Any,
    ) -> Self:
        """A memory by names: a model as `BeaconModel.from_pretrained` takes it (with its options), a store by URL.

        Passages of up to `recall_tokens` tokens that a question is about are read again, raw, in front of it, where the
        model has a finder; with 0, none is.
        Stores: memory://, sqlite:///path, redis://, rediss://, unix://, redis+cluster://, redis+sentinel://; `key`
        signs what a SQLite or Redis store keeps, `encrypt` encrypts it too, and `old_key` is for changing the key.
        Options that go with a name are refused beside a loaded model or an open store. The store is opened first, so
        that a wrong URL does not cost a model. Raises ModelError, StoreUnavailable, ConfigError.
        """
        if not isinstance(model, str | Path) and (config is not None or adapter != "auto" or options):
            raise ConfigError("a loaded model has its config, adapter and options already: give them with its name")
        opened = open_store(store, key=key, old_key=old_key, encrypt=encrypt)
        try:
            if isinstance(model, str | Path):
                model = BeaconModel.from_pretrained(model, config, adapter=adapter, **options)
            if not isinstance(model, BeaconModel):
                raise ConfigError(f"a model is a name or a BeaconModel, not {model!r:.80}")
            return cls(
                model, opened, cache_bytes=cache_bytes, resident_bytes=resident_bytes, recall_tokens=recall_tokens
            )
        except BaseException:
            if opened is not store:
                opened.close()
            raise

    def session(self, session_id: str, **options: Unpack[SessionOptions]) -> Session:
        """A session by its id; it is created by the first thing added, but not (SessionNotFound) with `create=False`,
        nor (SessionRolledBack, once) where this memory has seen it before, unless `create=True`: then it was lost, or
        forgotten elsewhere.

        `ratio` and `slot_dtype` ("bfloat16", "int8", "int4", …) hold for what is folded from now on (default: what the
        session has, else the model's). `budget` is the most slots it may keep. With `at_least`, a version from
        `info()`, a session that does not descend from it, or is gone, raises SessionRolledBack: the store went back in
        time, whatever was added since. Nothing is read or written here. Raises InputError for what is no id, or names
        documents (see `context`).
        """
        return Session(self, check_talk(session_id), **options)

    def context(self, name: str, **options: Unpack[SessionOptions]) -> Session:
        """The session that holds the documents of a name: of `Documents`, of an index, of what a framework read by
        `with_context`. Options as `session` takes them.

        Names of documents and ids of sessions never meet: an id that a user chose cannot open documents.

        >>> from beacon_memory.testing import tiny_model
        >>> memory = BeaconMemory.open(tiny_model())
        >>> memory.context("house").add_text("The door is green.", name="door")
        >>> memory.sessions(), memory.contexts()
        ([], ['house'])
        """
        return Session(self, context_name(name), **options)

    def ask_many(
        self,
        asked: Sequence[tuple[str, str]],
        *,
        system: str | None = None,
        left: Sequence[Event] | None = None,
        recall_tokens: int | None = None,
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
        asked = given_list(asked, "asked")
        if not all(isinstance(pair, tuple | list) and len(pair) == 2 for pair in asked):
            raise InputError(f"asked is a list of pairs of a session's id and a question, not {asked!r:.80}")
        left = None if left is None else given_list(left, "left")
        if left is not None and (len(left) != len(asked) or not all(isinstance(one, Event) for one in left)):
            raise InputError(f"left is a list of events, one for each question, not {left!r:.80}")
        if not asked:
            return []
        how: dict[str, Any] = {"recall_tokens": recall_tokens, "answer": Sampling.of(sampling).max_new_tokens}
        prompts = [self.session(name).prompt_for(question, system=system, **how) for name, question in asked]
        return [answer.text for answer in batch_answers(self, prompts, left=left, **sampling)]

    def repair(self, session_id: str, *, places: bool = False) -> int:
        """Fold a session's lost or damaged segments again from its ids and messages; gives their number. With `places`,
        those too that an older release wrote without saying which tokens their slots stand for.

        What the store keeps beside the head is made again too. Raises SegmentMissing when messages or ids are lost,
        SessionNotFound.
        """
        self.store.mend(session_id)
        return repair(self, session_id, places=places)

    def refold(self, *, tokenizer: PreTrainedTokenizerBase | None = None) -> dict[str, int]:
        """Move all that the store keeps, documents and branches too, to this memory's model and adapter; gives the
        tokens read of each that was another's. May be called again after an error: what is moved stays so. Raises what
        `Session.refold` raises.
        """
        read: dict[str, int] = {}
        for name in self.store.sessions():
            with suppress(SessionNotFound):  # forgotten meanwhile
                read[name] = refold(self, name, tokenizer=tokenizer)
        return {name: tokens for name, tokens in read.items() if tokens}

    def sessions(self) -> list[str]:
        """The ids of all sessions, sorted; a session's branches are told by itself, documents by `contexts`."""
        return [name for name in self.store.sessions() if not kind_of(name)]

    def contexts(self) -> list[str]:
        """The names under which documents are kept, sorted."""
        return [name.removeprefix(CONTEXT) for name in self.store.sessions() if kind_of(name) == CONTEXT]

    def import_session(self, path: str | Path, *, name: str | None = None) -> Session:
        """A session from a file that `Session.export` wrote, under its own name or another.

        Everything is checked before anything is written. Raises CodecError, ModelMismatch, SessionExists.
        """
        exported = read_archive(path)
        head = SessionHead.from_bytes(exported.head)
        require(head.fingerprint, self.model.fingerprint, what=f"session {exported.name!r}")
        blobs = dict(exported.blobs)
        self._check(head, blobs)
        session = exported.name if name is None else name
        imported = self.context(session.removeprefix(CONTEXT)) if kind_of(session) == CONTEXT else self.session(session)
        if kind_of(session) == CONTEXT and (head.tail or not all(entry.document for entry in head.entries)):
            raise InputError(f"{session!r} names documents, and a talk is in this file: give it another name")
        if self.store.version(session):
            raise SessionExists(f"session {session!r} exists already: import under another name, or forget it first")
        # Slots that nobody here has folded are kept apart: no other session finds them when it folds the same text.
        head = head.where(head, {e.digest: blobs[e.blob] for e in head.entries if not e.apart})
        foreign = {e.digest for e in head.entries if not e.apart and not self._stands(e.digest, blobs[e.digest])}
        blobs |= {e.checksum: blobs[e.digest] for e in head.entries if e.digest in foreign and not e.apart}
        # Branches stay where they were: an export has none.
        self.commit(session, replace(head.apart(foreign), branches=()), blobs, expected=0)
        return imported

    def _check(self, head: SessionHead, blobs: Mapping[str, bytes]) -> None:
        """Raises CodecError, ModelMismatch unless these blobs are what the head names, and this model can read them."""
        self.check_ids(head.tail, what="the tail")
        for entry in head.entries:
            check_entry(entry, self.decode(blobs[entry.blob], entry))
        messages = list(head.recent)
        for digest in head.pages:
            messages += read_page(blobs[digest], digest)
        if len(messages) != head.messages:
            raise CodecError(f"{len(messages)} messages found, the head says {head.messages}")
        for message in messages:
            if message["role"] != DOCUMENT:
                try:
                    read_message(message)
                except InputError as exc:
                    raise CodecError(f"a message of the session is none that can be remembered: {exc}") from exc
        for digest in head.sources.values():
            self.check_ids(decode_ids(blobs[digest], digest), what="a document")
        for digest in head.notes.values():
            read_note(blobs[digest], digest)

    def _stands(self, digest: str, blob: bytes) -> bool:
        """Whether the store has these very bytes under this name."""
        try:
            return self.store.read([digest]) == [blob]
        except (SegmentMissing, IntegrityError):
            return False

    def close(self) -> None:
        """Close the store, and let go of what makes answers elsewhere."""
        if self.elsewhere is not None:
            self.elsewhere.close()
        self.store.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()
