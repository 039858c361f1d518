"""Engines: nothing is opened before it is needed, weights are loaded once, and the event loop goes on."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar, copy_context

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
    async with asyncio.timeout(60):
        while engine.memory.model.running.answers:
            await asyncio.sleep(0.01)
    assert engine.memory.store.load("ada") == before


async def test_work_that_waits_for_more_work_of_its_engine_does_not_wait_for_itself():
    """An asynchronous call within the engine's thread waited for that thread, and everybody else behind it."""
    engine, other = scripted_engine(lambda seen: "Noted."), scripted_engine(lambda seen: "Noted.")
    engine.session("ada").add("Hello")

    async def pieces() -> list[int]:
        return [piece async for piece in engine.stream(lambda: iter([1, 2]))]

    def by_way_of_another() -> int:
        return asyncio.run(other.run(lambda: asyncio.run(engine.run(lambda: 3))))

    def in_a_thread_of_its_own() -> int:
        with ThreadPoolExecutor() as pool:
            return pool.submit(copy_context().run, asyncio.run, engine.run(lambda: 4)).result()

    async with asyncio.timeout(60):
        assert await engine.run(lambda: asyncio.run(pieces())) == [1, 2]
        assert await engine.run(lambda: asyncio.run(engine.ask("ada", "Well?"))) == "Noted."
        assert await engine.run(by_way_of_another) == 3
        assert await engine.run(in_a_thread_of_its_own) == 4
        with pytest.raises(ZeroDivisionError):
            await engine.run(lambda: asyncio.run(engine.run(lambda: 1 // 0)))
        assert await asyncio.gather(*(engine.run(lambda n=n: n) for n in range(9))) == list(range(9))


async def test_what_asynchronous_work_reads_of_its_context_is_its_callers():
    named: ContextVar[str] = ContextVar("named")
    engine = scripted_engine(lambda seen: "Noted.")

    async def read(name: str) -> list[str]:
        named.set(name)
        return [await engine.run(named.get), *[one async for one in engine.stream(lambda: iter([named.get()]))]]

    assert await asyncio.gather(read("ada"), read("bob")) == [["ada"] * 2, ["bob"] * 2]
