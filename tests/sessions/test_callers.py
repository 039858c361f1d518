"""Generated callers: nothing that is sent makes a session forget; what it parts from stays as a branch."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import pytest

from beacon_memory import BeaconConfig, BeaconMemory, BeaconModel
from beacon_memory.errors import InputError, SessionNotFound
from beacon_memory.sessions.session import Session
from beacon_memory.sessions.turn import Turn
from beacon_memory.stores.memory import MemoryStore
from beacon_memory.testing import tiny_model

CONFIG = BeaconConfig(window=32, keep_last=6, sink=2, anchors="last")
Talk = list[dict[str, Any]]

# What a caller may mean. After the first kinds the whole talk is still what the model reads; after the others what was
# there is still there, in another branch at least.
GOES_ON = ("whole", "newest", "head and tail", "summary", "pasted", "few-shot", "greeting", "no ids", "new ids")
PARTS = ("retry", "regenerate", "edit", "redact", "remove", "duplicate ids", "restarted ids", "answer rewritten")


def caller(seed: int) -> tuple[str, Talk, Talk]:
    """What a caller means, what its session holds, and the list that it sends."""
    rng = random.Random(seed)
    kind = rng.choice(GOES_ON + PARTS)
    always, never = ("new ids", "duplicate ids", "restarted ids", "redact"), ("no ids", "pasted")
    named = kind in always or (kind not in never and rng.random() < 0.5)
    held: Talk = []
    for n in range(rng.randint(5 if kind == "greeting" else 3, 9)):
        held.append({"role": "user", "content": f"I tell you {n}: {rng.choice(['Lyon', 'the sea', 'Rex'])}."})
        if rng.random() < 0.2:
            held.append({"role": "assistant", "content": f"Let me look up {n}."})
            held.append({"role": "tool", "content": f"It says {n} is right."})
        held.append({"role": "assistant", "content": f"I have noted {n}."})
    if named:
        held = [message | {"id": f"m{n}"} for n, message in enumerate(held)]
    asked = {"role": "user", "content": "And what now?", **({"id": "asked"} if named else {})}
    size = rng.randint(1, len(held) - 1)
    questions = [n for n, message in enumerate(held) if message["role"] == "user"]
    place = rng.choice(questions[1:])
    if kind in ("whole", "no ids"):
        sent = [*held, asked]
    elif kind == "newest":
        sent = [*held[-size:], asked]
    elif kind == "head and tail":
        sent = [*held[: rng.randint(1, 4)], *held[-min(size, len(held) - 4) :], asked]
    elif kind == "summary":
        sent = [{"role": "user", "content": "A summary of what was said: much."}, *held[-size:], asked]
    elif kind == "few-shot":
        shots = [{"role": "user", "content": "Say 1."}, {"role": "assistant", "content": "1."}]
        sent = [*shots, *held[-size:], asked]
    elif kind == "pasted":
        bare = [m | {} for m in held]
        for n in questions:
            held[n] = held[n] | {"content": f"Context: page {n} of a book.\n\nQuestion: {bare[n]['content']}"}
        sent = [*bare[-max(size, 2) :], asked | {"content": "Context: a page.\n\nQuestion: And what now?"}]
    elif kind == "greeting":
        sent = [*held[:2], asked] if held[1]["role"] == "assistant" and len(questions) > 3 else [*held, asked]
        sent = [{key: value for key, value in m.items() if key != "id"} for m in sent]
    elif kind == "new ids":
        sent = [m | {"id": f"again {n}"} for n, m in enumerate(held[-size:])] if size > 1 else list(held)
        sent = [*sent, asked]
    elif kind in ("retry", "regenerate"):
        place = questions[-1] if kind == "retry" else place
        sent = held[: place + 1]
    elif kind == "edit":
        sent = [*held[:place], held[place] | {"content": "I have changed my mind."}]
    elif kind == "redact":
        sent = [*(m | {"content": "[redacted]"} if n == place else m for n, m in enumerate(held)), asked]
    elif kind == "remove":
        sent = [*(m for n, m in enumerate(held) if n != place), asked]
    elif kind == "duplicate ids":
        sent = [*(m | {"id": f"m{n // 2}"} for n, m in enumerate(held)), asked]
    elif kind == "restarted ids":
        sent = [
            {"role": "user", "content": "Good evening.", "id": "m0"},
            {"role": "assistant", "content": "Good evening!", "id": "m1"},
            {"role": "user", "content": "And what now?", "id": "m2"},
        ]
    else:
        answers = [n for n, message in enumerate(held) if message["role"] == "assistant"]
        sent = [*held[: answers[-1]], held[answers[-1]] | {"content": "As the app shows it."}, asked]
        sent = [{key: value for key, value in m.items() if key != "id"} for m in sent]
    return kind, held, sent


def words(messages: Sequence[Any]) -> list[tuple[str, str]]:
    return [(message["role"], message["content"]) for message in messages]


def say(memory: BeaconMemory, session: Session, sent: Talk, **how: Any) -> str:
    return "".join(Turn(memory, sent, session=session, max_new_tokens=3, **how)).strip()


def check(memory: BeaconMemory, seed: int) -> None:
    kind, held, sent = caller(seed)
    session = memory.session(f"{seed}")
    session.add(held)
    say(memory, session, sent)
    now = words(session.messages())
    told = f"seed {seed}: {kind}\nheld {words(held)}\nsent {words(sent)}\nnow {now}"
    reachable = {*now, *(one for branch in session.branches() for one in words(branch.messages))}
    assert set(words(held)) <= reachable, told
    session.forget()
    assert memory.store.sessions() == [], told


@pytest.fixture(scope="module")
def model() -> BeaconModel:
    return tiny_model(config=CONFIG)


@pytest.fixture
def memory(model) -> BeaconMemory:
    return BeaconMemory(model, MemoryStore())


def test_nothing_that_a_caller_sends_is_forgotten(memory):
    for seed in range(100):
        check(memory, seed)


@pytest.mark.long
def test_nothing_that_a_caller_sends_is_forgotten_by_2000_callers(memory):
    for seed in range(2000):
        check(memory, seed)


HELD = [
    {"role": "user", "content": "I live in Lyon.", "id": "m0"},
    {"role": "assistant", "content": "I see.", "id": "m1"},
    {"role": "user", "content": "My dog is Rex.", "id": "m2"},
    {"role": "assistant", "content": "Nice.", "id": "m3"},
]


def test_a_branch_is_listed_and_gone_back_to(memory):
    session = memory.session("ada")
    session.add(HELD)
    before = session.state()
    answer = say(memory, session, [*HELD[:2], {"role": "user", "content": "My cat is Tom."}])
    parted = words(session.messages())
    assert parted[:3] == [*words(HELD[:2]), ("user", "My cat is Tom.")]
    (branch,) = session.branches()
    assert words(branch.messages) == words(HELD)
    session.checkout(branch.name)
    assert words(session.messages()) == words(HELD)
    after = session.state()
    assert [s.digest for s in after.segments] == [s.digest for s in before.segments]
    assert after.tail == before.tail
    (other,) = session.branches()
    assert words(other.messages) == parted
    assert session.ask("Who?", max_new_tokens=2) is not None
    with pytest.raises(InputError, match="no branch"):
        session.checkout(branch.name)
    assert answer is not None
    assert memory.sessions() == ["ada"]
    session.forget()
    assert memory.store.sessions() == []
    with pytest.raises(SessionNotFound):
        session.branches()


def test_a_new_window_with_the_same_greeting_goes_on_with_the_talk(memory):
    """Without ids it may be an edit of the second question, or a user who says hello again: nothing is taken away."""
    session = memory.session("ada")
    held = [{"role": message["role"], "content": message["content"]} for message in HELD]
    session.add(held)
    say(memory, session, [*held[:2], {"role": "user", "content": "Where is Rex?"}])
    assert words(session.messages())[:5] == [*words(held), ("user", "Where is Rex?")]
    assert session.branches() == []
    session.forget()


def test_a_talk_that_is_said_to_be_whole_leaves_no_branch(memory):
    session = memory.session("ada")
    session.add(HELD)
    say(memory, session, [{"role": "user", "content": "Anew."}], history="full")
    assert session.branches() == []
    session.forget()


def test_no_session_of_a_users_has_the_name_of_a_branch(memory):
    with pytest.raises(InputError, match="branch:"):
        memory.session("branch:1")


def test_another_writer_takes_no_answer_away_where_a_list_parts(memory):
    session = memory.session("ada")
    session.add(HELD)
    turn = Turn(memory, [*HELD[:2], {"role": "user", "content": "Tom?"}], session=session, max_new_tokens=3)
    next(turn)
    session.add("Meanwhile.")
    "".join(turn)
    said = words(session.messages())
    assert said[: len(HELD) + 1] == [*words(HELD), ("user", "Meanwhile.")]
    assert said[len(HELD) + 1] == ("user", "Tom?")
    assert session.branches() == []
    session.forget()
