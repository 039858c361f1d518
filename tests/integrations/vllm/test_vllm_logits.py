"""vLLM's log-probabilities behind folded sessions are ours within 1e-3, and those behind another session's memory are
not (`make test-vllm`; SmolLM2, float32, a CPU).
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import httpx
import pytest
import torch
from running import ROOT, running_vllm, write_model
from vllm_beacon import VLLMServer
from vllm_beacon.client import Question

from beacon_memory import BeaconMemory

pytestmark = [pytest.mark.vllm, pytest.mark.real_model]

STORY = (ROOT / "examples" / "kjv_stories.txt").read_text()
# Slots by ratio: from one to 4,096, at the edges of vLLM's blocks of 128 and of windows of 512 tokens, and between.
SLOTS = {
    1: (1, 127, 512, 4096),
    2: (1, 128, 300, 1024),
    4: (1, 129, 515, 1024),
    8: (1, 64, 200, 512),
    16: (1, 33, 128, 256),
    32: (1, 16, 63, 128),
}
CONTEXTS = ("short", "long")


@dataclass(frozen=True)
class Asked:
    """A question, and what we answer it with: the next token's log-probabilities."""

    name: str
    question: Question
    ours: torch.Tensor  # (vocabulary)

    @property
    def raw(self) -> tuple[int, ...]:
        """What is read behind the memory."""
        return self.question.ids[self.question.asked.slots :]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("logits")
    write_model(folder)
    return folder


@pytest.fixture(scope="module")
def memory(folder: Path) -> Iterator[BeaconMemory]:
    """Sessions of all sizes, half of them with a raw tail, and two documents to read in front of them."""
    with BeaconMemory.open("smollm2", store=f"sqlite:///{folder / 'memory.db'}") as memory:
        ids = memory.model.encode(STORY)
        for ratio, counts in SLOTS.items():
            for slots in counts:
                text = memory.model.decode(ids[slots : slots + slots * ratio])
                session = memory.session(f"{ratio}x {slots}", ratio=ratio)
                session.add_text(text, name="story")
                session.fork(f"{ratio}x {slots} tail").add("My name is Ada, and I live in Lyon.")
        memory.context("short").add_text(STORY[:300], name="short")
        memory.context("long").add_text(STORY[3000:8000], name="long")
        yield memory


def asked(memory: BeaconMemory, server: VLLMServer, name: str, *contexts: str) -> Asked:
    question = server.question(name, "What is this text about?", contexts=contexts, answer=1)
    state = memory.view(name, memory.state)[0]
    for context in reversed(contexts):
        state = memory.view(f"context:{context}", memory.state)[0].join(state.segments)
    # The tail is in the prompt already, as it is in vLLM's.
    logits = memory.model.logits(question.ids[question.asked.slots :], replace(state, tail=()))
    return Asked(" + ".join([*contexts, name]), question, logits[-1].log_softmax(-1))


def told(server: VLLMServer, one: Asked) -> dict[int, float]:
    """vLLM's twenty likeliest tokens, with their log-probabilities."""
    body = {
        "model": server.model,
        "prompt": list(one.question.ids),
        "kv_transfer_params": one.question.asked.params(),
        "max_tokens": 1,
        "temperature": 0.0,
        "logprobs": 20,
        "return_tokens_as_token_ids": True,
    }
    said = httpx.post(f"{server.vllm.url}/v1/completions", json=body, timeout=900)
    assert said.is_success, said.text
    theirs = said.json()["choices"][0]["logprobs"]["top_logprobs"][0]
    assert len(theirs) >= 20
    return {int(token.partition(":")[2]): value for token, value in theirs.items()}


def far(ours: torch.Tensor, theirs: dict[int, float]) -> float:
    """The largest difference among these tokens."""
    return max(abs(float(ours[token]) - value) for token, value in theirs.items())


def others(questions: list[Asked]) -> list[Asked]:
    """For each question the next one that is the same behind another memory."""
    found = []
    for n, one in enumerate(questions):
        same = [other for other in questions[n + 1 :] + questions[:n] if other.raw == one.raw]
        found.append(same[0])
    return found


@pytest.mark.parametrize("caching", [True, False], ids=["prefix caching", "no prefix caching"])
def test_log_probabilities_are_ours_within_a_thousandth(memory: BeaconMemory, folder: Path, caching: bool) -> None:
    option = "--enable-prefix-caching" if caching else "--no-enable-prefix-caching"
    names = [f"{ratio}x {slots}{tail}" for ratio in SLOTS for slots in SLOTS[ratio] for tail in ("", " tail")]
    with running_vllm(folder, f"sqlite:///{folder / 'memory.db'}", positions=8192, options=[option]) as vllm:
        server = vllm.server(memory)
        questions = [asked(memory, server, name) for name in names]
        for ratio in SLOTS:
            questions.append(asked(memory, server, f"{ratio}x 128" if ratio in (2, 16, 32) else f"{ratio}x 1", "long"))
            questions.append(asked(memory, server, f"{ratio}x 1 tail", "short", "long"))
        assert len(questions) == 60
        assert {1, 4096} <= {one.question.asked.slots for one in questions}
        with ThreadPoolExecutor(16) as many:  # one batch, as far as the cache has room
            said = [list(many.map(lambda one: told(server, one), questions)) for _ in range(2)]
        server.close()
    cold, hot = ([far(one.ours, theirs) for one, theirs in zip(questions, turn, strict=True)] for turn in said)
    another = [far(one.ours, theirs) for one, theirs in zip(others(questions), said[0], strict=True)]
    print(f"\n{len(questions)} sessions, twice, caching {caching}: at most {max(cold):.1e}, again {max(hot):.1e}")
    print(f"beside the same question behind another memory: at least {min(another):.1e}")
    assert [(one.name, d) for one, d in zip(questions, cold, strict=True) if d > 1e-3] == []
    assert [(one.name, d) for one, d in zip(questions, hot, strict=True) if d > 1e-3] == []
    assert [(one.name, d) for one, d in zip(questions, another, strict=True) if d <= 1e-3] == []
