"""A memory that has done much and one that has just been opened over the same store say the same."""

from __future__ import annotations

import random
from contextlib import suppress
from dataclasses import replace
from typing import Any

import pytest

from beacon_memory import BeaconConfig, BeaconMemory, BeaconModel, Session
from beacon_memory.errors import BeaconError
from beacon_memory.models.finder import Finder
from beacon_memory.sessions.turn import Turn
from beacon_memory.state.source import Source
from beacon_memory.testing import tiny_model

CONFIG = BeaconConfig(window=32, keep_last=8, sink=2, overlap=5)
FINDER = Finder(((1, 0), (0, 1)), (2.0, 1.0), 0.0)  # finds something, whatever is asked
SAID = ("I live in Lyon.", "The door is green!", "Who am I?", "The code is 4711.", "Où est-ce? 去哪里.", "Rex barked.")
SHORT: dict[str, Any] = {"max_new_tokens": 3, "temperature": 0}
SEEDS = (81, 98, 130, 153)  # some of those that fail where a prefix that is looked at is written into
NAMES, HOUSES = ("ada", "bob", "eve"), ("house", "yard")


@pytest.fixture(scope="module")
def model() -> BeaconModel:
    return tiny_model(config=CONFIG)


class Caller:
    """Does one thing after another, drawn by chance, to sessions that share documents."""

    def __init__(self, memory: BeaconMemory, rng: random.Random) -> None:
        self.memory, self.rng = memory, rng
        self.acts = [getattr(self, name) for name in vars(Caller) if name.startswith("do_")]

    def words(self, most: int = 3) -> str:
        said = " ".join(self.rng.choices(SAID, k=self.rng.randint(1, most)))
        return f"{said} {self.rng.randrange(99)}"

    def step(self) -> str:
        act = self.rng.choice(self.acts)
        self.how = {**SHORT, "recall_tokens": self.rng.choice([None, 0, 40])}
        with suppress(BeaconError):  # there may be no such session yet, or one already
            act(self.memory.session(self.rng.choice(NAMES)))
        return str(act.__name__)

    def turn(self, messages: list[dict[str, Any]], session: Session | None, **more: Any) -> None:
        list(Turn(self.memory, messages, session=session, **self.how, **more))

    def talk(self, session: Session) -> list[dict[str, Any]]:
        asked = {"role": "user", "content": self.words()}
        return [*(message for message in session.messages() if message["role"] != "document"), asked]

    def do_add(self, session: Session) -> None:
        session.add({"role": "user", "content": self.words(14)}, fold=self.rng.random() < 0.8)

    def do_add_text(self, session: Session) -> None:
        session.add_text(self.rng.choice([self.words(14), "The lease ends in May. " * 9]), name=self.rng.choice("xyz"))

    def do_ask(self, session: Session) -> None:
        session.ask(self.words(9), system=self.rng.choice([None, "Be brief."]), **self.how)

    def do_ask_with_a_penalty(self, session: Session) -> None:
        session.ask(self.words(), repetition_penalty=1.3, **self.how)

    def do_search(self, session: Session) -> None:
        session.search(self.words(), limit=3)

    def do_chat(self, session: Session) -> None:
        session.chat(self.words(), **self.how)

    def do_leave_a_stream(self, session: Session) -> None:
        pieces = session.chat(self.words(), stream=True, **self.how)
        next(pieces, None)
        pieces.close()

    def do_ask_many(self, session: Session) -> None:
        asked = [(name, self.words()) for name in self.rng.choices(NAMES, k=3)]
        self.memory.ask_many(asked, **self.how)

    def do_send_it_all(self, session: Session) -> None:
        self.turn(self.talk(session), session, raw=self.rng.choice([0, 1]))

    def do_keep_some(self, session: Session) -> None:
        self.turn(self.talk(session), session, history="full", keep=2)

    def do_branch(self, session: Session) -> None:
        talk = self.talk(session)
        self.turn([*talk[:-2], talk[-1]], session, raw=1, history=self.rng.choice(["auto", "full"]))

    def do_stand_behind_documents(self, session: Session) -> None:
        contexts = [f"context:{name}" for name in self.memory.contexts()]
        asked = [{"role": "user", "content": self.words()}]
        self.turn(asked, self.rng.choice([None, session]), contexts=contexts, raw=1)

    def do_read_a_document(self, session: Session) -> None:
        self.memory.context(self.rng.choice(HOUSES)).add_text(self.words(9), name=self.rng.choice("pq"))

    def do_fork(self, session: Session) -> None:
        session.fork(self.rng.choice(NAMES))

    def do_edit(self, session: Session) -> None:
        session.edit(self.rng.randrange(len(session.messages()) + 1), self.words())

    def do_delete(self, session: Session) -> None:
        session.delete(self.rng.choice(["x", "y", 0, 1]))

    def do_rewind(self, session: Session) -> None:
        session.rewind(self.rng.randrange(4))

    def do_go_back_to_a_branch(self, session: Session) -> None:
        session.checkout("1")

    def do_forget(self, session: Session) -> None:
        session.forget()

    def do_something_elsewhere(self, session: Session) -> None:
        BeaconMemory(self.memory.model, self.memory.store).session(session.id).add(self.words(6))


def placed(found: list[Source]) -> dict[str, float]:
    """The scores of passages by where they stand."""
    return {f"{one.document} {one.message} {one.start}-{one.end}": one.score for one in found}


@pytest.mark.parametrize(
    "seed", [*SEEDS, *(pytest.param(n, marks=pytest.mark.long) for n in range(200) if n not in SEEDS)]
)
def test_what_stays_on_the_device_changes_no_prompt_no_score_and_no_answer(model, seed):
    """A pass that wrote into a prefix which it only looked at changed what was asked later."""
    rng = random.Random(seed)
    model.finder = replace(FINDER, baseline=rng.choice([0.0, 0.5]))
    hot = BeaconMemory(model, BeaconMemory.open(model).store, recall_tokens=rng.choice([64, 256]))
    caller, done = Caller(hot, rng), list[str]()
    for _ in range(22):
        done.append(caller.step())
        if not (names := hot.sessions()) or rng.random() < 0.4:
            continue
        cold = BeaconMemory(model, hot.store, recall_tokens=hot.recall_tokens)
        name, asked, recall = rng.choice(names), caller.words(5), rng.choice([0, None])
        prompts = [one.session(name).prompt_for(asked, recall_tokens=recall) for one in (hot, cold)]
        assert prompts[0].ids == prompts[1].ids, done
        found = [placed(one.session(name).search(asked, limit=999)) for one in (hot, cold)]
        assert found[0] == pytest.approx(found[1], abs=1e-4), done
        answers = [one.session(name).ask(asked, recall_tokens=recall, **SHORT) for one in (hot, cold)]
        assert answers[0] == answers[1], done
