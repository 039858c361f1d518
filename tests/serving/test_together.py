"""Questions from many at once: answered together, bounded, and left without a trace."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest

from beacon_memory import BeaconConfig, BeaconMemory
from beacon_memory.errors import EngineBusy, SessionNotFound
from beacon_memory.serving import engine as engines
from beacon_memory.serving.engine import BeaconEngine
from beacon_memory.testing import scripted_engine, tiny_model

NAMES = ["ada", "bob", "eve", "kim"]


@pytest.fixture
def engine() -> BeaconEngine:
    engine = BeaconEngine(tiny_model(config=BeaconConfig(window=32, keep_last=8, sink=2, anchors="last")), "memory://")
    for count, name in enumerate(NAMES):
        engine.session(name).add(f"I am {name}, and I live in Lyon. " * (2 + 3 * count))
    return engine


class Busy:
    """Holds an engine's model, so that questions wait for it."""

    def __init__(self, engine: BeaconEngine) -> None:
        self._go, held = threading.Event(), threading.Event()

        def hold() -> None:
            with engine.memory.model.running.line:
                held.set()
                self._go.wait()

        threading.Thread(target=hold).start()
        held.wait()

    def go(self) -> None:
        self._go.set()


def answering(engine: BeaconEngine) -> list[int]:
    """How many answers each pass of the model lengthens from now on."""
    sizes: list[int] = []

    def count(_: object, __: object, kwargs: dict[str, Any]) -> None:
        sizes.append(len(kwargs["logits_to_keep"]))

    engine.memory.model.lm.register_forward_pre_hook(count, with_kwargs=True)
    return sizes


async def test_questions_asked_at_the_same_time_are_answered_in_the_same_passes(engine):
    alone = [engine.session(name).ask("Who am I?", max_new_tokens=24) for name in NAMES]
    sizes, held = answering(engine), Busy(engine)
    asked = [asyncio.create_task(engine.ask(name, "Who am I?", max_new_tokens=24)) for name in NAMES]
    other = asyncio.create_task(engine.ask("ada", "Who am I?", max_new_tokens=12, temperature=1, seed=1))
    await asyncio.sleep(0)
    held.go()
    assert await asyncio.gather(*asked) == alone
    await other
    assert max(sizes) > 2
    assert sum(sizes) > 1.5 * len(sizes)


async def test_too_many_are_turned_away_and_come_back_later(engine, monkeypatch):
    monkeypatch.setattr(engines, "WAITING", 2)
    held = Busy(engine)
    asked = [asyncio.create_task(engine.ask(name, "Who?", max_new_tokens=1)) for name in NAMES[:2]]
    await asyncio.sleep(0)
    with pytest.raises(EngineBusy, match="2 questions wait"):
        await engine.ask("eve", "Who?", max_new_tokens=1)
    asked[0].cancel()
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    later = asyncio.create_task(engine.ask("eve", "Who?", max_new_tokens=1))  # the place of the one who left
    await asyncio.sleep(0)
    held.go()
    await asyncio.gather(asked[1], later)
    with pytest.raises(asyncio.CancelledError):
        await asked[0]


async def test_a_question_that_cannot_be_answered_is_no_reason_for_the_others(engine):
    alone = engine.session("ada").ask("Who am I?", max_new_tokens=4)
    held = Busy(engine)
    asked = [asyncio.create_task(engine.ask(name, "Who am I?", max_new_tokens=4)) for name in ("ada", "nobody")]
    await asyncio.sleep(0)
    held.go()
    told = await asyncio.gather(*asked, return_exceptions=True)
    assert told[0] == alone
    assert isinstance(told[1], SessionNotFound)


async def test_one_who_leaves_ends_the_answer_and_the_others_go_on():
    engine = scripted_engine(lambda seen: "word " * 400 if "ada" in seen else "Hello there.")
    for name in ("ada", "bob"):
        engine.session(name).add(f"I am {name}.")
    begun = asyncio.Event()
    loop = asyncio.get_running_loop()
    layer = engine.memory.model.lm.model.layers[0]
    forwards: list[int] = []

    def seen(*_: object) -> None:
        forwards.append(1)
        loop.call_soon_threadsafe(begun.set)

    layer.register_forward_hook(seen)
    held = Busy(engine)
    asked = [asyncio.create_task(engine.ask(name, "Hi", max_new_tokens=2000)) for name in ("ada", "bob")]
    await asyncio.sleep(0)
    held.go()
    await begun.wait()
    asked[0].cancel()
    assert await asked[1] == "Hello there."
    with pytest.raises(asyncio.CancelledError):
        await asked[0]
    assert len(forwards) < 300


def test_many_sessions_are_asked_at_once_each_in_its_own_words(engine):
    memory: BeaconMemory = engine.memory
    pairs = [(name, f"{name}, who am I?") for name in NAMES] + [("ada", "And where?")]
    alone = [memory.session(name).ask(question, max_new_tokens=6) for name, question in pairs]
    assert memory.ask_many(pairs, max_new_tokens=6) == alone
    assert memory.ask_many(pairs, max_new_tokens=6) == alone  # from what the first time left on the device
    assert memory.ask_many([]) == []
