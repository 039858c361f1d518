"""Documents under one name: each folded by itself, joined in order, put, replaced and removed by key.

They are a session that holds nothing else. Slots have no position until they are read, so a document's segments can
stand behind any others: adding one folds one, removing one folds none. Where a model has recurrent layers, each is
folded behind those before it, so removing or replacing one folds those behind it again.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from copy import copy
from dataclasses import replace
from itertools import islice, takewhile
from typing import TYPE_CHECKING, Any, TypeVar

from beacon_memory.errors import InputError, SessionConflict, SessionNotFound
from beacon_memory.models.given import check_called, given_list
from beacon_memory.sessions.session import Session
from beacon_memory.sessions.stored import context_name
from beacon_memory.state.budget import next_refold
from beacon_memory.state.codec import decode_ids, encode_ids
from beacon_memory.state.head import DOCUMENT, Entry, SessionHead, read_note, write_note
from beacon_memory.state.info import Document as Document
from beacon_memory.state.info import DocumentInfo as DocumentInfo
from beacon_memory.state.info import Written as Written
from beacon_memory.state.state import BeaconState, Segment
from beacon_memory.talk.messages import whole
from beacon_memory.talk.sources import check_text

if TYPE_CHECKING:
    from beacon_memory.sessions.repository import Repository

T = TypeVar("T")
Progress = Callable[[int], None]


class Documents:
    """The documents of a name. It holds nothing but names: every call reads the newest version.

    >>> from beacon_memory import BeaconMemory
    >>> from beacon_memory.testing import tiny_model
    >>> house = Documents(BeaconMemory.open(tiny_model()), "house")
    >>> house.put([Document("door", "The door is green."), Document("lease", "The lease ends in May.")])
    Written(changed=(True, True), windows=2)
    >>> house.put([Document("door", "The door is blue."), Document("lease", "The lease ends in May.")])
    Written(changed=(True, False), windows=1)
    """

    def __init__(self, memory: Repository, name: str, *, ratio: int | None = None, budget: int | None = None) -> None:
        self.name = name
        self._memory = memory
        self._session = Session(memory, context_name(name), ratio=ratio, budget=budget)

    def put(
        self,
        documents: Sequence[Document],
        *,
        new: bool = False,
        delete_missing: bool = False,
        keep: Container[str] = (),
        progress: Progress | None = None,
    ) -> Written:
        """Add documents at the end, or in place of those of the same key; equal ones stay as they are.

        All of them or, when one is bad or anything fails, none. A text that is held already, under whatever key, is not
        folded again and stands once. With `new`, a key that is there already is refused. With `delete_missing`, those
        whose keys are neither given nor in `keep` are removed. Raises InputError for an empty text or a key given
        twice, ModelMismatch, BudgetExceeded, StoreError.
        """
        check_called(progress=progress)
        keys = _checked(documents := given_list(documents, "documents"))

        def once() -> Written:
            shelf = self._shelf()
            if new and (there := keys & shelf.notes.keys()):
                raise InputError(
                    f"{self.name!r} holds a document {min(there)!r} already: update it, or give another id"
                )
            missing = [key for key in shelf.notes if delete_missing and key not in keys and key not in keep]
            for key in missing:
                del shelf.notes[key]
            changed = [shelf.put(document, progress) for document in documents]
            if not shelf.version or missing or any(changed):
                shelf.write()
            return Written(tuple(changed), shelf.windows)

        return self._memory.written(self._session.id, once)

    def remove(self, *keys: str) -> None:
        """Take documents out, all or none; nothing is folded, and their bytes go with the last name of them.

        Raises SessionNotFound, InputError for a key that is not there.
        """

        def once() -> None:
            shelf = self._shelf(create=False)
            for key in keys:
                if not isinstance(key, str) or shelf.notes.pop(key, None) is None:
                    raise InputError(f"{self.name!r} holds no document {key!r}")
            shelf.write()

        self._memory.written(self._session.id, once)

    def info(self) -> list[DocumentInfo]:
        """The documents, in the order in which they are read. Raises SessionNotFound, ModelMismatch."""

        def read(head: SessionHead) -> list[DocumentInfo]:
            slots: dict[str, int] = {}
            for entry in head.entries:
                slots[entry.document] = slots.get(entry.document, 0) + entry.slots
            return [
                DocumentInfo(key, str(note.get("hash", "")), int(note["tokens"]), slots.get(str(note["document"]), 0))
                for key, note in self._notes(head).items()
            ]

        return self._memory.view(self._session.id, read)[0]

    def about(self) -> dict[str, dict[str, Any]]:
        """What is kept beside each document, by key, in the same order. Raises SessionNotFound, ModelMismatch."""

        def read(head: SessionHead) -> dict[str, dict[str, Any]]:
            blobs = dict(self._memory.read(list(dict.fromkeys(head.notes.values()))))
            beside = {key: head.notes.get(key) for key in self._notes(head)}
            return {key: read_note(blobs[digest], digest) if digest else {} for key, digest in beside.items()}

        return self._memory.view(self._session.id, read)[0]

    def texts(self) -> dict[str, str]:
        """The text of each document, by key, as the model's tokenizer gives it back. Raises as `info` does."""

        def read(head: SessionHead) -> dict[str, str]:
            names = {key: str(note["document"]) for key, note in self._notes(head).items()}
            digests = {key: head.sources[name] for key, name in names.items() if name in head.sources}
            blobs = dict(self._memory.read(list(dict.fromkeys(digests.values()))))
            return {key: self._memory.model.decode(decode_ids(blobs[of], of)) for key, of in digests.items()}

        return self._memory.view(self._session.id, read)[0]

    @property
    def version(self) -> int:
        """A number that grows with each change, 0 while nothing of this name was written."""
        return self._memory.store.version(self._session.id)

    def alone(self, act: Callable[[], T]) -> T:
        """The result of `act`. What it reads of these documents, no one else changes before it has written."""
        with self._memory.turn(self._session.id):
            return act()

    def rename(self, name: str) -> Documents:
        """The same documents under another name; the old one is gone. Raises SessionExists, SessionNotFound."""
        renamed = copy(self)
        renamed.name, renamed._session = name, self._session.fork(context_name(name))
        self._session.forget()
        return renamed

    def forget(self) -> None:
        """Remove the documents, and every byte that no other session names. Raises SessionNotFound."""
        self._session.forget()

    def _shelf(self, *, create: bool = True) -> _Shelf:
        try:
            notes, head, version = self._memory.view(self._session.id, self._notes)
        except SessionNotFound:
            if not create:
                raise
            self._memory.begin(self._session.id, create=None)
            return _Shelf(self._memory, self._session, self._session.settled(None), 0, {})
        return _Shelf(self._memory, self._session, self._session.settled(head), version, notes)

    def _notes(self, head: SessionHead) -> dict[str, dict[str, Any]]:
        """What the transcript says of each document, by key. Raises InputError when it has a conversation in it."""
        messages = self._memory.messages(head)
        if head.tail or any(message["role"] != DOCUMENT for message in messages):
            raise InputError(f"{self.name!r} holds a conversation, not documents alone: choose another id")
        # A document that a session was told has no key: its name is it, or its text's where the name is not alone.
        names = Counter(str(note.get("key", note["content"])) for note in messages)
        alone = {name for name, count in names.items() if count == 1}
        return {
            str(note.get("key", note["content"] if note["content"] in alone else note["document"])): note
            for note in messages
        }


class _Shelf:
    """The documents of one version, while they are changed."""

    def __init__(
        self, memory: Repository, session: Session, head: SessionHead, version: int, notes: dict[str, dict[str, Any]]
    ) -> None:
        self.version, self.notes = version, notes  # key -> what the transcript says of it
        self.windows = 0
        self._memory, self._session, self._head = memory, session, head
        self._entries = {name: _of(head.entries, name) for name in dict.fromkeys(e.document for e in head.entries)}
        self._folded: dict[str, list[Segment]] = {}  # document -> its segments, where they are new
        self._beside, self._sources = dict(head.notes), dict(head.sources)
        self._blobs: dict[str, bytes] = {}
        self._progress: Progress | None = None

    def put(self, document: Document, progress: Progress | None) -> bool:
        """Put a document; returns whether it is new or changed."""
        self._progress = progress
        if self.notes.get(document.key, {}).get("hash") == document.identity:
            return False
        model, head = self._memory.model, self._head
        ids = [*self._memory.transcript.start, *model.encode(document.text)]
        source = encode_ids(ids)
        digest = hashlib.sha256(source).hexdigest()
        # A text that a session was told has a name of another kind.
        name = next((held for held, of in self._sources.items() if of == digest), digest[:16])
        if name not in self._entries and model.recurrent:
            self._entries[name] = []  # it is folded where it will stand, by `write`
        elif name not in self._entries:
            read = model.compress(
                ids,
                ratio=head.ratio,
                document=True,
                budget=head.budget,
                known=self._known,
                slot_dtype=head.slot_dtype,
                progress=progress,
            )
            self._set(name, read.segments)
        self._sources[name], self._blobs[digest] = digest, source
        beside, blob = write_note(document.about)
        self._beside[document.key], self._blobs[beside] = beside, blob
        self.notes[document.key] = {
            "role": DOCUMENT,
            "content": document.key,
            "tokens": len(ids),
            "document": name,
            "key": document.key,
            "hash": document.identity,
        }
        return True

    def write(self) -> None:
        """Move the session's head to what is on the shelf. Raises SessionConflict, BudgetExceeded."""
        names = list(dict.fromkeys(str(note["document"]) for note in self.notes.values()))
        if self._memory.model.recurrent:
            self._follow(names)
        else:
            self._fit(names)
        changed, pages = replace(
            self._head,
            entries=tuple(entry for name in names for entry in self._entries[name]),
            sources={name: digest for name, digest in self._sources.items() if name in names},
            notes={key: digest for key, digest in self._beside.items() if key in self.notes},
            pages=(),
            recent=(),
        ).with_messages(list(self.notes.values()))
        there = set(self._head.digests)
        blobs = {digest: blob for digest, blob in (self._blobs | pages).items() if digest not in there}
        new = tuple(segment for name in names for segment in self._folded.get(name, ()))
        self._session.write(self._head, changed, BeaconState(new), blobs, expected=self.version)

    def _follow(self, names: Sequence[str]) -> None:
        """Fold each document behind those before it, from the first on that did not stand there before."""
        model, head = self._memory.model, self._head
        before = list(dict.fromkeys(entry.document for entry in head.entries))
        same = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(names, before, strict=False)))
        held = self._held(names[:same])
        state, sizes = (
            BeaconState(tuple(s for name in names[:same] for s in held[name])),
            [len(s) for s in held.values()],
        )
        how: dict[str, Any] = {"budget": head.budget, "known": self._known, "slot_dtype": head.slot_dtype}
        for name in names[same:]:
            digest = self._sources[name]
            source = self._blobs[digest] if digest in self._blobs else self._memory.store.read([digest])[0]
            ratio = min((entry.ratio for entry in self._entries[name]), default=head.ratio)
            state = model.compress(
                decode_ids(source, digest), state, ratio=ratio, document=True, progress=self._progress, **how
            )
            sizes.append(len(state.segments) - sum(sizes))
        fitted = iter(model.fit(state.segments, **how))
        for name, size in zip(names, sizes, strict=True):
            self._set(name, list(islice(fitted, size)))

    def _fit(self, names: Sequence[str]) -> None:
        """Fold old segments again, coarser, until all fit; each behind its own document alone, which may stay longer
        than the others.
        """
        budget = self._head.budget or self._memory.model.budget
        if sum(entry.slots for name in names for entry in self._entries[name]) <= budget:
            return
        held = self._held(names)
        while sum(segment.slots for name in names for segment in held[name]) > budget:
            index, ratio = next_refold([segment for name in names for segment in held[name]], budget)
            name, index = [(name, at) for name in names for at in range(len(held[name]))][index]
            old, own = held[name][index], held[name]
            how: dict[str, Any] = {"known": self._known, "slot_dtype": self._head.slot_dtype}
            own[index] = self._memory.model.refold(old.ids, own[:index], ratio=ratio, sink=old.sink, **how)
        for name in names:
            self._set(name, held[name])

    def _held(self, names: Iterable[str]) -> dict[str, list[Segment]]:
        """The segments of each document. Raises SessionConflict when the session has moved."""
        held = {name: list(self._folded.get(name, ())) for name in names}
        if self.version:
            state, head, version = self._memory.view(self._session.id, self._memory.state)
            if version != self.version:
                raise SessionConflict(f"{self._session.id!r} is at version {version}, not {self.version}")
            for entry, segment in zip(head.entries, state.segments, strict=True):
                if entry.document in held and entry.document not in self._folded:
                    held[entry.document].append(segment)
        return held

    def _set(self, name: str, segments: Sequence[Segment]) -> None:
        self._memory.keep(segments)
        self._folded[name] = list(segments)
        self._entries[name] = [Entry.of(segment, name) for segment in segments]

    def _known(self, digest: str) -> Segment | None:
        """A segment that was folded before; those that were not are counted."""
        found = self._memory.known(digest)
        self.windows += found is None
        return found


def _checked(documents: Sequence[Document]) -> set[str]:
    """The keys of documents that can be kept. Raises InputError."""
    if not all(isinstance(one, Document) for one in documents):
        raise InputError(f"documents are a list of Document(key, text), not {documents!r:.80}")
    keys: set[str] = set()
    for document in documents:
        check_text(document.text, what=f"document {document.key!r:.80}")
        if not isinstance(document.key, str) or whole(document.key) != document.key:
            raise InputError(f"a document's key is text in valid unicode, not {document.key!r:.80}")
        if not isinstance(document.hash, str) or whole(document.hash) != document.hash:
            raise InputError(f"the hash of document {document.key!r:.80} is text, not {document.hash!r:.80}")
        if not isinstance(document.about, Mapping):
            raise InputError(
                f"what is kept beside document {document.key!r:.80} is a mapping, not {document.about!r:.80}"
            )
        try:
            document.identity  # noqa: B018  (made of what is kept beside it)
        except (TypeError, ValueError, RecursionError) as exc:
            raise InputError(f"what is kept beside document {document.key!r:.80} is not JSON: {exc}") from exc
        if document.key in keys:
            raise InputError(f"document {document.key!r} is given twice: give each its own id")
        keys.add(document.key)
    return keys


def _of(entries: Sequence[Entry], name: str) -> list[Entry]:
    return [entry for entry in entries if entry.document == name]
