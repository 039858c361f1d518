"""Many writers of one session: each waits for its turn, and nothing that was said or answered is lost."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from beacon_memory import BeaconMemory
from beacon_memory.config import BeaconConfig
from beacon_memory.errors import SessionConflict
from beacon_memory.models.model import BeaconModel
from beacon_memory.sessions.documents import Document, Documents
from beacon_memory.stores.base import conflict, retrying
from beacon_memory.stores.memory import MemoryStore
from beacon_memory.testing import redis_server, tiny_model

SMALL = BeaconConfig(ratio=4, window=16, anchors="last", sink=2, keep_last=5, slot_dtype="float32")
LONG = pytest.param(32, 50, marks=pytest.mark.long)


@pytest.fixture(scope="module")
def model() -> BeaconModel:
    return tiny_model(config=SMALL)


def said(memory: BeaconMemory) -> Counter[str]:
    return Counter(message["content"] for message in memory.session("room").messages())


@pytest.mark.parametrize(("writers", "turns"), [(8, 5), LONG])
@pytest.mark.parametrize("kind", ["memory", "sqlite"])
def test_many_threads_add_to_one_session(model, tmp_path, writers, turns, kind):
    """After eight lost races a writer gave up, and what it had to say was lost."""
    store = "memory://" if kind == "memory" else f"sqlite:///{tmp_path}/room.db"
    # A memory for every second writer: they meet in this process, and by compare-and-set.
    memories = [BeaconMemory.open(model, store)]
    memories += [BeaconMemory(model, memories[0].store)]

    def writes(writer: int) -> None:
        for turn in range(turns):
            memories[writer % 2].session("room").add(f"Message {turn} of {writer}.")

    with ThreadPoolExecutor(writers) as pool:
        list(pool.map(writes, range(writers)))
    assert said(memories[0]) == Counter(f"Message {t} of {w}." for w in range(writers) for t in range(turns))


@pytest.mark.parametrize(("writers", "turns"), [(8, 2), pytest.param(32, 10, marks=pytest.mark.long)])
def test_many_threads_chat_with_one_session_and_no_answer_is_lost(model, writers, turns):
    memory = BeaconMemory.open(model, "memory://")

    def chats(writer: int) -> list[tuple[str, str]]:
        asked = [f"Question {turn} of {writer}?" for turn in range(turns)]
        return [(text, memory.session("room").chat(text, max_new_tokens=4, seed=writer)) for text in asked]

    with ThreadPoolExecutor(writers) as pool:
        told = [pair for pairs in pool.map(chats, range(writers)) for pair in pairs]
    messages = memory.session("room").messages()
    for question, answer in told:
        place = next(n for n, message in enumerate(messages) if message["content"] == question)
        if answer.strip():
            assert messages[place + 1]["content"] == answer.strip()


class Counted(MemoryStore):
    """Counts the races that its writers lose."""

    lost = 0

    def commit(self, *args: Any, **how: Any) -> int:
        try:
            return super().commit(*args, **how)
        except SessionConflict:
            self.lost += 1
            raise


def test_threads_take_turns_whatever_they_write(model):
    """Documents and repairs raced: what one of them had folded was folded in vain."""
    memory = BeaconMemory(model, Counted())
    memory.session("room").add("Hello. " * 40)
    shelf = Documents(memory, "house")
    shelf.put([Document("door", "The door is green.")])
    acts: list[Callable[[int], object]] = [
        lambda n: shelf.put([Document(f"door {n}", f"Door {n} is blue.")]),
        lambda n: shelf.remove("door") if n == 0 else memory.context("house").add_text(f"Step {n}", name=f"step {n}"),
        lambda n: memory.repair("room"),
        lambda n: memory.session("room").add(f"Message {n}."),
    ]
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda n: acts[n % 4](n // 4), range(64)))
    assert memory.store.lost == 0
    assert len(shelf.info()) == 31
    assert memory.session("room").info().messages == 17


@pytest.mark.parametrize(("writers", "turns"), [(8, 5), pytest.param(32, 25, marks=pytest.mark.long)])
@pytest.mark.parametrize("kind", ["sqlite", "redis"])
def test_many_forked_processes_write_to_one_session(model, tmp_path, writers, turns, kind):
    """One of 32 lost its races for half a minute, and what it had to say was lost."""
    with redis_server("redis") if kind == "redis" else nullcontext(f"sqlite:///{tmp_path}/room.db") as store:
        children = []
        for writer in range(writers):
            if not (child := os.fork()):
                code = 1
                try:
                    memory = BeaconMemory.open(model, store)
                    for turn in range(turns):
                        memory.session("room").add(f"Message {turn} of {writer}.")
                    code = 0
                finally:
                    os._exit(code)
            children.append(child)
        assert [os.waitpid(child, 0)[1] for child in children] == [0] * writers
        with BeaconMemory.open(model, store) as memory:
            assert said(memory) == Counter(f"Message {t} of {w}." for w in range(writers) for t in range(turns))


WRITER = """
import sys
from beacon_memory import BeaconMemory
from beacon_memory.config import BeaconConfig
from beacon_memory.testing import tiny_model
config = BeaconConfig(ratio=4, window=16, anchors="last", sink=2, keep_last=5, slot_dtype="float32")
memory = BeaconMemory.open(tiny_model(config=config), sys.argv[1])
for turn in range(int(sys.argv[3])):
    memory.session("room").add(f"Message {turn} of {sys.argv[2]}.")
"""


@pytest.mark.long  # each process imports torch
@pytest.mark.parametrize(("writers", "turns"), [(8, 50)])
def test_many_processes_add_to_one_session(model, tmp_path, writers, turns):
    store = f"sqlite:///{tmp_path}/room.db"
    commands = [[sys.executable, "-c", WRITER, store, str(writer), str(turns)] for writer in range(writers)]
    root = Path(__file__).parents[2]
    running = [subprocess.Popen(c, cwd=root, stderr=subprocess.PIPE, text=True) for c in commands]
    errors = [process.communicate()[1] for process in running]
    assert [process.returncode for process in running] == [0] * writers, errors
    with BeaconMemory.open(model, store) as memory:
        assert said(memory) == Counter(f"Message {t} of {w}." for w in range(writers) for t in range(turns))


def test_a_writer_waits_its_turn_until_a_deadline():
    tries: list[int] = []

    def act() -> None:
        tries.append(1)
        raise conflict("room", 1, expected=0)

    with pytest.raises(SessionConflict):
        retrying(act, seconds=0.2)
    assert len(tries) > 4
