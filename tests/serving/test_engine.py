"""Engines: nothing is opened before it is needed, weights are loaded once, and the event loop goes on."""

from __future__ import annotations

import asyncio
import threading

import pytest

from beacon_memory.errors import ConfigError
from beacon_memory.serving.engine import BeaconEngine
from beacon_memory.sessions.turn import Turn
from beacon_memory.testing import scripted_engine, tiny_checkpoint


def test_engines_of_one_model_share_its_weights(tmp_path):
    name = str(tiny_checkpoint(tmp_path))
    one, two = BeaconEngine(name, f"sqlite:///{tmp_path}/a.db"), BeaconEngine(name)
    assert one.memory.model is two.memory.model
    assert one.worker is two.worker
    other = one.with_store("memory://")
    assert other.memory.model is one.memory.model
    assert other.memory.store is not one.memory.store
    assert one.with_model(name).memory.store is one.memory.store


def test_a_session_without_a_store_is_refused():
    with pytest.raises(ConfigError, match="nowhere to be kept"):
        BeaconEngine().session("ada")


def test_a_wrong_store_costs_no_model():
    engine = BeaconEngine("no such model", "ftp://127.0.0.1:1")
    with pytest.raises(ConfigError, match="ftp"):
        engine.memory.sessions()


async def test_a_cancelled_stream_stops_the_model_and_the_session_stays():
    engine = scripted_engine(lambda seen: "word " * 400)
    engine.session("ada").add("Hello")
    before = engine.memory.store.load("ada")
    begun = asyncio.Event()

    async def listen() -> None:
        def begin() -> Turn:
            hello = [{"role": "user", "content": "More"}]
            return Turn(engine.memory, hello, session=engine.session("ada"), max_new_tokens=2000)

        async for _ in engine.stream(begin):
            begun.set()

    task = asyncio.create_task(listen())
    await begun.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await engine.run(lambda: None)  # the worker is free again
    assert engine.memory.store.load("ada") == before
    assert not [t for t in threading.enumerate() if t.name == "beacon-generate"]
