"""`beacon-memory check`: what a memory makes of a model, told without its weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoConfig

from beacon_memory.cli.check import about
from beacon_memory.config import BeaconConfig
from beacon_memory.errors import ModelError, UnsupportedModel
from beacon_memory.fold.family import FAMILIES
from beacon_memory.models.model import BeaconModel
from beacon_memory.testing import tiny_checkpoint


def weightless(folder: Path, family: str = "llama", **changes: Any) -> Path:
    """A checkpoint's folder, its weights not there."""
    (tiny_checkpoint(folder, family, **changes) / "model.safetensors").unlink()
    return folder


def only_config(folder: Path, **settings: Any) -> str:
    (folder / "config.json").write_text(json.dumps(settings))
    return str(folder)


def test_a_model_is_told_without_its_weights(command, tmp_path):
    folder = str(weightless(tmp_path))
    code, out, err = command("check", folder)
    assert (code, err) == (0, "")
    for told in (
        "family     llama (Llama 2, 3.x",
        "layers     2: 2 full",
        "positions  2048",
        "2 KV heads of 8 in each layer",
        "a raw token: 128 B",
        "a system prompt: in front",
        "calls: in our words",
        f"beacon-memory fit-anchors TEXTS --model {folder} --out FOLDER",
    ):
        assert told in out
    code, out, _ = command("check", folder, "--json")
    assert json.loads(out)["bytes"]["a slot, bfloat16"] == 128


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_is_told_and_costs_what_it_costs(family, tmp_path):
    told = about(str(tiny_checkpoint(tmp_path, family)))
    assert told["family"].startswith(f"{family} (")
    model = BeaconModel.from_pretrained(tmp_path, BeaconConfig(window=16, keep_last=4), local_files_only=True)
    assert told["bytes"]["a raw token"] == model.raw_bytes_per_token
    segment = model.compress(list(range(3, 60))).segments[0]
    assert told["bytes"]["a slot, bfloat16"] * segment.slots == segment.keys.nbytes + segment.values.nbytes
    read = 0 if segment.recurrent is None else segment.recurrent.nbytes
    assert told["bytes"].get("a segment's recurrent state", 0) == read


def test_windows_and_layers_without_rope_are_told(tmp_path):
    sliding, ropeless = (about(str(tiny_checkpoint(tmp_path / f, f))) for f in ("gemma3_text", "smollm3"))
    assert sliding["layers"] == "2: 1 full, 1 sliding over 24 entries"
    assert "keep_last=24" in sliding["kept"]
    assert ropeless["layers"] == "2: 2 full; 1 of them without RoPE"
    assert "keep_last" not in ropeless["kept"]


def test_recurrent_layers_are_told(tmp_path):
    told = about(str(weightless(tmp_path, "qwen3_5_text", num_hidden_layers=5)))
    assert told["layers"] == "5: 2 full, 3 recurrent"
    assert "each full layer; at the end of each segment what the recurrent layers have read" in told["kept"]


def test_layers_that_read_the_keys_of_others_and_layers_of_several_sizes_are_told(tmp_path):
    told = about(str(weightless(tmp_path, "gemma4_text", num_hidden_layers=4, num_kv_shared_layers=2)))
    assert told["layers"] == "4: 1 full, 2 reading the keys and values of others, 1 sliding over 24 entries"
    assert (
        "2 KV heads of 16 in each layer that has its own (what a layer has less is filled with zeros)" in told["kept"]
    )
    assert told["bytes"] | {"a raw token": 192, "a slot, bfloat16": 256} == told["bytes"]


def test_longrope_is_told_with_the_positions_that_are_used(tmp_path):
    rope = {"rope_type": "longrope", "rope_theta": 10000.0, "short_factor": [1.0] * 4, "long_factor": [8.0] * 4}
    folder = weightless(tmp_path, "phi3", rope_parameters=rope, original_max_position_embeddings=1024)
    assert about(str(folder))["positions"] == "1024 of 2048: those within which LongRoPE's short factors hold"


def test_a_config_without_kv_heads_has_as_many_as_query_heads(tmp_path):
    folder = weightless(tmp_path)
    settings = json.loads((folder / "config.json").read_text())
    del settings["num_key_value_heads"]
    told = about(only_config(folder, **settings))
    assert "4 KV heads of 8" in told["kept"]
    assert told["bytes"]["a raw token"] == 256


def test_a_model_without_a_template_talks_in_lines(tmp_path):
    folder = weightless(tmp_path)
    (folder / "chat_template.jinja").unlink()
    assert about(str(folder))["template"]["a talk"] == "lines of text, there is no template"


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"model_type": "jamba"}, "'jamba' is not supported: it has recurrent layers.*nearest: granitemoehybrid "),
        ({"model_type": "gemma3"}, "it reads more than text.*nearest: gemma3_text "),
        ({"model_type": "my_own_net"}, "'my_own_net' is not supported; supported: llama,"),
        ({"model_type": "my_own_net", "auto_map": {"AutoConfig": "x.Y"}}, "'my_own_net' is not supported"),
        ({"model_type": "gpt2"}, "'gpt2' is not supported; supported: llama,"),
    ],
)
def test_what_is_not_supported_is_refused_by_name_by_the_check_and_by_loading(command, tmp_path, settings, said):
    folder = only_config(tmp_path, **settings)
    with pytest.raises(UnsupportedModel, match=said):
        about(folder)
    with pytest.raises(UnsupportedModel, match=said):
        BeaconModel.from_pretrained(folder, local_files_only=True)
    code, out, err = command("check", folder)
    assert (code, out) == (2, "")
    assert f"'{settings['model_type']}' is not supported" in err


def test_a_checkpoint_that_sees_is_no_text_model(tmp_path):
    AutoConfig.for_model("gemma3").save_pretrained(tmp_path)
    with pytest.raises(UnsupportedModel, match="take a text-only checkpoint"):
        about(str(tmp_path))


@pytest.mark.parametrize("damaged", ["", "{", "[]", "{}"])
def test_a_config_that_is_none_is_a_model_error(tmp_path, damaged):
    (tmp_path / "config.json").write_text(damaged)
    with pytest.raises(ModelError):
        about(str(tmp_path))
    with pytest.raises(ModelError, match="no model directory"):
        about(str(tmp_path / "nowhere"))
