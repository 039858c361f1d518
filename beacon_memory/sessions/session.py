"""One session of a memory: what was said, what was read, and answers from both."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, overload

from beacon_memory.config import SLOT_BITS
from beacon_memory.errors import BeaconError, InputError, SessionConflict, SessionNotFound
from beacon_memory.models.generation import Sampling
from beacon_memory.models.given import check_called, given_list
from beacon_memory.models.joining import with_document
from beacon_memory.sessions.looking.again import look_again, search
from beacon_memory.sessions.looking.source import origins_of
from beacon_memory.sessions.prompt import Prompt, make_prompt
from beacon_memory.sessions.repair import refold
from beacon_memory.sessions.rewind import Changed, back, place_of, reread
from beacon_memory.sessions.stored import Progress, StoredSession, branch_name, kind_of
from beacon_memory.sessions.turn import Turn, stream_answer
from beacon_memory.state.archive import Exported, write_archive
from beacon_memory.state.codec import encode_ids
from beacon_memory.state.head import DOCUMENT, SessionHead
from beacon_memory.state.info import Branch as Branch
from beacon_memory.state.info import SessionInfo as SessionInfo
from beacon_memory.state.recurrent import kept_bytes
from beacon_memory.state.source import Source
from beacon_memory.state.state import BeaconState, chain
from beacon_memory.talk.messages import check_message, says, whole
from beacon_memory.talk.sources import check_text, read_source

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Messages = str | Mapping[str, Any] | Sequence[Mapping[str, Any]]


class Session(StoredSession):
    """A session by its id. It holds nothing but names: every call reads the session's newest version."""

    def add(self, messages: Messages, *, fold: bool = True, progress: Progress | None = None) -> None:
        """Remember one or several messages: `{"role": "user" | "assistant" | "tool", "content": text}`. Text alone is a
        user's. Nothing is remembered when one of them is bad. Without `fold` they stay raw, until a worker of the
        store's queue, `fold` or the next `add` folds them. Raises InputError, TranscriptError.
        """
        check_called(progress=progress)
        if isinstance(messages, str):
            messages = {"role": "user", "content": messages}
        many = [messages] if isinstance(messages, Mapping) else given_list(messages, "messages")
        if not many:
            raise InputError("no message to add")
        self.append(self._memory.transcript.read(many), fold=fold, progress=progress)

    def set(self, messages: Sequence[Mapping[str, Any]]) -> None:
        """Replace the conversation by these messages. Their common beginning is not read again, what was stored after
        it is forgotten; documents stay. Raises InputError, TranscriptError.
        """
        self.replace_talk(self._memory.transcript.read(messages))
        self._memory.store.scrub()

    def add_document(self, source: str | Path, *, name: str | None = None, progress: Progress | None = None) -> None:
        """Read a document: the path of a UTF-8 text file, or the text itself. One that the session has read is not
        read again; one that any session has folded before is not folded again. A new text takes the place of the
        older one of its name, as `delete` takes it out.

        Raises InputError for a file that is missing, empty or not text.
        """
        text, found = read_source(source)
        self.add_text(text, name=name or found, progress=progress)

    def add_text(self, text: str, *, name: str, progress: Progress | None = None) -> None:
        """Read a text as a document of this name, whatever it looks like: never taken for a path. Raises InputError."""
        check_text(text)
        check_called(progress=progress)
        if not isinstance(name, str):
            raise InputError(f"a document's name is text, not {name!r:.80}")
        model, transcript = self._memory.model, self._memory.transcript
        ids = [*transcript.start, *model.encode(text)]
        source = encode_ids(ids)
        digest = hashlib.sha256(source).hexdigest()

        def change(head: SessionHead, state: BeaconState) -> Changed:
            held = {entry.document for entry in head.entries}
            if any(of == digest and name in held for name, of in head.sources.items()):
                return head, state, {}  # whatever ratio or dtype it was read at
            how: dict[str, Any] = {"known": self._memory.known, "slot_dtype": head.slot_dtype, "progress": progress}
            fitted, read = with_document(model, state.segments, ids, ratio=head.ratio, budget=head.budget, **how)
            self._memory.keep(read)
            document = chain(segment.digest for segment in read)[:16]
            if any(entry.document == document for entry in head.entries):
                return head, state, {}
            state = replace(state, segments=fitted)
            note = {"role": DOCUMENT, "content": whole(name), "tokens": len(ids), "document": document}
            noted, pages = head.with_state(state, document=document).with_messages([note])
            noted = replace(noted, sources={**head.sources, document: digest})
            return noted, state, pages | {digest: source}

        with self._memory.turn(self.id):  # no one moves what stands behind meanwhile
            self.change(change)
            for place in self._older(name, digest):
                self._edit(place, None)

    def _older(self, name: str, digest: str) -> list[int]:
        """Where documents of this name stand that have another text, the last first."""

        def read(head: SessionHead) -> list[int]:
            if len({entry.document for entry in head.entries if entry.document}) < 2:
                return []
            past = [(n, m) for n, m in enumerate(self._memory.messages(head)) if m["role"] == DOCUMENT]
            return [n for n, m in past[::-1] if m["content"] == name and head.sources.get(m["document"]) != digest]

        return self._memory.view(self.id, read)[0]

    @overload
    def ask(self, question: str, *, system: str | None = ..., stream: Literal[False] = ..., **sampling: Any) -> str: ...
    @overload
    def ask(
        self, question: str, *, system: str | None = ..., stream: Literal[True], **sampling: Any
    ) -> Iterator[str]: ...

    def ask(
        self,
        question: str,
        *,
        system: str | None = None,
        stream: bool = False,
        recall_tokens: int | None = None,
        **sampling: Any,
    ) -> str | Iterator[str]:
        """An answer from memory; nothing is written. A session that does not exist is an error.

        Passages that the question is about are read again, raw, up to `recall_tokens` of them (default: the memory's).
        `sampling`: max_new_tokens, temperature, top_p, top_k, repetition_penalty, stop, seed. Raises SessionNotFound,
        PromptTooLong.
        """
        answer = Sampling.of(sampling).max_new_tokens
        prompt = self.prompt_for(question, system=system, recall_tokens=recall_tokens, answer=answer)
        pieces = stream_answer(self._memory, prompt, **sampling)
        return pieces if stream else "".join(pieces)

    def prompt(self, question: str, *, system: str | None = None) -> tuple[list[int], BeaconState]:
        """What `ask` gives the model: the ids, and the state in front of them. Raises SessionNotFound."""
        prompt = self.prompt_for(question, system=system)
        return list(prompt.ids), prompt.state

    def prompt_for(
        self, question: str, *, system: str | None = None, recall_tokens: int | None = None, answer: int = 256
    ) -> Prompt:
        """The same, with what each range of the ids is, and the sources of what is read again; `answer` tokens still
        fit behind it. Raises SessionNotFound, InputError, ConfigError.
        """
        if type(answer) is not int or answer < 0:
            raise InputError(f"answer is a number of tokens, not {answer!r:.80}")
        state, head, _ = self._memory.view(self.id, self._memory.state, at_least=self._at_least)
        how: dict[str, Any] = {"asked": [{"role": "user", "content": question}], "system": system}
        how |= {"resident": (self.id,), "origins": origins_of(self.id, head, len(state.segments))}
        prompt = make_prompt(self._memory, state, opens=head.unfolded, **how)
        return look_again(self._memory, prompt, recall_tokens=recall_tokens, answer=answer)

    def search(self, text: str, *, limit: int = 5) -> list[Source]:
        """The passages of what was folded that a question is about, the best first: those that the memory itself would
        look at. From `model.finder.threshold` on, it reads them again.

        Raises SessionNotFound, InputError where an older release wrote the session or `limit` is no number, ConfigError
        without a finder.
        """
        return search(self._memory, self.prompt_for(text, recall_tokens=0), limit=limit)

    @overload
    def chat(self, text: str, *, system: str | None = ..., stream: Literal[False] = ..., **sampling: Any) -> str: ...
    @overload
    def chat(self, text: str, *, system: str | None = ..., stream: Literal[True], **sampling: Any) -> Iterator[str]: ...

    def chat(
        self, text: str, *, system: str | None = None, stream: bool = False, **sampling: Any
    ) -> str | Iterator[str]:
        """An answer from memory, and both turns remembered once it is whole.

        `recall_tokens` and `sampling` as for `ask`. A generation that fails, or a stream that is closed before its end,
        leaves the session where it was.
        """
        asked = {"role": "user", "content": text}
        pieces = Turn(self._memory, [asked], session=self, history="append", raw=1, system=system, **sampling)
        pieces.begin()  # what can be refused is refused now, not at the first piece
        return pieces if stream else "".join(pieces)

    def info(self) -> SessionInfo:
        """What the session holds and what it costs; no segment is read. Raises SessionNotFound."""
        head, version = self._memory.load(self.id, at_least=self._at_least)
        model = self._memory.model
        ratios: dict[int, int] = {}
        for entry in head.entries:
            ratios[entry.ratio] = ratios.get(entry.ratio, 0) + entry.tokens
        slots = sum(entry.slots for entry in head.entries)
        tokens = sum(entry.tokens for entry in head.entries) + len(head.tail)
        dtype = head.slot_dtype or model.config.slot_dtype
        read = len(head.entries) * kept_bytes(model.recurrent_shapes, dtype)
        return SessionInfo(
            session=self.id,
            version=version,
            messages=head.messages,
            documents=len({entry.document for entry in head.entries} - {""}),
            tokens=tokens,
            slots=slots,
            tail=len(head.tail),
            ratios=ratios,
            ratio=head.ratio,
            budget=head.budget or model.budget,
            bytes=int(slots * model.raw_bytes_per_token * SLOT_BITS[dtype] / 16) + read,
            raw_bytes=tokens * model.raw_bytes_per_token,
        )

    def messages(self, *, query: str = "") -> list[dict[str, Any]]:
        """The transcript, oldest first; a document stands in it as a note. With `query`, the messages whose text
        contains it, in whatever case. Read whatever model has folded it. Raises SessionNotFound.
        """
        if not isinstance(query, str):
            raise InputError(f"query is text that a message contains, not {query!r:.80}")
        found = self._memory.view(self.id, self._memory.messages, at_least=self._at_least, any_model=True)[0]
        return [message for message in found if says(message, query)]

    def delete(self, message: str | int) -> None:
        """Forget one message, by its `id` or its place in `messages()`, or one document by its name.

        What was folded behind it is folded again, as if it had never been said; calls of tools go with their results.
        Branches that hold it go too. Raises InputError, SessionNotFound, TranscriptError.
        """
        self._edit(message, None)

    def edit(self, message: str | int, text: str) -> None:
        """Give one message another text; it keeps its place, role and id. Else as `delete`."""
        if not isinstance(text, str):
            raise InputError(f"a message's new text is text, not {text!r:.80}: delete forgets a message")
        self._edit(message, text)

    def _edit(self, which: str | int, text: str | None) -> None:
        gone: list[Mapping[str, Any]] = []

        def change(head: SessionHead, state: BeaconState) -> Changed:
            past = self._memory.messages(head)
            place = place_of(past, which, session=self.id)
            old, later = past[place], past[place + 1 :]
            gone[:] = [old]
            if text is not None:
                if old["role"] == DOCUMENT:
                    raise InputError(f"{which!r} is a document: delete it and add the new text")
                later = [dict(check_message({**old, "content": text})), *later]
            elif calls := {call["id"] for call in old.get("tool_calls") or () if call.get("id")}:
                gone.extend(message for message in later if message.get("tool_call_id") in calls)
                later = [message for message in later if message.get("tool_call_id") not in calls]
            return reread(self._memory, head, state, past, place, later, self.extended)

        self.change(change, create=False)
        for found in self.branches():
            if any(message in found.messages for message in gone):
                self._drop(found.name)
        self._memory.store.scrub()

    def _drop(self, name: str) -> None:
        """Let a branch go, and the session's name of it."""

        def change(head: SessionHead, state: BeaconState) -> Changed:
            return replace(head, branches=tuple(number for number in head.branches if str(number) != name)), state, {}

        self.change(change, create=False)
        self.unpart(int(name))

    def newest(self) -> tuple[int, list[dict[str, Any]]]:
        """How many messages stand before the user's newest one, documents counted, and the messages from it on.

        Raises SessionNotFound.
        """

        def read(head: SessionHead) -> tuple[int, list[dict[str, Any]]]:
            for messages in ([dict(m) for m in head.recent], self._memory.messages(head)):
                places = [n for n, message in enumerate(messages) if message["role"] == "user"]
                if places:
                    return head.messages - len(messages) + places[-1], messages[places[-1] :]
            return head.messages, []

        return self._memory.view(self.id, read, at_least=self._at_least)[0]

    def state(self) -> BeaconState:
        """The session's state. Raises SessionNotFound, SegmentMissing, CodecError."""
        return self._memory.view(self.id, self._memory.state, at_least=self._at_least)[0]

    def fork(self, new: str) -> Session:
        """A new session that begins where this one stands; nothing is copied but names. Raises SessionExists, and
        InputError for a name of another kind: a talk does not become documents that others read.
        """
        if kind_of(new) != kind_of(self.id):
            raise InputError(f"{self.id!r} cannot be forked to {new!r}: choose another name")
        self._memory.store.fork(self.id, new)
        self._memory.begin(new, create=True)
        self._memory.let_go(new)
        return Session(self._memory, new, ratio=self._ratio, budget=self._budget, slot_dtype=self._slot_dtype)

    def rewind(self, messages: int) -> None:
        """Go back to the session's first so many messages, documents counted; what came later is forgotten.

        What was folded coarser meanwhile stays coarse. Raises InputError, SessionNotFound.
        """

        def change(head: SessionHead, state: BeaconState) -> Changed:
            past = self._memory.messages(head)
            if type(messages) is not int or not 0 <= messages <= len(past):
                raise InputError(
                    f"session {self.id!r} has {len(past)} messages: rewind to 0 to {len(past)}, not {messages!r:.80}"
                )
            return back(self._memory, head, state, past, messages)

        self.change(change, create=False)
        self._memory.store.scrub()

    def branches(self) -> list[Branch]:
        """The session's other branches, oldest first.

        A message list that differs from what is stored goes on as a new branch. The older one is kept until `checkout`
        goes back to it, the session is forgotten, or the store lets it expire. Raises SessionNotFound.
        """
        head, _ = self._memory.load(self.id, at_least=self._at_least, any_model=True)
        found = []
        for number in head.branches:
            with suppress(SessionNotFound):
                theirs = self._memory.view(branch_name(self.id, number), self._memory.messages, any_model=True)[0]
                found.append(Branch(str(number), tuple(theirs)))
        return found

    def checkout(self, name: str) -> None:
        """Go back to a branch; where the session stands now becomes one in its place. Raises InputError,
        SessionNotFound.
        """

        def once() -> None:
            head, version = self._memory.load(self.id, at_least=self._at_least)
            found = {str(number): number for number in head.branches}
            try:
                theirs = self._memory.load(branch_name(self.id, found[name]))[0]
            except (KeyError, TypeError, SessionNotFound) as exc:
                raise InputError(
                    f"session {self.id!r} has no branch {name!r:.80}: it has {', '.join(found) or 'none'}"
                ) from exc
            parted = self.part(head)
            left = tuple(number for number in parted.branches if number != found[name])
            try:
                self._memory.commit(self.id, replace(theirs, branches=left), {}, expected=version)
            except SessionConflict:
                self.unpart(parted.branches[-1])
                raise
            self.unpart(found[name])

        self._memory.written(self.id, once)

    def refold(self, *, tokenizer: PreTrainedTokenizerBase | None = None, progress: Progress | None = None) -> int:
        """Move the session, with its branches, to this memory's model and adapter, after these have changed: all of it
        is folded again from its messages and its documents' ids. Gives the tokens read, 0 when nothing had to be.

        `tokenizer` is the old model's, where it was another and there are documents. Raises SessionNotFound,
        ModelMismatch without it, SegmentMissing, TranscriptError; then the session stays as it was.
        """
        return refold(self._memory, self.id, tokenizer=tokenizer, progress=progress)

    def export(self, path: str | Path) -> None:
        """The whole session in one file, for `BeaconMemory.import_session`. Raises SessionNotFound, InputError."""
        stored, _ = self._memory.store.load(self.id)
        write_archive(path, Exported(self.id, stored.body, dict(self._memory.read(stored.digests))))

    def forget(self) -> list[str]:
        """Remove the session, and every byte that no other session names, from the store and from this process; gives
        what is left to do before no file holds them, in sentences (docs/security.md). Raises SessionNotFound.
        """
        branches: tuple[int, ...] = ()
        with suppress(BeaconError):  # what cannot be read can be forgotten
            branches = SessionHead.from_bytes(self._memory.store.load(self.id)[0].body).branches
        left = self._memory.forget(self.id)
        for number in branches:
            self.unpart(number)
        return self._memory.store.scrub() if branches else left
