"""Answers: the only place that asks the model for one, alone or in a batch, and writes a turn to its session."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from beacon_memory.config import check_recall
from beacon_memory.errors import InputError, SegmentMissing, SessionConflict, SessionRolledBack
from beacon_memory.models.generation import Answer, Pieces, Sampling
from beacon_memory.models.running.elsewhere import together
from beacon_memory.models.running.stream import Stream
from beacon_memory.sessions.looking.again import look_again
from beacon_memory.sessions.looking.source import context_origins, origins_of
from beacon_memory.sessions.prompt import Prompt, behind, context_state, fitted, make_prompt
from beacon_memory.sessions.rewind import branch
from beacon_memory.sessions.stored import StoredSession
from beacon_memory.state.head import DOCUMENT, SessionHead
from beacon_memory.state.info import Usage as Usage
from beacon_memory.state.source import Origin, Source
from beacon_memory.state.state import BeaconState, Segment
from beacon_memory.talk.history import History, Match, all_new, match
from beacon_memory.talk.structured import Grammar
from beacon_memory.talk.tools import Tool

if TYPE_CHECKING:
    from threading import Event

    from beacon_memory.sessions.repository import Repository

Message = Mapping[str, Any]
Remember = Callable[[str], "Message | None"]
About = Callable[[Answer, "Usage"], Mapping[str, Any]]


class Turn(Pieces):
    """An answer to a message list, in pieces; when it is whole, the session has moved, and `answer` and `usage` are
    there. A turn that fails, or is closed before its end, leaves the session where it was.

    >>> from beacon_memory import BeaconMemory
    >>> from beacon_memory.testing import tiny_model
    >>> memory = BeaconMemory.open(tiny_model())
    >>> turn = Turn(memory, [{"role": "user", "content": "Hi"}], session=memory.session("ada"), max_new_tokens=4)
    >>> said = "".join(turn)
    >>> turn.usage.answer
    4
    """

    def __init__(
        self,
        memory: Repository,
        messages: Sequence[Message],
        *,
        session: StoredSession | None = None,
        history: History = "auto",
        contexts: Sequence[str | BeaconState] = (),
        system: str | None = None,
        tools: Sequence[Tool] = (),
        keep: int | None = None,
        raw: int = 0,
        behind: int | None = None,
        close: int = 0,
        remember: Remember | None = None,
        about: About | None = None,
        recall_tokens: int | None = None,
        **sampling: Any,
    ) -> None:
        """Nothing is read before the first piece is asked for.

        `history` says what `messages` are to the session (see `history.match`). `contexts` are sessions whose documents
        stand in front, or states. With `keep`, the newest so many messages stay raw and are not remembered, nor is the
        answer: they come again with the next turn. The newest `raw` messages stay raw for this answer, and are folded
        once it is whole. With `behind` nothing is remembered at all: `messages` stand behind the session's first so
        many messages, documents counted, whatever it holds later. The first `close` messages are folded to their end,
        however short they are, but for what is asked last. `remember` makes the message of the answer's text, or None;
        what `about` gives is kept as more fields of the newest message that is written. Without a session nothing is
        remembered; what does not fit raw is folded for this turn alone. `recall_tokens` and `sampling` are as for
        `Session.ask`. Raises InputError, ConfigError; when read, PromptTooLong, BudgetExceeded, StoreError.
        """
        self._memory = memory
        self._messages = memory.transcript.read(messages)
        self._session = session
        self._history: History = history
        self._contexts = tuple(contexts)
        self._system, self._tools = system, tuple(tools)
        self._keep, self._raw, self._behind, self._close = keep, raw, behind, close
        self._remember, self._about = remember or _plain, about
        self._recall = memory.recall_tokens if recall_tokens is None else check_recall(recall_tokens)
        self._sampling = sampling
        Sampling.of(sampling)
        self._found: set[str] = set()  # segments that were folded before, by whomever
        self._begun: list[_Begun] = []
        self._whole: list[tuple[Answer, Usage]] = []
        # The generator knows a twin of this object: a turn that is dropped is closed at once.
        self._pieces = copy(self)._read()

    @property
    def answer(self) -> Answer | None:
        """The answer, once it is whole."""
        return self._whole[0][0] if self._whole else None

    @property
    def usage(self) -> Usage | None:
        """What the turn took, once it is over."""
        return self._whole[0][1] if self._whole else None

    @property
    def sources(self) -> tuple[Source, ...]:
        """The passages that were read again for the answer, the best first, once the prompt is made."""
        return self._begun[0].prompt.sources if self._begun else ()

    def begin(self) -> None:
        """Read the session and make the prompt now, not at the first piece. Raises what reading raises."""
        if not self._begun:
            self._begun.append(self._begin())

    def _read(self) -> Generator[str, None, None]:
        self.begin()
        begun = self._begun[0]
        try:
            yield from begun.stream
        finally:
            begun.stream.close()
        answer = begun.stream.answer
        assert answer is not None
        if self._writes and self._session is not None:
            with self._memory.turn(self._session.id):
                self._commit(begun, answer)
        self._whole.append((answer, self._usage(begun, answer)))

    def _begin(self) -> _Begun:
        head, before, version, past = self._opened()
        talk = [message for message in past if message["role"] != DOCUMENT]
        found = self._matched(head, past, talk)
        opened, pages = head, dict[str, bytes]()
        forked = found.kept < len(talk)
        if forked:
            head, before, pages = branch(self._memory, head, before, past, found.kept)
        said = [*(self._messages[n] for n in found.late), *self._messages[found.known :]]
        if not (before.tokens or said):
            raise InputError("no message to answer")
        context, answer = context_state(self._memory, self._contexts), Sampling.of(self._sampling).max_new_tokens
        raw = min(self._raw if self._keep is None else self._keep, len(said))
        new, state, prompt = self._read_up(head, before, said, raw, context=context)
        if raw and self._keep is None and prompt.slots + len(prompt.ids) + answer > self._memory.model.positions:
            raw = 0
            new, state, prompt = self._read_up(head, before, said, raw, context=context)
        asked = said[len(said) - raw :]
        prompt = look_again(self._memory, prompt, since=self._since(), recall_tokens=self._recall, answer=answer)
        stream = stream_answer(self._memory, prompt, **self._sampling)
        later = asked if self._keep is None else []
        return _Begun(opened, head, before, state, version, pages, forked, new, later, context, prompt, stream)

    def _read_up(
        self, head: SessionHead, before: BeaconState, said: Sequence[Message], raw: int, *, context: BeaconState
    ) -> tuple[Sequence[Message], BeaconState, Prompt]:
        """The messages that are folded before the answer, the session after them, and the prompt with `raw` behind."""
        transcript = self._memory.transcript
        new, asked = said[: len(said) - raw], said[len(said) - raw :]
        known = len(self._messages) - len(said)
        closing = min(len(new), max(0, min(self._close, len(self._messages) - 1) - known))
        closed, ids = ([i for m in part for i in transcript.turn(m)] for part in (new[:closing], new[closing:]))
        if not before.tokens:
            closed, ids = (transcript.opened(closed), ids) if closed else (closed, transcript.opened(ids))
        state, prompt = self._folded(head, before, closed, ids, context=context, asked=asked, new=new)
        return new, state, fitted(self._memory, prompt, answer=Sampling.of(self._sampling).max_new_tokens)

    def _since(self) -> Sequence[Message]:
        """The messages from the user's newest on; none where the user said nothing."""
        users = [n for n, message in enumerate(self._messages) if message["role"] == "user"]
        return self._messages[users[-1] :] if users else ()

    def _usage(self, begun: _Begun, answer: Answer) -> Usage:
        state, before, prompt = begun.state, begun.before, begun.prompt
        folded = sum(len(s.ids) for s in state.segments)
        # Its segments may have been folded again, coarser; what was read is still what stood there before.
        known = sum(len(s.ids) for s in before.segments)
        known += sum(len(s.ids) for s in state.segments[len(before.segments) :] if s.digest in self._found)
        return Usage(
            tokens=prompt.tokens,
            read=known + sum(len(s.ids) for s in begun.context.segments),
            folded=folded - known,
            answer=answer.tokens,
            slots=prompt.slots,
            prefill=len(prompt.ids),
            ratio=begun.head.ratio,
        )

    @property
    def _writes(self) -> bool:
        return self._session is not None and self._behind is None

    def _matched(self, head: SessionHead, past: Sequence[Message], talk: Sequence[Message]) -> Match:
        """Where the messages meet the session."""
        if self._behind is None:
            return match(talk, self._messages, self._history)
        assert self._session is not None
        if self._behind > head.messages:
            raise SessionConflict(
                f"session {self._session.id!r} had {self._behind} messages and has {head.messages} now: it went back "
                f"while it was read; read it again"
            )
        if self._behind == head.messages:
            return Match(len(talk), 0)
        later = [message for message in past[self._behind :] if message["role"] != DOCUMENT]
        known = match(later, self._messages, "full").known
        # What stands there now is said otherwise here: the whole of it is left out, not its end alone.
        return Match(len(talk), known) if known == len(later) else Match(len(talk) - len(later), 0)

    def _opened(self) -> tuple[SessionHead, BeaconState, int, list[dict[str, Any]]]:
        """The session as it stands, with its transcript where that is needed; an empty one for none."""
        memory, model = self._memory, self._memory.model
        if self._session is None:
            return SessionHead(fingerprint=model.fingerprint, ratio=model.config.ratio), BeaconState(), 0, []
        while True:
            head, state, version = self._session.opened()
            if not version or not self._looks_back(head):
                return head, state, version, []
            try:
                return head, state, version, memory.messages(head)
            except SegmentMissing:  # pages that another writer dropped meanwhile, when the session has moved
                if memory.store.version(self._session.id) == version:
                    raise

    def _looks_back(self, head: SessionHead) -> bool:
        """Whether what was said before has to be known."""
        if self._behind is not None:
            return self._behind != head.messages
        return not all_new(self._messages, self._history)

    def _folded(
        self,
        head: SessionHead,
        before: BeaconState,
        closed: Sequence[int],
        ids: Sequence[int],
        *,
        context: BeaconState,
        asked: Sequence[Message],
        new: Sequence[Message],
    ) -> tuple[BeaconState, Prompt]:
        """The session after `closed` and `ids`, which are those of the `new` messages, and the prompt behind it."""
        memory, model = self._memory, self._memory.model
        about: dict[str, Any] = {"asked": asked, "system": self._system, "tools": self._tools}
        about["newest"] = new[-1] if new else None
        about["resident"] = self._resident_names()
        state = before
        if closed:
            state = self._compressed(closed, state, head, close=True, known=self._known)
            memory.keep(state.segments)
        if not self._writes or memory.elsewhere:  # what is read elsewhere is folded later
            whole = replace(state, tail=(*state.tail, *ids))
            segments = behind(memory, context.segments, state.segments, slot_dtype=head.slot_dtype)
            about["origins"] = self._origins(head, whole, new)
            prompt = make_prompt(memory, whole, segments=segments, opens=head.unfolded and not closed, **about)
            room = memory.positions - Sampling.of(self._sampling).max_new_tokens
            if prompt.slots + len(prompt.ids) <= room:
                return whole, prompt  # it fits as it is
        state = self._compressed(ids, state, head, known=self._known)
        memory.keep(state.segments)
        segments = behind(memory, context.segments, state.segments, slot_dtype=head.slot_dtype)
        if context.slots and state.segments:
            how: dict[str, Any] = {"known": self._known, "slot_dtype": head.slot_dtype}
            segments = tuple(model.fit(segments, budget=max(model.budget, context.slots), **how))
            memory.keep(segments)
        opens = head.unfolded and len(state.segments) == len(head.entries)
        about["origins"] = self._origins(head, state, new)
        return state, make_prompt(memory, state, segments=segments, opens=opens, **about)

    def _origins(self, head: SessionHead, state: BeaconState, new: Sequence[Message]) -> list[Origin | None]:
        """What stands in front was folded from: the contexts, then the session, whose newest messages are not in it."""
        session = None if self._session is None else self._session.id
        own = origins_of(session, head, len(state.segments), later=new)
        return [*context_origins(self._memory, self._contexts), *own]

    def _resident_names(self) -> list[str]:
        """What stands in front, by names under which the last turn may have left it on the device."""
        names = [one if isinstance(one, str) else one.digest for one in self._contexts]
        return names + ([] if self._session is None else [self._session.resident])

    def _compressed(self, ids: Sequence[int], state: BeaconState, head: SessionHead, **how: Any) -> BeaconState:
        """The session's state after these ids."""
        names = [] if self._contexts else self._resident_names()
        resident = self._memory.resident(*names) if names else None
        how |= {"ratio": head.ratio, "budget": head.budget, "slot_dtype": head.slot_dtype, "resident": resident}
        state = self._memory.model.compress(ids, state, **how)
        if resident is not None:
            resident.release(resident)
        return state

    def _known(self, digest: str) -> Segment | None:
        if (segment := self._memory.known(digest)) is not None:
            self._found.add(digest)
        return segment

    def _spoken(self, text: str) -> str:
        """The answer without its thoughts. What a grammar holds to calls or JSON has none."""
        held = self._sampling.get("constraint")
        free = not isinstance(held, Grammar) or bool(held.marker)
        return self._memory.transcript.spoken(text) if free else text

    def _commit(self, begun: _Begun, given: Answer) -> None:
        """Write the turn: what was folded, what was read raw, and the answer."""
        assert self._session is not None
        answer = self._remember(self._spoken(given.text)) if self._keep is None else None
        late = [*begun.later, *([answer] if answer else [])]
        said, state, head = [*begun.new, *late], begun.state, begun.head
        if not said and not begun.forked:
            return
        if late:
            transcript = self._memory.transcript
            ids = [i for message in late for i in transcript.turn(message)]
            # What is appended was not folded before: nothing is looked for.
            known = None if self._history == "append" else self._memory.known
            ids = ids if state.tokens else transcript.opened(ids)
            if self._memory.elsewhere:
                state = replace(state, tail=(*state.tail, *ids))
            else:
                state = self._compressed(ids, state, head, known=known)
        if self._about is not None and said:
            said[-1] = {**said[-1], **self._about(given, self._usage(begun, given))}
        if parts := begun.forked and self._history == "auto":
            head = replace(head, branches=self._session.part(begun.opened).branches)
        changed, more = head.with_state(state).with_messages(said)
        try:
            self._session.write(begun.opened, changed, state, begun.pages | more, expected=begun.version)
            self._session.put_on_queue(changed)
        except SessionConflict:
            if not said or (begun.forked and not parts):
                raise
            if parts:
                self._session.unpart(head.branches[-1])
                said = said[max(n for n, m in enumerate([{"role": "user"}, *said]) if m["role"] == "user") - 1 :]
            # Another writer was faster: what was said here comes behind, unless the session was forgotten meanwhile.
            try:
                self._session.behind(begun.version).append(said)
            except SessionRolledBack:
                self._memory.let_go(self._session.id, state.segments)
                raise


@dataclass(frozen=True)
class _Begun:
    """A turn whose answer is on its way."""

    opened: SessionHead  # the session as it was found, at `version`
    head: SessionHead  # the same, gone back to where the messages part from it
    before: BeaconState  # its state
    state: BeaconState  # and what it is after `new`
    version: int
    pages: dict[str, bytes]
    forked: bool
    new: Sequence[Message]  # folded before the answer
    later: Sequence[Message]  # read raw, and folded behind it
    context: BeaconState  # the documents in front
    prompt: Prompt
    stream: Stream


def stream_answer(memory: Repository, prompt: Prompt, **sampling: Any) -> Stream:
    """The answer to a prompt, in pieces as they come. Raises ConfigError, PromptTooLong."""
    sampling |= {"stop": prompt.stops(sampling.get("stop"))}
    prompt = fitted(memory, prompt, answer=Sampling.of(sampling).max_new_tokens)
    if memory.elsewhere is not None:
        return memory.elsewhere.stream(prompt.ids, prompt.segments, named=prompt.resident, **sampling)
    resident = memory.resident(*prompt.resident) if prompt.resident else None
    return memory.model.stream(list(prompt.ids), prompt.state, resident=resident, **sampling)


def batch_answers(
    memory: Repository, prompts: Sequence[Prompt], *, left: Sequence[Event] | None = None, **sampling: Any
) -> list[Answer]:
    """The answers to prompts of one kind in one batch; an event of `left`, one for each, ends its answer where it is.

    Raises ConfigError, PromptTooLong.
    """
    sampling |= {"stop": prompts[0].stops(sampling.get("stop"))}
    prompts = [fitted(memory, prompt, answer=Sampling.of(sampling).max_new_tokens) for prompt in prompts]
    if memory.elsewhere is not None:
        return together([stream_answer(memory, prompt, **sampling) for prompt in prompts], left)
    residents = [memory.resident(*prompt.resident) if prompt.resident else None for prompt in prompts]
    ids, states = [list(prompt.ids) for prompt in prompts], [prompt.state for prompt in prompts]
    return memory.model.answers(ids, states, residents=residents, left=left, **sampling)


def _plain(text: str) -> Message | None:
    return {"role": "assistant", "content": text.strip()} if text.strip() else None
