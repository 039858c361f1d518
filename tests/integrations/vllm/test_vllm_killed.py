"""A conversation with a real vLLM, folded by workers, while a worker and vLLM are killed (`make test-vllm`)."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event

import pytest
from running import ROOT, running_vllm, write_model

from beacon_memory import BeaconMemory
from beacon_memory.errors import ModelError
from beacon_memory.stores.queue import Counts
from beacon_memory.testing import redis_server
from beacon_memory.testing.servers import until

pytestmark = [pytest.mark.vllm, pytest.mark.real_model]

STORY = (ROOT / "examples" / "kjv_stories.txt").read_text()
SESSIONS, TURNS = 4, 8


def worker(store: str, log: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "beacon_memory.cli", "fold-worker", "--store", store, "--lease", "3"]
    with log.open("a") as file:
        return subprocess.Popen(command, env=os.environ | {"PYTHONPATH": str(ROOT)}, stdout=file, stderr=file)


def test_a_worker_and_vllm_are_killed_under_load_and_no_turn_is_lost_or_kept_twice(tmp_path: Path) -> None:
    write_model(tmp_path)
    told: dict[str, list[str]] = {f"session-{n}": [] for n in range(SESSIONS)}
    answers: dict[str, list[str]] = {name: [] for name in told}
    back = Event()
    with (
        redis_server() as store,
        BeaconMemory.open("smollm2", store=store) as memory,
        running_vllm(tmp_path, store) as vllm,
    ):
        server, queue = vllm.server(memory, fold=False), memory.store.queue()
        assert queue is not None
        refused: list[str] = []

        def talk(name: str) -> None:
            for turn in range(TURNS):
                start = 500 * (TURNS * list(told).index(name) + turn)
                text = f"Part {turn}: {STORY[start : start + 500]}"
                while True:
                    try:
                        said = server.chat(name, text, max_new_tokens=4)
                        break
                    except ModelError:  # nothing was acknowledged: the caller says it again
                        refused.append(name)
                        assert back.wait(900)
                told[name].append(text)
                answers[name].append(said)

        log = tmp_path / "worker.log"
        workers = [worker(store, log)]
        try:
            with ThreadPoolExecutor(SESSIONS) as people:
                talking = [people.submit(talk, name) for name in told]
                until(lambda: queue.counts().taken, 900)
                workers[0].kill()  # in the middle of a fold
                assert workers[0].wait() == -signal.SIGKILL
                workers.append(worker(store, log))
                vllm.stop(signal.SIGKILL)  # in the middle of answers
                until(lambda: len(refused) == SESSIONS, 300)
                vllm.start()
                vllm.server(memory).close()
                back.set()
                for one in talking:
                    one.result()
            until(lambda: queue.counts() == Counts(0, 0, 0), 600)
        finally:
            back.set()
            for one in workers:
                one.kill()
                one.wait()
        assert sorted(refused) == sorted(told)
        for name in told:
            session = memory.session(name)
            messages = [(message["role"], message["content"]) for message in session.messages()]
            assert [content for role, content in messages if role == "user"] == told[name]
            spoken = [said.strip() for said in answers[name] if said.strip()]
            assert [content for role, content in messages if role == "assistant"] == spoken
            assert session.info().slots > 0
            question = "What is this text about?"
            assert server.ask(name, question, max_new_tokens=8) == session.ask(
                question, recall_tokens=0, max_new_tokens=8
            )
        server.close()
