"""The same memory on a GPU: what is folded, asked, kept and trained there is what a CPU makes of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from beacon_memory import BeaconConfig, BeaconMemory, BeaconModel
from beacon_memory.stores.sqlite import SqliteStore
from beacon_memory.testing.models import tiny_lm, tiny_tokenizer
from beacon_memory.training.data import Corpus
from beacon_memory.training.examples import Mixture
from beacon_memory.training.fit import fit_anchors
from beacon_memory.training.trainer import Plan, train
from benchmarks.speed.gpu import flash_attentions

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA"),
]
CONFIG = BeaconConfig(ratio=4, window=32, keep_last=8, sink=2, anchors="last", slot_dtype="float32")
TEXT = "The door was open and the room was empty. Anna went in, looked around and sat down at the table by the window. "
CLOSE: dict[str, Any] = {"rtol": 1e-3, "atol": 1e-3}


@pytest.fixture(autouse=True)
def exact_products():
    """Products of float32 in float32, as a CPU computes them."""
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False
    yield
    torch.backends.cuda.matmul.allow_tf32 = before


def made(device: str, config: BeaconConfig = CONFIG, family: str = "llama", **changes: Any) -> BeaconModel:
    return BeaconModel(tiny_lm(family, **changes).to(device), tiny_tokenizer(), config)


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "qwen3"])
@pytest.mark.parametrize(
    ("layout", "anchors"),
    [("select", "last"), ("select", "reconstruct"), ("shadow", "surprise"), ("interleave", "last")],
)
def test_a_gpu_folds_as_a_cpu_does(layout: str, anchors: str, family: str) -> None:
    config = CONFIG.replace(layout=layout, anchors=anchors)
    here, there = made("cpu", config, family), made("cuda", config, family)
    ids = here.encode(TEXT * 3)
    one, other = here.compress(ids), there.compress(ids)
    assert other.tail == one.tail
    assert len(other.segments) == len(one.segments) > 2
    for expected, found in zip(one.segments, other.segments, strict=True):
        torch.testing.assert_close(found.keys.cpu(), expected.keys, **CLOSE)
        torch.testing.assert_close(found.values.cpu(), expected.values, **CLOSE)
    torch.testing.assert_close(there.logits(ids[:9], other).cpu(), here.logits(ids[:9], one), rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("slot_dtype", ["float32", "bfloat16", "int8", "int4"])
def test_a_session_goes_from_gpu_to_cpu_and_back(tmp_path: Path, slot_dtype: str) -> None:
    config = CONFIG.replace(slot_dtype=slot_dtype)
    for number, device in enumerate(("cuda", "cpu", "cuda")):
        memory = BeaconMemory(made(device, config), SqliteStore(tmp_path / "memory.db"))
        session = memory.session("a")
        session.add([{"role": "user", "content": TEXT}, {"role": "assistant", "content": "Who sat down?"}])
        assert len(session.messages()) == 2 * number + 2
        assert isinstance(str(session.ask("Where did she sit?", max_new_tokens=4)), str)
        memory.close()


def test_a_batch_on_a_gpu_answers_as_each_alone() -> None:
    model = made("cuda")
    states = [model.compress(model.encode(TEXT * n)) for n in (1, 2, 4)]
    prompts = [model.encode(text) for text in ("Who?", "Where did Anna sit down?", "Was the door open?")]
    pairs = zip(prompts, states, strict=True)
    alone = [model.answers([prompt], [state], max_new_tokens=6)[0] for prompt, state in pairs]
    assert model.answers(prompts, states, max_new_tokens=6) == alone


@pytest.mark.parametrize("learn", ["beacons", "anchors"])
def test_a_run_on_a_gpu_learns_and_leaves_an_adapter_for_a_cpu(tmp_path: Path, learn: str) -> None:
    model = made("cuda", CONFIG.replace(anchors="reconstruct"))
    fit_anchors(model, [TEXT * 40], tokens=2000, seed=0)
    model.adapted(model.config.replace(anchors="spread"))
    mixture = Mixture(text=1, question=0, dialogue=0, windows=(32,), ratios=(2, 4), depth=3, batch=4, tail=24)
    plan = Plan(steps=6, warmup=1, rank=4, reach=1, learning_rate=0.01, workers=2, learn=learn)
    train(model, Corpus([TEXT * 40]), tmp_path / "run", plan=plan, mixture=mixture)
    ids = model.encode(TEXT * 3)
    here = BeaconModel(tiny_lm(), tiny_tokenizer(), model.config, adapter=tmp_path / "run")
    one, other = here.compress(ids), model.compress(ids)
    for expected, found in zip(one.segments, other.segments, strict=True):
        torch.testing.assert_close(found.values.cpu(), expected.values, rtol=0.02, atol=0.02)


@pytest.mark.skipif(torch.cuda.is_available() and not flash_attentions(), reason="needs flash-attn")
@pytest.mark.parametrize("layout", ["select", "shadow"])
def test_flash_attention_folds_and_answers_as_sdpa_does(layout: str) -> None:
    config = CONFIG.replace(layout=layout, slot_dtype="bfloat16")
    wide = {"hidden_size": 256, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 64}
    states, logits = [], []
    for attention in ("sdpa", flash_attentions()[0]):
        lm = tiny_lm(attn_implementation=attention, **wide).to("cuda", torch.bfloat16)
        model = BeaconModel(lm, tiny_tokenizer(), config)
        ids = model.encode(TEXT * 3)
        states.append(model.compress(ids))
        logits.append(model.logits(ids[:8], states[0]).float())
    for one, other in zip(states[0].segments, states[1].segments, strict=True):
        scale = one.keys.float().std()
        assert (one.keys.float() - other.keys.float()).abs().mean() < 0.03 * scale
    assert (logits[0] - logits[1]).abs().mean() < 0.05 * logits[0].std()
