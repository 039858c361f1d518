"""A session in its store: read at its newest version, changed, and written as the next one."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextlib import suppress
from copy import copy
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Self, TypedDict

from beacon_memory.config import check_ratio
from beacon_memory.errors import ConfigError, InputError, SessionExists, SessionNotFound, StoreError
from beacon_memory.sessions.rewind import Changed, branch
from beacon_memory.state.budget import check_room, full_windows
from beacon_memory.state.codec import encode_segment
from beacon_memory.state.head import DOCUMENT, SessionHead
from beacon_memory.state.state import BeaconState
from beacon_memory.stores.base import check_session, not_found
from beacon_memory.stores.names import CONTEXT as CONTEXT
from beacon_memory.stores.names import branch_name as branch_name
from beacon_memory.stores.names import check_talk as check_talk
from beacon_memory.stores.names import context_name as context_name
from beacon_memory.stores.names import fold_name
from beacon_memory.stores.names import kind_of as kind_of
from beacon_memory.talk.history import match

if TYPE_CHECKING:
    from beacon_memory.sessions.repository import Repository
    from beacon_memory.talk.messages import Message

logger = logging.getLogger(__name__)

Progress = Callable[[int], None]
WINDOWS = 4  # that are folded before the head is moved
Change = Callable[[SessionHead, BeaconState], Changed]


class SessionOptions(TypedDict, total=False):
    """How a session is opened, as `BeaconMemory.session` says."""

    ratio: int | None
    budget: int | None
    slot_dtype: str | None
    at_least: int
    create: bool | None


class StoredSession:
    """A session's id, and how it is folded from now on. It holds nothing else: every call reads the newest version."""

    def __init__(
        self,
        memory: Repository,
        session_id: str,
        *,
        ratio: int | None = None,
        budget: int | None = None,
        slot_dtype: str | None = None,
        at_least: int = 0,
        create: bool | None = None,
    ) -> None:
        self.id = check_session(session_id)
        self._at_least, self._create = at_least, create
        self._memory = memory
        config = memory.model.config
        self._slot_dtype = None if slot_dtype is None else config.replace(slot_dtype=slot_dtype).slot_dtype
        self._ratio = None if ratio is None else check_ratio(ratio, config.window)
        if type(at_least) is not int or at_least < 0:
            raise InputError(f"at_least is a version that info() gave, not {at_least!r:.80}")
        if budget is not None and (type(budget) is not int or not config.sink < budget <= memory.model.budget):
            raise ConfigError(
                f"budget is {config.sink + 1} to {memory.model.budget} slots for this model, not {budget!r}"
            )
        self._budget = budget

    @property
    def resident(self) -> str:
        """The name under which the next turn finds what a turn has left on the device."""
        return self.id

    def opened(self) -> tuple[SessionHead, BeaconState, int]:
        """The session's head, state and version; those of a new one, at version 0, when there is none."""
        try:
            state, head, version = self._memory.view(self.id, self._memory.state, at_least=self._at_least)
        except SessionNotFound:
            self._memory.begin(self.id, create=self._create)
            return self.settled(None), BeaconState(), 0
        return self.settled(head), state, version

    def _head(self) -> tuple[SessionHead | None, int]:
        """The session's head and version without its segments; None and 0 when there is none."""
        try:
            return self._memory.load(self.id, at_least=self._at_least)
        except SessionNotFound:
            self._memory.begin(self.id, create=self._create)
            return None, 0

    def behind(self, version: int) -> Self:
        """The same session, as long as it descends from this version; 0 asks for nothing."""
        pinned = copy(self)
        pinned._at_least = version or self._at_least
        return pinned

    def settled(self, head: SessionHead | None) -> SessionHead:
        """The head, or a new one, with the settings that this session was opened with."""
        model = self._memory.model
        head = head or SessionHead(fingerprint=model.fingerprint, ratio=model.config.ratio)
        return replace(
            head,
            ratio=self._ratio or head.ratio,
            budget=self._budget or head.budget,
            slot_dtype=self._slot_dtype or head.slot_dtype,
        )

    def write(
        self, head: SessionHead, changed: SessionHead, after: BeaconState, pages: dict[str, bytes], *, expected: int
    ) -> None:
        """Move the session from `head`, at version `expected`, to `changed`. Raises SessionConflict."""
        named = {entry.blob for entry in head.entries}
        new = [segment for segment in after.segments if segment.name not in named]
        model = self._memory.model
        config = model.config.replace(slot_dtype=changed.slot_dtype or model.config.slot_dtype)
        folded = {s.name: encode_segment(s, fingerprint=model.fingerprint, config=config) for s in new}
        self._memory.keep(new)
        self._memory.commit(self.id, changed.where(head, folded), pages | folded, expected=expected)

    def part(self, head: SessionHead) -> SessionHead:
        """Keep the session as it is now as a branch; returns the head with that branch added."""
        number = max(head.branches, default=0) + 1
        while True:
            try:
                self._memory.store.fork(self.id, branch_name(self.id, number))
                return replace(head, branches=(*head.branches, number))
            except SessionExists:
                number += 1

    def unpart(self, number: int) -> None:
        """Remove a branch, if it is still there."""
        with suppress(SessionNotFound):
            self._memory.forget(branch_name(self.id, number))

    def change(self, change: Change, *, create: bool = True) -> None:
        """Replace the head by what `change` makes of it; it is called again when another writer was faster.

        Writers wait their turn for half a minute, then the last SessionConflict is raised. Raises SessionNotFound where
        there is no session and none is to be made.
        """

        def once() -> None:
            head, state, version = self.opened()
            if not version and not create:
                raise not_found(self.id)
            changed, after, pages = change(head, state)
            if not version or changed != head:
                self.write(head, changed, after, pages, expected=version)

        self._memory.written(self.id, once)

    def replace_talk(self, messages: Sequence[Message]) -> None:
        """Make these messages all that was said. What agrees from the start on stays as it is, what differs from there
        on is forgotten; documents stay.
        """

        def change(head: SessionHead, state: BeaconState) -> Changed:
            past, pages = self._memory.messages(head), dict[str, bytes]()
            talk = [message for message in past if message["role"] != DOCUMENT]
            found = match(talk, messages, "full")
            if found.kept < len(talk):
                head, state, pages = branch(self._memory, head, state, past, found.kept)
            head, state, more = self.extended(head, state, messages[found.known :])
            return head, state, pages | more

        self.change(change)

    def append(self, messages: Sequence[Message], *, fold: bool = True, progress: Progress | None = None) -> None:
        """Remember messages behind all that is stored; without `fold`, or where answers are made elsewhere, they stay
        raw, and no segment is read.
        """
        if fold and not self._memory.elsewhere:
            self.change(lambda head, state: self.extended(head, state, messages, progress=progress))
        else:
            self.put_on_queue(self._memory.written(self.id, lambda: self._noted(messages)))

    def _noted(self, messages: Sequence[Message]) -> SessionHead:
        """Write messages behind all that is stored, raw; gives the head that was written."""
        model, transcript = self._memory.model, self._memory.transcript
        head, version = self._head()
        head = self.settled(head)
        ids = [i for message in messages for i in transcript.turn(message)]
        tail = (*head.tail, *(ids if head.entries or head.tail else transcript.opened(ids)))
        folded = [(entry.tokens, 0) for entry in head.entries]
        check_room(len(tail), folded, head.budget or model.budget, model.config)
        changed, pages = replace(head, tail=tail).with_messages(list(messages))
        self._memory.commit(self.id, changed, pages, expected=version)
        return changed

    def put_on_queue(self, head: SessionHead) -> None:
        """Have the full windows that stand raw in this head, if any, folded by a worker, where the store has a queue.
        They are written already: whatever goes wrong here, the next turn puts the session on the queue again.
        """
        if not full_windows(len(head.tail), first=not head.entries, config=self._memory.model.config):
            return
        try:
            if (queue := self._memory.store.queue()) is not None:
                queue.put(self.id)
        except StoreError as exc:
            logger.warning("session %r waits for its next turn to be folded: %s", self.id, exc)

    def fold(self, *, windows: int = WINDOWS) -> int:
        """Fold full windows that stand raw, at most so many; gives the number of tokens folded, 0 when none are left.

        The model works before it is this writer's turn, so nobody who adds something waits for it: what was added
        meanwhile stays behind what is folded. Folding later, in any steps, gives the segments that folding at once
        gives, bit for bit. Raises SessionNotFound, BudgetExceeded.
        """
        if type(windows) is not int or windows < 1:
            raise InputError(f"windows is a number of windows, 1 or more, not {windows!r:.80}")

        def found() -> tuple[SessionHead, BeaconState, int, BeaconState]:
            head, state, version = self.opened()
            if not version:
                raise not_found(self.id)
            return head, state, version, self._step(head, state, windows)

        def once() -> int:
            head, state, version, after = found()
            if after.segments == state.segments:
                return 0
            self.write(head, head.with_state(after), after, {}, expected=version)
            return len(state.tail) - len(after.tail)

        with self._memory.turn(fold_name(self.id)):  # no two fold the same
            _, state, _, after = found()
            return 0 if after.segments == state.segments else self._memory.written(self.id, once)

    def _step(self, head: SessionHead, state: BeaconState, windows: int) -> BeaconState:
        """The state with so many more windows folded. What was folded a moment ago is on hand."""
        model = self._memory.model
        config = model.config
        size = (0 if state.segments else config.sink) + windows * config.window + config.keep_last
        if not full_windows(len(state.tail), first=not state.segments, config=config):
            return state
        resident = self._memory.resident(self.id)
        how: dict[str, Any] = {"known": self._memory.known, "slot_dtype": head.slot_dtype, "resident": resident}
        ready = replace(state, tail=state.tail[:size])
        after = model.compress([], ready, ratio=head.ratio, budget=head.budget, **how)
        resident.release(resident)
        self._memory.keep(after.segments)
        return replace(after, tail=(*after.tail, *state.tail[size:]))

    def extended(
        self,
        head: SessionHead,
        state: BeaconState,
        messages: Sequence[Message],
        *,
        close: bool = False,
        progress: Progress | None = None,
    ) -> Changed:
        """Head and state with messages behind them, and the pages that became full; `close` leaves nothing raw."""
        model, transcript = self._memory.model, self._memory.transcript
        ids = [i for message in messages for i in transcript.turn(message)]
        resident = self._memory.resident(self.id)
        how: dict[str, Any] = {"slot_dtype": head.slot_dtype, "progress": progress, "resident": resident}
        ids = transcript.opened(ids) if ids and not state.tokens else ids
        state = model.compress(ids, state, ratio=head.ratio, budget=head.budget, close=close, **how)
        resident.release(resident)
        noted, pages = head.with_state(state).with_messages(list(messages))
        return noted, state, pages
