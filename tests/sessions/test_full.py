"""A memory that is full goes on: long answers, long messages and long results are made room for."""

from __future__ import annotations

import random

import pytest

from beacon_memory import BeaconMemory
from beacon_memory.config import BeaconConfig
from beacon_memory.errors import PromptTooLong
from beacon_memory.sessions.turn import Turn
from beacon_memory.testing import tiny_model

SMALL = BeaconConfig(ratio=4, window=32, anchors="last", sink=2, keep_last=8, slot_dtype="float32")
POSITIONS = 512
WORDS = ["the", "quick", "brown", "fox", "jumps", "over", "a", "lazy", "dog", "near", "Lyon"]


@pytest.fixture(scope="module")
def memory():
    with BeaconMemory.open(tiny_model(config=SMALL, max_position_embeddings=POSITIONS), "memory://") as opened:
        yield opened


def text(rng: random.Random, words: int) -> str:
    return " ".join(
        rng.choices(["the", "quick", "brown", "fox", "jumps", "over", "a", "lazy", "dog", "near", "Lyon"], k=words)
    )


def room(memory, turn) -> bool:
    """Whether the prompt that was made and the longest answer fit the model."""
    prompt = turn._begun[0].prompt
    return prompt.slots + len(prompt.ids) + turn._sampling["max_new_tokens"] <= POSITIONS


@pytest.mark.parametrize("seed", [0, 1, *(pytest.param(n, marks=pytest.mark.long) for n in range(2, 200))])
def test_a_full_session_answers_whatever_the_answer_may_take(memory, seed):
    """Once a session was full, each turn of an answer of more than a quarter of the positions was refused for ever."""
    rng = random.Random(seed)
    session = memory.session(f"full {seed}")
    while not session_is_full(memory, session):
        session.add(text(rng, 300))
    slots = session.info().slots
    for _ in range(3):
        role = rng.choice(["user", "tool"])  # a result may be longer than there is room for, a question may not
        asked = [{"role": role, "content": text(rng, rng.choice([1, 30, 120] if role == "tool" else [1, 30]))}]
        turn = Turn(
            memory,
            asked,
            session=session,
            history="append",
            raw=1,
            max_new_tokens=rng.choice([64, 200, POSITIONS // 2]),
            stop=["e"],
        )
        turn.begin()
        assert room(memory, turn)
        "".join(turn)
    assert session.info().slots >= slots - 2 * SMALL.window  # nothing was made coarser for an answer's sake alone
    assert isinstance(session.ask("Where?", max_new_tokens=POSITIONS // 2, stop=["e"]), str)
    assert len(memory.ask_many([(session.id, "Where?")] * 2, max_new_tokens=POSITIONS // 2, stop=["e"])) == 2


def session_is_full(memory, session) -> bool:
    return session.id in memory.sessions() and session.info().slots > POSITIONS // 2


@pytest.mark.parametrize("seed", range(2))
def test_more_messages_are_kept_raw_than_the_model_reads(memory, seed):
    """`keep` may name more than fits: what comes first is folded for this answer."""
    rng = random.Random(seed)
    messages = [{"role": ("user", "assistant")[n % 2], "content": text(rng, 60)} for n in range(9)]
    turn = Turn(
        memory,
        messages,
        session=memory.session(f"keep {seed}"),
        history="full",
        keep=len(messages),
        max_new_tokens=40,
        stop=["e"],
    )
    turn.begin()
    assert room(memory, turn)
    "".join(turn)


def test_an_answer_longer_than_the_model_is_refused(memory):
    memory.session("short").add("Hi.")
    with pytest.raises(PromptTooLong, match=str(POSITIONS)):
        memory.session("short").ask("Hi?", max_new_tokens=POSITIONS)


def test_what_fits_is_left_as_it_is(memory):
    """The control: nothing is folded for a prompt that has room."""
    rng = random.Random(0)
    session = memory.session("roomy")
    session.add(text(rng, 200))
    prompt = session.prompt_for("Where?")
    turn = Turn(
        memory, [{"role": "user", "content": "Where?"}], session=session, history="append", raw=1, max_new_tokens=8
    )
    turn.begin()
    assert turn._begun[0].prompt.segments == prompt.segments
    assert turn._begun[0].prompt.ids == prompt.ids
    turn.close()
