"""A server that opens its memory, answers once and then forks its workers, as `gunicorn --preload` does."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from beacon_memory.errors import StoreUnavailable
from beacon_memory.locks import Lock, Worker
from beacon_memory.serving import engine as engines
from beacon_memory.serving.engine import BeaconEngine
from beacon_memory.testing import tiny_model

SECONDS = 60


def in_a_child(act: Callable[[], object]) -> str:
    """What `act` gives, or the name of its error, in a forked process; "hangs" when it does not end."""
    read, write = os.pipe()
    child = os.fork()
    if not child:
        signal.alarm(SECONDS)
        try:
            said = str(act())
        except BaseException as exc:
            said = type(exc).__name__
        os.write(write, said.encode())
        os._exit(0)
    os.close(write)
    with os.fdopen(read) as pipe:
        said = pipe.read()
    os.waitpid(child, 0)
    return said or "hangs"


@pytest.mark.parametrize("kind", ["memory", "sqlite"])
def test_a_forked_worker_answers_or_is_told_to_open_its_store(tmp_path, kind):
    engine = BeaconEngine(tiny_model(), "memory://" if kind == "memory" else f"sqlite:///{tmp_path}/m.db")
    engine.session("ada").add("I am Ada. " * 60)

    def asked() -> str:
        return asyncio.run(engine.ask("ada", "Who am I?", max_new_tokens=4))

    answer = asked()
    sync = in_a_child(lambda: engine.session("ada").ask("Who am I?", max_new_tokens=4))
    added = in_a_child(lambda: engine.session("ada").add("More. " * 100))
    run = in_a_child(lambda: asyncio.run(engine.run(lambda: "done")))
    expected = (answer, "None") if kind == "memory" else (StoreUnavailable.__name__,) * 2
    assert (sync, added, run) == (*expected, "done")
    assert in_a_child(asked) == expected[0]
    assert asked() == answer  # the parent goes on


def test_what_other_threads_held_is_free_in_a_child():
    """A thread of the parent that holds a lock is not there to let it go."""
    lock, worker, leave = Lock(), Worker("busy"), threading.Event()
    held = threading.Event()

    def hold() -> None:
        with lock:
            held.set()
            leave.wait()

    busy = worker.submit(hold)
    held.wait()

    def both() -> str:
        with lock:
            return worker.submit(lambda: "free").result()

    assert in_a_child(both) == "free"
    leave.set()
    busy.result()


async def test_questions_that_wait_are_not_answered_in_a_child_as_well(monkeypatch):
    """A child had its parent's questions in its queue: they took the places of its own, and were answered twice."""
    engine, leave = BeaconEngine(tiny_model(), "memory://"), threading.Event()
    engine.session("ada").add("I am Ada.")
    monkeypatch.setattr(engines, "WAITING", 2)

    async def ask() -> str:
        return await engine.ask("ada", "Who am I?", max_new_tokens=4)

    def asked() -> str:
        with ThreadPoolExecutor() as pool:  # a thread without the parent's event loop
            return pool.submit(asyncio.run, ask()).result()

    busy = [engine.worker.submit(leave.wait) for _ in range(engines.THREADS)]
    waiting = [asyncio.create_task(ask()) for _ in range(2)]
    await asyncio.sleep(0)
    answer = in_a_child(asked)
    leave.set()
    assert await asyncio.gather(*waiting) == [answer] * 2
    assert all(done.result() for done in busy)


def test_a_child_of_a_process_that_is_answering_answers_too():
    """What the model was making, and who held it, are the parent's."""
    engine = BeaconEngine(tiny_model(), "memory://")
    engine.session("ada").add("I am Ada.")
    stream = engine.session("ada").ask("Who am I?", stream=True, max_new_tokens=40)
    before = next(stream)

    def asked() -> str:
        return engine.session("ada").ask("Who am I?", max_new_tokens=4)

    with engine.memory.model.running.line:
        answer = in_a_child(asked)
    assert answer == asked()
    assert before + "".join(stream) == engine.session("ada").ask("Who am I?", max_new_tokens=40)


THREADS = """
import os, torch
from beacon_memory.testing import tiny_model
torch.set_num_threads(2)
model = tiny_model(hidden_size=256, num_hidden_layers=4)
ids = [5 + n % 200 for n in range(900)]
before = model.compress(ids)
child = os.fork()
if not child:
    import signal
    signal.alarm(60)
    after = model.compress(ids)
    os._exit(0 if after.segments[-1].digest == before.segments[-1].digest and torch.get_num_threads() == 1 else 3)
print(os.waitpid(child, 0)[1], torch.get_num_threads())
"""


def test_a_child_computes_on_a_thread_of_its_own():
    """OpenMP's other threads are not there after a fork: it waited for them."""
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", THREADS], cwd=root, capture_output=True, text=True, timeout=300)
    assert (done.stdout.split(), done.returncode) == (["0", "2"], 0), done.stderr


def test_two_hundred_threads_ask_one_engine():
    engine = BeaconEngine(tiny_model(), "memory://")
    engine.session("ada").add("I am Ada.")
    answers: list[str] = []
    began = time.monotonic()
    threads = [
        threading.Thread(target=lambda: answers.append(engine.session("ada").ask("Who?", max_new_tokens=2)))
        for _ in range(200)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=max(0.1, 120 - (time.monotonic() - began)))
    assert len(answers) == 200
    assert len(set(answers)) == 1
