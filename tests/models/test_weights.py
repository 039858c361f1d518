"""Whatever is called like a Linear works: the laws over quantised, packed and offloaded weights, and over a LoRA.

Where the packages are not installed (`pip install beacon-memory[weights]`), their kinds are skipped.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from kinds import KINDS, Kind, Packed, broken, lora, packed, spread, table, weighted
from laws import CONFIG, IDS, LAWS, plain_logits
from transformers import BitsAndBytesConfig, DynamicCache

from beacon_memory.errors import TrainingError, UnsupportedModel
from beacon_memory.fold.projections import dense
from beacon_memory.models.loading import model_fingerprint
from beacon_memory.models.model import BeaconModel
from beacon_memory.models.resident import CACHE
from beacon_memory.testing.models import tiny_checkpoint, tiny_lm, tiny_tokenizer
from beacon_memory.training.data import Corpus
from beacon_memory.training.examples import Mixture
from beacon_memory.training.trainer import Plan
from beacon_memory.training.trainer import train as run

DOC = Path(__file__).parents[2] / "docs" / "models.md"
for name in ("bitsandbytes", "accelerate", "torchao"):  # what they have to say of CPUs
    logging.getLogger(name).setLevel(logging.ERROR)
pytestmark = pytest.mark.filterwarnings("default")  # theirs too


def needs(kind: Kind) -> None:
    if not kind.there:
        pytest.skip(f"needs {kind.package}")


CASES = [("llama", kind, law) for kind in KINDS for law in kind.laws] + [
    # Of a fused projection each share is called by itself.
    ("phi3", kind, law)
    for kind in KINDS
    for law in ("attach", "ratio 1", "adapter", "learn")
    if law in kind.laws
]


@pytest.mark.parametrize(
    ("family", "kind", "law"), CASES, ids=[f"{family}-{kind.of.__name__}-{law}" for family, kind, law in CASES]
)
def test_a_law_holds_for_weights_of_a_kind(family: str, kind: Kind, law: str) -> None:
    needs(kind)
    if (found := broken(family, kind, law)) is not None:
        raise found


def test_the_documents_table_of_weights_is_what_the_laws_give() -> None:
    for kind in KINDS:
        needs(kind)
    assert "\n".join(table()) in DOC.read_text()


def test_where_rows_are_rounded_by_call_a_memory_differs_as_the_plain_model_in_two_pieces_does() -> None:
    """LLM.int8 rounds the rows of a call by what is in them: the model alone gives other numbers for other pieces."""
    kind = next(kind for kind in KINDS if kind.rounds)
    needs(kind)
    case = weighted("llama", kind)
    lm, whole = case.plain(), plain_logits(case.plain(), IDS[:130])[100:]
    with torch.inference_mode():
        cache = DynamicCache()
        lm(torch.tensor([IDS[:100]]), **{CACHE: cache})
        pieces = lm(torch.tensor([IDS[100:130]]), **{CACHE: cache}).logits[0]
    found = case.model.logits(IDS[100:130], case.model.compress(IDS[:100], ratio=1))
    usual = float((pieces - whole).abs().mean())
    assert 0 < float((found - whole).abs().mean()) < 2 * usual


def test_a_base_is_only_ever_called() -> None:
    """A packed Linear has no weight to copy: full beacon weights are what it does to an identity matrix."""
    linear = torch.nn.Linear(32, 16)
    base = Packed(linear)
    weight, bias = dense(base, features=32, device=torch.device("cpu"), dtype=torch.float32)
    rows = torch.randn(5, 32)
    torch.testing.assert_close(torch.nn.functional.linear(rows, weight, bias), base(rows))
    assert float((weight - linear.weight.detach()).abs().max()) > 0.001  # it has lost something


def test_other_weights_are_another_model_and_where_they_are_kept_is_not() -> None:
    plain = model_fingerprint(tiny_lm())
    assert model_fingerprint(spread(tiny_lm())) == plain
    assert model_fingerprint(spread(tiny_lm(tie_word_embeddings=True))) == model_fingerprint(
        tiny_lm(tie_word_embeddings=True)
    )
    one, other = packed(tiny_lm()), packed(tiny_lm())
    assert model_fingerprint(one) == model_fingerprint(other) != plain
    codes = other.model.layers[1].self_attn.k_proj.qweight
    codes += 1  # numbers that are in no parameter
    assert model_fingerprint(one) != model_fingerprint(other)


def test_beacons_are_trained_beside_packed_weights_and_refused_beside_those_on_a_disk(tmp_path: Path) -> None:
    text = "In the beginning was the word, and the word was with her and the others. " * 60
    mixture = Mixture(text=1, question=0, dialogue=0, windows=(32,), ratios=(4,), tail=16)
    how: dict[str, Any] = {"plan": Plan(steps=2, rank=2, reach=0, learning_rate=0.1), "mixture": mixture}
    model = BeaconModel(packed(tiny_lm()), tiny_tokenizer(), CONFIG)
    before = model.compress(IDS[:60])
    run(model, Corpus(texts=[text]), tmp_path, **how)
    assert not model.compress(IDS[:60]).equals(before)
    assert {weight.dtype for weight in model.beacons.parameters().values()} == {torch.float32}
    model = BeaconModel(spread(tiny_lm()), tiny_tokenizer(), CONFIG)
    with pytest.raises(TrainingError, match="load it whole"):
        run(model, Corpus(texts=[text]), tmp_path, **how)


def test_a_checkpoint_is_loaded_over_two_devices(tmp_path: Path) -> None:
    folder = tiny_checkpoint(tmp_path / "model")
    plain = BeaconModel.from_pretrained(folder, CONFIG)
    where = {"model.embed_tokens": "cpu", "model.layers.0": "cpu", "model.layers.1": "disk", "model.norm": "cpu"}
    where |= {"model.rotary_emb": "cpu", "lm_head": "disk"}
    split = BeaconModel.from_pretrained(folder, CONFIG, device_map=where, offload_folder=str(tmp_path / "disk"))
    assert split.lm.lm_head.weight.is_meta
    assert split.fingerprint == plain.fingerprint
    state = split.compress(IDS)
    assert state.equals(plain.compress(IDS))
    assert split.generate([IDS[:4]], [state], max_new_tokens=4) == plain.generate([IDS[:4]], [state], max_new_tokens=4)


def test_a_checkpoint_is_quantised_when_it_is_loaded(tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    how = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")
    model = BeaconModel.from_pretrained(tiny_checkpoint(tmp_path), CONFIG, quantization_config=how)
    assert model.lm.model.layers[0].mlp.up_proj.weight.dtype == torch.uint8
    assert model.generate([IDS[:4]], [model.compress(IDS)], max_new_tokens=4)


def test_a_lora_is_part_of_the_model_and_its_wrapper_comes_back() -> None:
    pytest.importorskip("peft")
    wrapped = lora(tiny_lm())
    model = BeaconModel(wrapped, tiny_tokenizer(), CONFIG)
    assert model.fingerprint.model != model_fingerprint(tiny_lm())
    assert model.generate([IDS[:4]], [model.compress(IDS)], max_new_tokens=3)
    assert model.detach() is wrapped


def test_which_lora_is_active_is_which_model_it_is() -> None:
    peft = pytest.importorskip("peft")
    wrapped = lora(tiny_lm())
    wrapped.add_adapter("other", peft.LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM"))
    found = set()
    for name in ("default", "other"):
        wrapped.set_adapter(name)
        found.add(model_fingerprint(wrapped.get_base_model()))
    with wrapped.disable_adapter():
        found.add(model_fingerprint(wrapped.get_base_model()))
    assert len(found) == 3


def test_a_prompt_that_peft_has_learned_is_refused() -> None:
    peft = pytest.importorskip("peft")
    config: Any = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4)
    with pytest.raises(UnsupportedModel, match="PROMPT_TUNING puts a prompt in front of each call"):
        BeaconModel(peft.get_peft_model(tiny_lm(), config), tiny_tokenizer())


def test_every_law_is_known() -> None:
    assert all(set(kind.laws) <= set(LAWS) for kind in KINDS)
