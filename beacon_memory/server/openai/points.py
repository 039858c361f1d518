"""Where responses are kept: each is a session of its own that begins where the one before it ended, or a place in a
conversation's session. What OpenAI's clients ask of a response again stands beside its last message.
"""

from __future__ import annotations

import re
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any, Self

from pydantic import BaseModel

from beacon_memory.errors import InputError, SegmentMissing, SessionNotFound
from beacon_memory.server.errors import Refused
from beacon_memory.server.openai.items import answer_items, calls_in, compaction_item, core_of, items_of, system_items
from beacon_memory.server.openai.once import asked_by, in_use
from beacon_memory.sessions.memory import BeaconMemory
from beacon_memory.sessions.repository import Repository
from beacon_memory.sessions.rewind import Changed, back
from beacon_memory.sessions.stored import StoredSession, check_talk
from beacon_memory.state.head import OWN, SessionHead, read_note, write_note
from beacon_memory.state.state import BeaconState

PREVIOUS = "previous_response_id"
COMPACTED = "response.compaction"  # the kind of object that a compaction is
RECORD = "response"  # the field of a message that says which response ended with it
_RESPONSE = re.compile(r"resp_([0-9a-f]{32})(?:-([A-Za-z0-9_-]{1,2800}))?")
Note = Callable[[dict[str, Any]], dict[str, Any]]
Said = Callable[[Mapping[str, Any]], bool]


class Record(BaseModel):
    """What a message says, in `RECORD`, of the response that ended with it, beside what is told of that."""

    id: str
    object: str
    given: list[str]
    told: list[str]
    folded: str | None = None


@dataclass(frozen=True)
class Point:
    """A response, and where in its session's transcript it ended."""

    session: str
    record: Mapping[str, Any]
    place: int
    messages: Sequence[Mapping[str, Any]]  # from some place on, up to that of the response
    system: tuple[str, ...]  # what system and developer items said, up to here
    newest: bool  # whether nothing stands behind it

    @property
    def chain(self) -> str:
        """The name of the responses that follow each other, of which this is one."""
        return str(self.record.get("chain") or self.session)

    @property
    def response(self) -> dict[str, Any]:
        """The response as OpenAI's clients read it."""
        message, core = self.messages[-1], str(self.record["id"])[5:37]
        hidden = ("given", "told", "folded", "chain", "asked")
        told = {name: value for name, value in self.record.items() if name not in hidden}
        if told["object"] == COMPACTED:
            return {**told, "output": [compaction_item(told["id"])]}
        answered = message["role"] == "assistant" and core_of(message) == core
        output = items_of(message) if answered else answer_items(core, "", [])
        return {**told, "output": output}

    def input_items(self) -> list[dict[str, Any]]:
        """What was said in the request, oldest first. What was deleted since is left out."""
        given, told = set(self.record["given"]), system_items(self.record["told"])
        told += [compaction_item(folded)] if (folded := self.record.get("folded")) else []
        said = [items_of(message) for message in self.messages if message.get("id") in given]
        return told + [item for items in said for item in items]


def response_id(core: str, conversation: str | None) -> str:
    """The id of a response whose answer has these digits; one in a conversation names it."""
    if conversation is None:
        return f"resp_{core}"
    return f"resp_{core}-{urlsafe_b64encode(conversation.encode()).decode().rstrip('=')}"


def session_of(response: str) -> str | None:
    """The session that a response's id names, or None for what is no such id.

    >>> session_of(response_id("0" * 32, "ada")), session_of("resp_1")
    ('ada', None)
    """
    if (found := _RESPONSE.fullmatch(response)) is None:
        return None
    if found[2] is None:
        return response
    try:
        return check_talk(urlsafe_b64decode(found[2] + "=" * (-len(found[2]) % 4)).decode())
    except (ValueError, InputError):
        return None


def find(memory: Repository, response: str, *, param: str | None = None, whole: bool = False) -> Point:
    """A response by its id; with `whole`, all that was said before it. Raises Refused (404) for none."""

    if session := session_of(response):
        with suppress(SessionNotFound):
            if point := memory.view(session, lambda head: _found(memory, response, head, whole), any_model=True)[0]:
                return replace(point, session=session)
    raise _none(response, param)


def _none(response: str, param: str | None) -> Refused:
    codes = {PREVIOUS: "previous_response_not_found", "input": "compaction_not_found"}
    return Refused(
        404, f"there is no response {response!r:.100}", code=codes.get(param or "", "response_not_found"), param=param
    )


def _found(memory: Repository, response: str, head: SessionHead, whole: bool = False) -> Point | None:
    """The response, if it ended within a session."""
    recent = None if whole and head.pages else _point(memory, response, head, head.recent)
    return recent or _point(memory, response, head, memory.messages(head))


def _point(memory: Repository, response: str, head: SessionHead, messages: Sequence[Mapping[str, Any]]) -> Point | None:
    """The same, within a session's newest messages."""
    for n in reversed(range(len(messages))):
        record = asked_by(messages[n], RECORD, Record)
        if record.get("id") == response:
            place = head.messages - len(messages) + n
            system = tuple(own(memory, head).get("system", ()))
            return Point("", record, place, messages[: n + 1], system, newest=n == len(messages) - 1)
    return None


def bare(message: Mapping[str, Any]) -> dict[str, Any]:
    """A message without what it says of the response that ended with it."""
    return {name: value for name, value in message.items() if name != RECORD}


def own(memory: Repository, head: SessionHead) -> dict[str, Any]:
    """What is kept beside a session itself."""
    if (digest := head.notes.get(OWN)) is None:
        return {}
    return read_note(memory.store.read([digest])[0], digest)


def noted(memory: Repository, head: SessionHead, note: Note) -> tuple[SessionHead, dict[str, bytes]]:
    """The head with what `note` makes of what is kept beside the session, and the bytes of that."""
    digest, blob = write_note(note(own(memory, head)))
    return replace(head, notes={**head.notes, OWN: digest}), {digest: blob}


@contextmanager
def known(name: str, *, param: str | None = None) -> Iterator[None]:
    """Within it, a session that is not there, or cannot be, is a conversation that is not found (404)."""
    try:
        check_talk(name)
        yield
    except SessionNotFound:
        pass
    except InputError:
        with suppress(InputError):
            check_talk(name)
            raise
    else:
        return
    raise Refused(404, f"there is no conversation {name!r:.100}", code="conversation_not_found", param=param)


def conversation(memory: Repository, name: str, *, calls: bool) -> tuple[tuple[str, ...], set[str], int]:
    """What system items said in a conversation, the ids of its calls if they are needed, and its length. Raises
    Refused.
    """

    def read(head: SessionHead) -> tuple[tuple[str, ...], set[str], int]:
        system = tuple(own(memory, head).get("system", ()))
        return system, calls_in(memory.messages(head)) if calls else set(), head.messages

    with known(name, param="conversation"):
        return memory.view(name, read)[0]


def said_in(memory: Repository, head: SessionHead, said: Said) -> Mapping[str, Any] | None:
    """The newest message of a session that is meant, or None."""
    recent = next(filter(said, reversed(head.recent)), None)
    if recent is not None or not head.pages:
        return recent
    return next(filter(said, reversed(memory.messages(head))), None)


class Kept(StoredSession):
    """A session whose own note is changed with each write of a turn, and in which a message is said once."""

    def __init__(
        self, memory: Repository, session_id: str, *, note: Note | None = None, once: Said | None = None, **options: Any
    ) -> None:
        """`once` says whether a message is what is written now: then that was done by another request meanwhile."""
        super().__init__(memory, session_id, **options)
        self._note, self._once = note, once

    def opened(self) -> tuple[SessionHead, BeaconState, int]:
        head, state, version = super().opened()
        if self._once is not None and said_in(self._memory, head, self._once) is not None:
            raise in_use()
        return head, state, version

    def write(
        self, head: SessionHead, changed: SessionHead, after: BeaconState, pages: dict[str, bytes], *, expected: int
    ) -> None:
        if self._note is not None:
            changed, blob = noted(self._memory, changed, self._note)
            pages = pages | blob
        super().write(head, changed, after, pages, expected=expected)


class Following(Kept):
    """A new session that begins where a response ended, or with nothing. It is there once it is written."""

    def __init__(self, memory: Repository, session_id: str, *, of: Point | None, **options: Any) -> None:
        super().__init__(memory, session_id, **options)
        self._of = of
        self._pages: dict[str, bytes] = {}

    @property
    def resident(self) -> str:
        return self.id if self._of is None else self._of.chain

    def opened(self) -> tuple[SessionHead, BeaconState, int]:
        if self._of is None:
            return self.settled(None), BeaconState(), 0
        head, state, self._pages = self._begun(self._of)
        return self.settled(head), state, 0

    def _begun(self, of: Point) -> Changed:
        """Head and state at the response, which may have been followed by others. Raises Refused."""
        memory, response, pages = self._memory, str(of.record["id"]), dict[str, bytes]()

        def read(head: SessionHead) -> tuple[Point | None, BeaconState]:
            return _found(memory, response, head), memory.state(head)

        try:
            (now, state), head, _ = memory.view(of.session, read)
        except SessionNotFound:
            now = None
        if now is None:
            raise _none(response, PREVIOUS)
        if not now.newest:
            head, state, pages = back(memory, head, state, memory.messages(head), now.place + 1)
        # What older responses were asked with is told by their own sessions.
        return replace(head, branches=(), recent=tuple(map(bare, head.recent))), state, pages

    def write(
        self, head: SessionHead, changed: SessionHead, after: BeaconState, pages: dict[str, bytes], *, expected: int
    ) -> None:
        try:
            super().write(head, changed, after, self._pages | pages, expected=expected)
        except SegmentMissing:
            if self._of is not None and not self._memory.store.version(self._of.session):
                raise _none(str(self._of.record["id"]), PREVIOUS) from None
            raise

    def behind(self, version: int) -> Self:
        raise in_use()


def drop(memory: BeaconMemory, response: str) -> None:
    """Delete a response: with its session, or where it was said in a conversation, alone; what was said stays there.

    Raises Refused (404) for none.
    """
    point = find(memory, response)
    if point.session == response:
        memory.session(response, create=False).forget()
        memory.let_go(point.chain)
        return

    def change(head: SessionHead, state: BeaconState) -> Changed:
        past = [
            bare(message) if asked_by(message, RECORD, Record).get("id") == response else message
            for message in memory.messages(head)
        ]
        changed, pages = replace(head, pages=(), recent=()).with_messages(list(past))
        return changed, state, pages

    memory.session(point.session).change(change, create=False)
