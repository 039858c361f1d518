"""Fold workers as processes: killed in the middle of their work, they lose nothing and do nothing twice."""

from __future__ import annotations

import json
import os
import random
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event

import pytest

from beacon_memory import BeaconMemory
from beacon_memory.config import BeaconConfig
from beacon_memory.models.model import BeaconModel
from beacon_memory.serving.folding import FoldWorker
from beacon_memory.stores.queue import Counts
from beacon_memory.testing import redis_server, tiny_checkpoint, tiny_model
from beacon_memory.testing.servers import until

CONFIG = BeaconConfig(window=32, keep_last=8, anchors="last")
SESSIONS, TURNS, KILLS = 8, 24, 3
WORDS = ["the", "river", "runs", "to", "the", "sea", "and", "the", "house", "has", "a", "green", "door", "in", "Lyon"]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoint(tmp_path_factory.mktemp("model"))


@pytest.fixture(params=["redis", "sqlite"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path}/memory.db"
        return
    with redis_server() as url:
        yield url


def worker(model: BeaconModel, store: str) -> int:
    """The id of a new process that folds until SIGTERM, and then ends with 0."""
    ready, told = os.pipe()
    child = os.fork()
    if not child:
        code = 1
        try:
            stop = Event()
            signal.signal(signal.SIGTERM, lambda *_: stop.set())
            os.write(told, b"!")
            with BeaconMemory.open(model, store) as memory:
                FoldWorker(memory, lease=1).run(stop)
            code = 0
        finally:
            os._exit(code)
    os.read(ready, 1)
    os.close(ready)
    os.close(told)
    return child


def test_workers_that_are_killed_under_load_lose_no_turn_and_fold_none_twice(store: str) -> None:
    draw = random.Random(3)
    names = [f"session-{n}" for n in range(SESSIONS)]
    told: dict[str, list[str]] = {name: [] for name in names}
    model = tiny_model(config=CONFIG)
    running = [worker(model, store) for _ in range(2)]
    try:
        with BeaconMemory.open(model, store) as memory:
            queue = memory.store.queue()
            assert queue is not None
            for turn in range(TURNS):
                for name in names:
                    text = f"{turn}: {' '.join(draw.choices(WORDS, k=12))}"
                    memory.session(name).add(text, fold=False)
                    told[name].append(text)  # acknowledged
                if turn % (TURNS // KILLS) == TURNS // KILLS - 1:
                    until(lambda: queue.counts().taken, 60)  # one is in the middle of something
                    os.kill(victim := running.pop(0), signal.SIGKILL)
                    assert os.waitpid(victim, 0)[1] == signal.SIGKILL
                    running.append(worker(model, store))
            until(lambda: queue.counts() == Counts(0, 0, 0), 120)
            while running:
                os.kill(running[-1], signal.SIGTERM)
                assert os.waitpid(running.pop(), 0)[1] == 0

            reference = BeaconMemory.open(model)
            for name in names:
                reference.session(name).add([{"role": "user", "content": text} for text in told[name]])
                there = memory.session(name)
                assert [message["content"] for message in there.messages()] == told[name]
                assert there.info().slots > 0
                assert there.state().equals(reference.session(name).state())
    finally:
        for child in running:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)


def test_the_commands_fold_and_say_what_failed(checkpoint: Path, store: str, command: Callable[..., tuple]) -> None:
    model = BeaconModel.from_pretrained(checkpoint, adapter=None)
    with BeaconMemory.open(model, store) as memory:
        memory.session("ada").add(" ".join(WORDS * 40), fold=False)
        memory.session("bob").add("Hello.", fold=False)
        other = ["--model", str(checkpoint), "--store", store]
        code, out, _ = command("fold-queue", "--store", store)
        assert (code, out) == (0, "1 waiting, 0 being folded, 0 failed\n")
        code, out, err = command("fold-worker", *other, "--until-empty")
        assert (code, out) == (0, "")
        assert "ada: " in err
        assert err.endswith("1 jobs done\n")
        code, out, _ = command("fold-queue", "--store", store, "--json")
        assert json.loads(out) == {"waiting": 0, "taken": 0, "dead": 0, "failed": []}
        assert memory.session("ada").info().tail < 512 + 128

        memory.session("ada").add(" ".join(WORDS * 40), fold=False)
        queue = memory.store.queue()
        assert queue is not None
        queue.bury(queue.take(lease=15, seconds=0), "a disk was full")  # type: ignore[arg-type]
        code, out, _ = command("fold-queue", "--store", store)
        assert out == "0 waiting, 0 being folded, 1 failed\nada: a disk was full (tries: 1)\n"
        code, _, err = command("fold-queue", "--store", store, "--revive")
        assert (code, err) == (0, "1 sessions put on the queue again\n")
        code, _, err = command("fold-worker", *other, "--until-empty", "--look")
        assert "1 sessions put on the queue" in err
        assert memory.session("ada").info().tail < 512 + 128


def test_a_worker_ends_when_it_is_told_to(checkpoint: Path, store: str, command: Callable[..., tuple]) -> None:
    """SIGTERM is what a process is sent before it is killed: the window at hand is finished."""
    with BeaconMemory.open(BeaconModel.from_pretrained(checkpoint, adapter=None), store) as memory:
        memory.session("ada").add(" ".join(WORDS * 40), fold=False)

        def stopped() -> None:
            until(lambda: memory.session("ada").info().slots, 60)
            os.kill(os.getpid(), signal.SIGTERM)

        with ThreadPoolExecutor(1) as other:
            stopping = other.submit(stopped)
            code, _, err = command("fold-worker", "--model", str(checkpoint), "--store", store)
            stopping.result()
    assert code == 0
    assert err.endswith("jobs done\n")
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_a_store_without_a_queue_is_refused(checkpoint: Path, command: Callable[..., tuple]) -> None:
    code, _, err = command("fold-queue", "--store", "memory://")
    assert code == 2
    assert "no queue" in err
    code, _, err = command("fold-worker", "--store", "memory://", "--model", str(checkpoint))
    assert code == 2
    assert "no queue" in err
