"""Generated callers of a chat model: whatever list they send, nothing is forgotten, and nothing doubled where ids tell.

An app keeps its own list of what was said, with ids or without, and sends of it what it likes.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from langchain_beacon import ChatBeacon
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, ToolMessage

from beacon_memory.serving.engine import BeaconEngine
from beacon_memory.testing import scripted_engine

OURS = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
Words = tuple[str, str]

# What a caller may mean. The first ones say nothing of going back: where ids tell, the session goes on with all it has.
GOES_ON = ("whole", "new alone", "newest", "head and tail", "summary", "few-shot", "pasted", "removed", "redacted")
PARTS = ("retry", "regenerate", "edited", "edited by id", "one is put between")
UNTOLD = ("ids twice", "some ids missing", "ids anew", "ids restarted", "no ids")  # ids that tell nothing, or lies
STEP = st.tuples(st.sampled_from(GOES_ON + PARTS + UNTOLD), st.integers(0, 99), st.integers(0, 99), st.booleans())


@dataclass
class App:
    """An app, its list, and the session of its chat model."""

    llm: ChatBeacon
    named: str  # which messages have ids: "all", as in a graph, "answers" as by default, or "none"
    talk: list[BaseMessage] = field(default_factory=list)
    seen: list[list[Words]] = field(default_factory=list)  # what the session was after each call
    numbers: Any = field(default_factory=itertools.count)
    told: bool = True  # whether ids told so far

    def human(self, words: str) -> HumanMessage:
        return HumanMessage(words, id=f"m{next(self.numbers)}" if self.named == "all" else None)

    def step(self, kind: str, one: int, other: int, tool: bool) -> None:
        """Say something, by a list of this kind."""
        fact, talk = next(self.numbers), list(self.talk)
        asked = self.human(f"Fact {fact}.")
        questions = [n for n, message in enumerate(talk) if message.type == "human"]
        place = questions[one % len(questions)] if questions else 0
        size = 1 + other % max(1, len(talk))
        before, now = len(self.session.branches()) if self.seen else 0, self.words()
        if not talk:
            sent = self.talk = [asked]
        elif kind == "new alone":
            sent, self.talk = [asked], [*talk, asked]
        elif kind in ("retry", "regenerate"):
            sent = self.talk = talk[: (questions[-1] if kind == "retry" else place) + 1]
        elif kind == "edited":
            sent = self.talk = [*talk[:place], asked]
        elif kind == "edited by id":
            sent = self.talk = [*talk[:place], HumanMessage(f"Fact {fact}, changed.", id=talk[place].id)]
        elif kind == "pasted":
            sent = [*talk[-size:], HumanMessage(f"Context: page {fact}.\n\nQuestion: {asked.content}", id=asked.id)]
            self.talk = [*talk, asked]
        else:
            self.talk = [*talk, asked]
            sent = self.list_of(kind, talk, asked, place, 1 + one % len(talk), size)
        if tool and kind not in ("retry", "regenerate"):  # an answer that calls, and the call's result
            call = {"name": "look", "args": {"n": fact}, "id": f"c{fact}"}
            made = [
                AIMessage("", tool_calls=[call], id=f"t{fact}"),
                ToolMessage(f"Found {fact}.", tool_call_id=f"c{fact}"),
            ]
            sent, self.talk = [*sent, *made], [*self.talk, *made]
        said = self.llm.invoke(sent, session_id="ada")
        self.talk = [*self.talk, said if self.named != "none" else AIMessage(said.text)]
        self.told &= kind not in UNTOLD
        self.check(kind, sent, now, before)

    def list_of(
        self, kind: str, talk: list[BaseMessage], asked: BaseMessage, place: int, head: int, size: int
    ) -> list[BaseMessage]:
        """What is sent of a talk with a new question behind it."""
        shots = [HumanMessage("Say 1."), AIMessage("1.")]
        bare = [message.model_copy(update={"id": None}) for message in talk]
        lists: dict[str, Callable[[], list[BaseMessage]]] = {
            "whole": lambda: talk,
            "newest": lambda: talk[-size:],
            "head and tail": lambda: talk[:head] + talk[max(head, len(talk) - size) :],
            "summary": lambda: [self.human(f"Here is a summary: much, {next(self.numbers)}."), *talk[-size:]],
            "few-shot": lambda: [*shots, *talk[-size:]],
            "removed": lambda: [*talk[:place], *talk[place + 1 :]],
            "redacted": lambda: [
                *talk[:place],
                talk[place].model_copy(update={"content": "[gone]"}),
                *talk[place + 1 :],
            ],
            "one is put between": lambda: [*talk[:place], HumanMessage("By the way."), *talk[place:]],
            "ids twice": lambda: [m.model_copy(update={"id": f"m{n // 2}"}) for n, m in enumerate(talk)],
            "some ids missing": lambda: [
                b if (n + size) % 3 else m for n, (m, b) in enumerate(zip(talk, bare, strict=True))
            ],
            "ids anew": lambda: [m.model_copy(update={"id": f"again{n}"}) for n, m in enumerate(talk[-size:])],
            "ids restarted": lambda: [HumanMessage("Good evening.", id="m0"), AIMessage("Good evening!", id="m1")],
            "no ids": lambda: bare[-size:],
        }
        return [*lists[kind](), asked]

    @property
    def session(self) -> Any:
        return self.llm.opened.session("ada")

    def words(self) -> list[Words]:
        """What the session remembers."""
        if "ada" not in self.llm.opened.memory.sessions():
            return []
        return [(message["role"], message["content"]) for message in self.session.messages()]

    def check(self, kind: str, sent: list[BaseMessage], before: list[Words], branches: int) -> None:
        now, kept = self.words(), self.session.branches()
        about = f"{kind}, ids of {self.named}\nsent {[(m.type, m.content, m.id) for m in sent]}\nwas {before}\nis {now}"
        # The first law: each state that the session was ever in is the beginning of what it or a branch of it is.
        self.seen.append(now)
        there = [now, *([(m["role"], m["content"]) for m in branch.messages] for branch in kept)]
        for state in self.seen:
            assert any(one[: len(state)] == state for one in there), f"{about}\nlost {state}"
        if self.named != "all" or not self.told:
            return
        # The second law, where ids tell.
        for named in ([m["id"] for m in self.session.messages() if m.get("id")], [c for r, c in now if c != "[gone]"]):
            twice = {one for one in named if named.count(one) > 1}
            assert twice <= {"1.", "Say 1.", "By the way."}, f"{about}\ntwice {twice}"
        if kind in GOES_ON:
            assert now[: len(before)] == before, about
            assert len(kept) == branches, about


@pytest.fixture(scope="module")
def clerk() -> BeaconEngine:
    said = itertools.count()
    return scripted_engine(lambda seen: f"Noted, {next(said)}.")


def run(clerk: BeaconEngine, named: str, steps: list[tuple[str, int, int, bool]]) -> None:
    app = App(ChatBeacon(engine=clerk.with_store("memory://"), max_tokens=24), named)
    for step in [("whole", 0, 0, False), ("whole", 0, 0, False), *steps]:
        app.step(*step)


NAMED = st.sampled_from(["all", "all", "answers", "none"])


@settings(OURS, max_examples=60)
@given(named=NAMED, steps=st.lists(STEP, min_size=1, max_size=6))
def test_whatever_a_caller_sends_nothing_is_forgotten_or_doubled(clerk, named, steps):
    run(clerk, named, steps)


@pytest.mark.long
@settings(OURS, max_examples=2000)
@given(named=NAMED, steps=st.lists(STEP, min_size=1, max_size=6))
def test_whatever_2000_callers_send_nothing_is_forgotten_or_doubled(clerk, named, steps):
    run(clerk, named, steps)
