"""Who asks vLLM, and what becomes of what was said: beside a server that reads the store as the connector does."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from stand_in import StandIn, stand_in
from vllm_beacon import VLLMServer
from vllm_beacon.asked import Asked

from beacon_memory import BeaconMemory
from beacon_memory.config import BeaconConfig
from beacon_memory.errors import ModelError, PromptTooLong, SessionNotFound
from beacon_memory.models.generation import Sampling
from beacon_memory.models.model import BeaconModel
from beacon_memory.serving.folding import FoldWorker
from beacon_memory.stores.queue import Counts

LONG = "I live in Lyon, near the river, in a house with a green door. "


@pytest.fixture
def memory(config: BeaconConfig, model_of: Callable[..., BeaconModel], tmp_path: Path) -> Iterator[BeaconMemory]:
    with BeaconMemory.open(model_of(config), f"sqlite:///{tmp_path}/memory.db") as memory:
        yield memory


@pytest.fixture
def vllm(memory: BeaconMemory) -> Iterator[StandIn]:
    with stand_in(memory.model, memory.store, salt="salt") as served:
        yield served


def slots(vllm: StandIn) -> list[int]:
    """How many placeholders stood in front of each question."""
    found = [Asked.of(body.get("kv_transfer_params")) for body in vllm.asked]
    return [0 if asked is None else asked.slots for asked in found]


def test_an_answer_is_the_one_of_our_own_engine(memory: BeaconMemory, vllm: StandIn) -> None:
    memory.session("ada").add(LONG * 3)
    server = VLLMServer(memory, vllm.url, salt="salt")
    ours = memory.session("ada").ask("Where?", max_new_tokens=8)
    assert server.ask("ada", "Where?", max_new_tokens=8) == ours
    assert slots(vllm) == [memory.session("ada").info().slots]
    server.close()


def test_what_was_said_waits_for_a_worker_and_is_read_raw_until_then(memory: BeaconMemory, vllm: StandIn) -> None:
    server = VLLMServer(memory, vllm.url, salt="salt", fold=False)
    for n in range(3):
        server.chat("ada", f"{n}: {LONG}", max_new_tokens=4)
        assert memory.session("ada").info().slots == 0
    queue = memory.store.queue()
    assert queue is not None
    assert queue.counts() == Counts(1, 0, 0)
    raw = server.ask("ada", "Where?", max_new_tokens=8)
    assert raw == memory.session("ada").ask("Where?", max_new_tokens=8)
    assert FoldWorker(memory).run(until_empty=True) == 1
    folded = server.ask("ada", "Where?", max_new_tokens=8)
    assert folded == memory.session("ada").ask("Where?", max_new_tokens=8)
    assert slots(vllm) == [0, 0, 0, 0, memory.session("ada").info().slots]
    assert [message["content"] for message in memory.session("ada").messages() if message["role"] == "user"] == [
        f"{n}: {LONG}" for n in range(3)
    ]
    server.close()


def test_workers_that_are_down_cost_time_and_no_answer(memory: BeaconMemory, caplog: pytest.LogCaptureFixture) -> None:
    """What is raw grew until no question fitted any more."""
    with stand_in(memory.model, memory.store, positions=700) as vllm:
        server = VLLMServer(memory, vllm.url, fold=False)
        for n in range(20):
            server.chat("ada", f"{n}: {LONG}", max_new_tokens=4)
        assert "waited too long for a fold worker" in caplog.text
        assert memory.session("ada").info().slots > 0
        assert memory.session("ada").info().messages >= 20
        with pytest.raises(PromptTooLong):
            server.ask("ada", LONG * 40)
        with pytest.raises(PromptTooLong):
            server.chat("new", LONG * 40)
        server.close()


def test_a_session_that_grew_while_it_was_asked_about_is_answered_from_what_it_was(
    memory: BeaconMemory, vllm: StandIn
) -> None:
    memory.session("ada").add(LONG * 3)
    server = VLLMServer(memory, vllm.url, salt="salt")
    question = server.question("ada", "Where?", answer=8)
    ours = memory.session("ada").ask("Where?", max_new_tokens=8)
    memory.session("ada").add(LONG * 3, fold=False)
    while memory.session("ada").fold():
        pass
    assert server.complete(question, Sampling.of({"max_new_tokens": 8})) == ours
    server.close()


def test_what_vllm_cannot_answer_is_our_error_and_nothing_is_remembered(memory: BeaconMemory, vllm: StandIn) -> None:
    memory.session("ada").add(LONG * 3)
    before = memory.session("ada").info().version
    server = VLLMServer(memory, vllm.url, salt="another")
    with pytest.raises(ModelError, match="vLLM failed"):
        server.chat("ada", "Where?", max_new_tokens=4)
    assert memory.session("ada").info().version == before
    with pytest.raises(SessionNotFound):
        server.ask("nobody", "Where?")
    server.close()
