"""Stock vLLM answers from folded sessions as ours does (`make test-vllm`; SmolLM2 on a CPU, prefix caching on)."""

from __future__ import annotations

import random
import sqlite3
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from running import ROOT, running_vllm, write_model
from vllm_beacon import VLLMServer

from beacon_memory import BeaconMemory
from beacon_memory.errors import ModelError, PromptTooLong

pytestmark = [pytest.mark.vllm, pytest.mark.real_model]

STORY = (ROOT / "examples" / "kjv_stories.txt").read_text()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("vllm")


@pytest.fixture(scope="module")
def memory(folder: Path) -> Iterator[BeaconMemory]:
    """A memory of SmolLM2 over SQLite, and the same weights in a folder for vLLM."""
    write_model(folder)
    with BeaconMemory.open("smollm2", store=f"sqlite:///{folder / 'memory.db'}") as memory:
        yield memory


@pytest.fixture(scope="module")
def server(folder: Path, memory: BeaconMemory) -> Iterator[VLLMServer]:
    with running_vllm(folder, f"sqlite:///{folder / 'memory.db'}") as running:
        asked = running.server(memory)
        yield asked
        asked.close()


QUESTION = "What is this text about?"


@pytest.mark.parametrize(("ratio", "tail"), [(1, True), (2, False), (4, True), (8, False), (16, True), (32, True)])
def test_an_answer_is_word_for_word_ours_cold_and_hot(
    memory: BeaconMemory, server: VLLMServer, ratio: int, tail: bool
) -> None:
    name = f"ratio-{ratio}"
    session = memory.session(name, ratio=ratio)
    session.add_text(STORY[1000 * ratio : 1000 * ratio + 900 + 60 * ratio], name="story")
    if tail:
        session.add("My name is Ada, and I live in Lyon.")
    ours = session.ask(QUESTION, recall_tokens=0, max_new_tokens=8)
    assert server.ask(name, QUESTION, max_new_tokens=8) == ours
    assert server.ask(name, QUESTION, max_new_tokens=8) == ours


def test_documents_stand_in_front_of_a_session_as_they_do_with_us(memory: BeaconMemory, server: VLLMServer) -> None:
    memory.context("lease").add_text(STORY[:600], name="lease")
    memory.session("tenant").add("My name is Ada, and I live in Lyon.")
    prompt = server.question("tenant", QUESTION, contexts=["lease"])
    joined = memory.view("context:lease", memory.state)[0].join(memory.view("tenant", memory.state)[0].segments)
    (ours,) = memory.model.generate([list(prompt.ids[prompt.asked.slots :])], [joined], max_new_tokens=8)
    assert server.ask("tenant", QUESTION, contexts=["lease"], max_new_tokens=8) == ours


def test_64_sessions_of_equal_slot_counts_in_any_order_have_each_its_own_answer(
    memory: BeaconMemory, server: VLLMServer
) -> None:
    model = memory.model
    words = sorted({model.decode([i]) for i in model.encode(STORY)})  # one token each: all are equally long
    words = [word for word in words if word[:1] == " " and word[1:].isalpha() and len(word) > 5]
    words = random.Random(5).sample(words, 64)
    for n, word in enumerate(words):
        memory.session(f"many-{n}").add_text(
            f"The secret word is{word}. Remember that it is{word}. " * 3, name="secret"
        )
    assert len({memory.session(f"many-{n}").info().slots for n in range(64)}) == 1
    names = [f"many-{n}" for n in range(64)]
    ask = "Which word is the secret word?"
    ours = dict(
        zip(names, memory.ask_many([(name, ask) for name in names], recall_tokens=0, max_new_tokens=8), strict=True)
    )
    assert len(set(ours.values())) > 32
    order = random.Random(6).sample(names * 2, 128)
    with ThreadPoolExecutor(16) as many:
        theirs = list(many.map(lambda name: server.ask(name, ask, max_new_tokens=8), order))
    assert [(name, said) for name, said in zip(order, theirs, strict=True) if said != ours[name]] == []


def test_a_store_that_fails_fails_the_request_and_nothing_else(
    memory: BeaconMemory, server: VLLMServer, folder: Path
) -> None:
    for name, start in (("lost", 4000), ("kept", 6000)):
        memory.session(name).add_text(STORY[start : start + 600], name="story")
    kept = memory.session("kept").ask(QUESTION, recall_tokens=0, max_new_tokens=8)
    segment = memory.view("lost", lambda head: head)[0].entries[0].blob
    with sqlite3.connect(folder / "memory.db") as database:
        assert database.execute("DELETE FROM blobs WHERE digest = ?", (segment,)).rowcount == 1
    with ThreadPoolExecutor(4) as many:
        failing = [many.submit(server.ask, "lost", QUESTION, max_new_tokens=8) for _ in range(2)]
        others = [many.submit(server.ask, "kept", QUESTION, max_new_tokens=8) for _ in range(2)]
        assert [one.result() for one in others] == [kept, kept]
        for one in failing:
            with pytest.raises(ModelError, match="vLLM failed"):
                one.result()
    assert "SegmentMissing" in (folder / "vllm.log").read_text()


def test_what_is_too_long_for_vllm_is_refused_before_it_is_asked(memory: BeaconMemory, server: VLLMServer) -> None:
    memory.session("long").add("Hello.")
    with pytest.raises(PromptTooLong, match="vLLM serves 4096"):
        server.ask("long", "word " * 4000)
