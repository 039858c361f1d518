from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig

from beacon_memory.config import BeaconConfig
from beacon_memory.errors import AdapterError, UnsupportedModel
from beacon_memory.models.adapter import adapter_config, packaged_adapter, published_config, save_adapter, save_scorer
from beacon_memory.models.model import BeaconModel
from beacon_memory.testing import tiny_checkpoint, tiny_model
from beacon_memory.testing.models import tiny_lm, tiny_tokenizer

GOLDEN = Path(__file__).parents[1] / "golden"


def test_other_weights_of_the_same_model_are_said_to_be_others(
    caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    """From the hub, the alias "smollm2" had an untrained memory, and nothing said why."""
    assert packaged_adapter("smollm2", tiny_lm()) is None
    assert "weights from a GGUF file and from the hub do: the memory is untrained" in caplog.text
    caplog.clear()
    assert packaged_adapter("nobody/no-such-model", tiny_lm()) is None
    assert not caplog.text
    save_adapter(tiny_model().beacons, tmp_path, config=BeaconConfig(), model="0" * 16)
    with pytest.raises(AdapterError, match=r"weights of one model from a GGUF file, quantised and from the hub differ"):
        BeaconModel(tiny_lm(), tiny_tokenizer(), adapter=tmp_path)


def trained(config: BeaconConfig, kind: str = "full", family: str = "llama") -> BeaconModel:
    """A model with beacon weights of its own, saved nowhere yet."""
    model = tiny_model(family, config=config)
    for wrapped in model.beacons.layers:
        for name in "kv" if config.layout == "select" else "qkv":
            if kind == "full":
                wrapped[name].make_full()
            else:
                wrapped[name].make_low_rank(3, reach=2 if kind == "reaching" else 0)
        wrapped["k"].make_scorer(2)
    if config.layout == "shadow":
        model.beacons.offset = torch.nn.Parameter(torch.zeros(32))
    random = torch.Generator().manual_seed(9)
    with torch.no_grad():
        for parameter in model.beacons.parameters().values():
            parameter.copy_(parameter + 0.3 * torch.randn(parameter.shape, generator=random))
            # A weight that still learns is multiplied along another path, with other last bits.
            parameter.requires_grad_(False)
    return model


def saved(model: BeaconModel, folder: Path) -> Path:
    save_adapter(model.beacons, folder, config=model.config, model=model.fingerprint.model)
    return folder


def attach(folder: Path, config: BeaconConfig | None = None, **changes: Any) -> BeaconModel:
    return BeaconModel(tiny_lm(**changes), tiny_tokenizer(), config, adapter=folder)


def rewrite(folder: Path, **changes: Any) -> None:
    """Other values in an adapter's config."""
    file = folder / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


@pytest.mark.parametrize("kind", ["full", "low-rank", "reaching"])
@pytest.mark.parametrize(
    ("layout", "anchors"), [("select", "learned+last"), ("shadow", "last"), ("interleave", "last")]
)
def test_an_adapter_comes_back_from_disk_as_it_was(
    layout: str, anchors: str, kind: str, family: str, config: BeaconConfig, ids: list[int], tmp_path: Path
) -> None:
    model = trained(config.replace(layout=layout, anchors=anchors), kind, family)
    saved(model, tmp_path / "adapter")
    again = BeaconModel(tiny_lm(family), tiny_tokenizer(), adapter=tmp_path / "adapter")
    assert again.config == model.config
    assert again.fingerprint.adapter != "none"
    parameters = again.beacons.parameters()
    assert parameters.keys() == model.beacons.parameters().keys()
    assert all(torch.equal(parameters[name], value) for name, value in model.beacons.parameters().items())
    assert not any(parameter.requires_grad for parameter in parameters.values())
    second = BeaconModel(tiny_lm(family), tiny_tokenizer(), adapter=saved(again, tmp_path / "copy"))
    assert second.fingerprint == again.fingerprint
    for one, other, first in zip(
        again.compress(ids).segments, second.compress(ids).segments, model.compress(ids).segments, strict=True
    ):
        assert one.equals(other)
        assert torch.equal(one.keys, first.keys)
        assert torch.equal(one.values, first.values)


def test_an_adapter_loads_with_from_pretrained_and_names_itself_in_the_fingerprint(
    config: BeaconConfig, tmp_path: Path
) -> None:
    folder = saved(trained(config), tmp_path / "adapter")
    checkpoint = str(tiny_checkpoint(tmp_path / "model"))
    model = BeaconModel.from_pretrained(checkpoint, adapter=folder)
    plain = BeaconModel.from_pretrained(checkpoint, config)
    assert model.config == config
    assert model.fingerprint.differences(plain.fingerprint) == ["adapter"]


def test_an_adapter_takes_other_settings_but_not_another_layout(config: BeaconConfig, tmp_path: Path) -> None:
    folder = saved(trained(config), tmp_path)
    assert attach(folder, config.replace(ratio=8)).config.ratio == 8
    with pytest.raises(AdapterError, match="trained for layout 'select', not 'shadow'"):
        attach(folder, config.replace(layout="shadow"))


def test_an_interrupted_save_leaves_the_old_adapter(config: BeaconConfig, tmp_path: Path) -> None:
    folder = saved(trained(config), tmp_path)
    (tmp_path / ".adapter.safetensors.new").write_bytes(b"half a fi")
    assert adapter_config(folder)[0] == config
    before = attach(folder).fingerprint
    saved(trained(config), tmp_path)
    assert attach(folder).fingerprint == before
    assert sorted(file.name for file in tmp_path.iterdir()) == ["adapter.safetensors", "adapter_config.json"]


# What does not fit is refused by name, and the model given back


def refused(folder: Path, match: str, **changes: Any) -> None:
    """An adapter that raises AdapterError naming what is wrong, on a model that stays as it was."""
    lm = tiny_lm(**changes)
    before = [(name, type(module)) for name, module in lm.named_modules()]
    with pytest.raises(AdapterError, match=match):
        BeaconModel(lm, tiny_tokenizer(), adapter=folder)
    assert [(name, type(module)) for name, module in lm.named_modules()] == before
    assert list(lm.state_dict()) == list(tiny_lm(**changes).state_dict())


@pytest.fixture
def folder(config: BeaconConfig, tmp_path: Path) -> Path:
    return saved(trained(config), tmp_path)


def test_an_adapter_of_another_model_is_refused_with_both_fingerprints(folder: Path) -> None:
    made_for = adapter_config(folder)[1]
    refused(folder, rf"made for base model {made_for}, this one is [0-9a-f]{{16}}", seed=1)


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[]", b"null", b"{}"])
def test_a_damaged_adapter_config_is_refused_by_its_path(content: bytes, folder: Path) -> None:
    (folder / "adapter_config.json").write_bytes(content)
    refused(folder, r"adapter_config\.json is not a readable adapter config")


@pytest.mark.parametrize(("change", "found"), [({"version": 2}, "version 2"), ({"format": "lora"}, "found lora")])
def test_an_adapter_of_another_format_or_version_is_refused(change: dict[str, Any], found: str, folder: Path) -> None:
    rewrite(folder, **change)
    refused(folder, f"expected beacon-adapter version 1, .*{found}")


def test_an_adapter_with_settings_that_cannot_work_is_refused(folder: Path) -> None:
    rewrite(folder, config={"ratio": 3})
    refused(folder, "ratio is one of")
    rewrite(folder, config={"stride": 3})
    refused(folder, "unknown setting stride")


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter.safetensors"])
def test_an_adapter_without_one_of_its_files_is_refused(name: str, folder: Path) -> None:
    (folder / name).unlink()
    refused(folder, name)


def test_damaged_or_truncated_weights_are_refused(folder: Path) -> None:
    file = folder / "adapter.safetensors"
    whole = file.read_bytes()
    for damaged in (b"", whole[:100], whole[:-1], b"\xff" * 100):
        file.write_bytes(damaged)
        refused(folder, r"adapter\.safetensors cannot be read")


def test_any_missing_tensor_is_missed_by_name(folder: Path) -> None:
    """A layer without its own full weight was taken for one that never had it, and folded with the base's."""
    file = folder / "adapter.safetensors"
    whole = load_file(file)
    for name in whole:
        save_file({other: tensor for other, tensor in whole.items() if other != name}, file)
        refused(folder, f"1 tensors are missing or unknown, first '{name}'")


@pytest.mark.parametrize(
    ("name", "tensor"),
    [
        ("layers.0.k.full.weight", torch.zeros(3, 3)),
        ("layers.1.v.full.weight", torch.zeros(32, 16)),
        ("layers.0.k.scorer.bias", torch.zeros(3)),
        ("layers.0.k.scorer.weight", torch.zeros(3, 32)),
        ("layers.0.k.scorer.weight", torch.tensor(1.0)),
        ("layers.0.k.scorer.weight", torch.zeros(0, 32)),
    ],
)
def test_a_tensor_of_another_shape_is_refused_by_name(name: str, tensor: Tensor, folder: Path) -> None:
    file = folder / "adapter.safetensors"
    save_file(load_file(file) | {name: tensor}, file)
    refused(folder, r"layers\.\d\.[kv]\.\w+\.(weight|bias) (should have|has) shape")


def test_a_tensor_that_nobody_asked_for_is_refused_by_name(folder: Path) -> None:
    file = folder / "adapter.safetensors"
    save_file(load_file(file) | {"layers.9.k.full.weight": torch.zeros(16, 32)}, file)
    refused(folder, r"first 'layers\.9\.k\.full\.weight'")


def test_a_damaged_adapter_is_refused_before_the_model_is_looked_for(folder: Path) -> None:
    rewrite(folder, version=7)
    with pytest.raises(AdapterError, match="version 7"):
        BeaconModel.from_pretrained("nobody/no-such-model", adapter=folder, local_files_only=True)


# Published checkpoints


def published(name: str, folder: Path, **changes: Any) -> Path:
    """A published checkpoint, with other values in its config.json."""
    shutil.copytree(GOLDEN / name, folder, dirs_exist_ok=True)
    tiny_tokenizer().save_pretrained(folder)
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    return folder


SHORT = {"max_position_embeddings": 1024}  # room for the default tail


def test_a_published_checkpoint_brings_its_settings_and_its_adapters_fingerprint(tmp_path: Path) -> None:
    model = BeaconModel.from_pretrained(str(published("llama-ratio4", tmp_path, **SHORT)))
    assert model.config == BeaconConfig(layout="interleave", anchors="last", window=16, ratio=4, sink=0)
    assert model.fingerprint.adapter != "none"
    assert model.fingerprint.layout == "interleave"


def test_a_published_checkpoint_takes_other_settings_but_not_another_layout(tmp_path: Path) -> None:
    folder = str(published("llama-ratio4", tmp_path))
    config = BeaconConfig(layout="interleave", anchors="last", window=32, ratio=8, sink=1, keep_last=4)
    assert BeaconModel.from_pretrained(folder, config).config == config
    with pytest.raises(AdapterError, match="trained for layout 'interleave', not 'select'"):
        BeaconModel.from_pretrained(folder, BeaconConfig(window=32, keep_last=4))


@pytest.mark.parametrize(
    "change",
    [
        {"beacon_pos": "append"},
        {"beacon_attn": "step-expansion"},
        {"beacon_param": ["q", "k", "v", "o"]},
        {"beacon_stride": 8},
        {"beacon_attend_prev": False},
    ],
    ids=lambda change: next(iter(change)),
)
def test_a_checkpoint_of_an_earlier_generation_is_refused_by_its_field(change: dict[str, Any], tmp_path: Path) -> None:
    (name, value), folder = next(iter(change.items())), published("llama-ratio4", tmp_path, **change)
    with pytest.raises(UnsupportedModel, match=f"another generation: {name} is ") as raised:
        BeaconModel.from_pretrained(str(folder))
    assert repr(value) in str(raised.value)


def test_a_model_that_names_no_beacons_is_no_published_checkpoint() -> None:
    assert published_config(LlamaConfig()) is None
    ratios = LlamaConfig(beacon_window=1024, beacon_ratio=[2, 4, 8, 16, 32])
    found = published_config(ratios, keep_last=0)
    assert found == BeaconConfig(layout="interleave", anchors="last", window=1024, ratio=8, sink=0, keep_last=0)


@pytest.mark.parametrize("name", ["llama-ratio4", "qwen2-ratio8"])
def test_any_missing_tensor_of_a_published_checkpoint_is_missed_by_name(name: str, tmp_path: Path) -> None:
    """A checkpoint without one of its layers' projections folded with the base's there."""
    config = BeaconConfig(layout="interleave", anchors="last", window=16, ratio=4, sink=0, keep_last=3)
    lm = AutoModelForCausalLM.from_pretrained(GOLDEN / name, dtype=torch.float32)
    whole = load_file(GOLDEN / name / "model.safetensors")
    beacons = [tensor for tensor in whole if "beacon" in tensor]
    assert len(beacons) == (7 if name.startswith("llama") else 13)
    for missing in beacons:
        file = tmp_path / "model.safetensors"
        save_file({other: tensor for other, tensor in whole.items() if other != missing}, file)
        with pytest.raises(AdapterError, match=missing):
            BeaconModel(lm, tiny_tokenizer(), config, published=[str(file)])
        assert not any(module.endswith(".base") for module, _ in lm.named_modules())


def test_low_rank_deltas_that_do_not_fit_together_are_refused(config: BeaconConfig, tmp_path: Path) -> None:
    model = trained(config, "reaching")
    saved(model, tmp_path)
    tensors = load_file(tmp_path / "adapter.safetensors")
    tensors["layers.0.k.down.weight"] = tensors["layers.0.k.down.weight"][:12].clone()  # four rows' worth
    save_file(tensors, tmp_path / "adapter.safetensors")
    with pytest.raises(AdapterError, match="no odd multiple of rank 3"):
        BeaconModel(model.detach(), tiny_tokenizer(), adapter=tmp_path)


def test_a_scorer_alone_chooses_the_same_anchors_and_changes_nothing_of_them(tmp_path):
    config = BeaconConfig(window=16, keep_last=4, sink=2, anchors="learned", slot_dtype="float32")
    whole = saved(trained(config, "low-rank"), tmp_path / "whole")
    save_scorer(whole, tmp_path / "alone")
    alone = attach(tmp_path / "alone")
    assert alone.config == config
    assert all(".scorer." in name for name in alone.beacons.parameters())
    raw, kept = attach(tmp_path / "alone", config.replace(anchors="last")), attach(whole)
    ids = list(range(3, 21))
    first = alone.compress(ids, close=True).segments[0]
    every = raw.compress(ids, close=True, ratio=1).segments[0]
    # Each slot of the first layer is the raw key of one of the tokens.
    found = [(every.keys[0, 0] - key).abs().amax(dim=-1).min() for key in first.keys[0, 0]]
    assert max(found) < 1e-5
    changed = kept.compress(ids, close=True).segments[0]
    assert not torch.allclose(changed.values, first.values)
    assert torch.equal(changed.keys[0, 0, :2], first.keys[0, 0, :2])


def test_an_adapter_without_a_scorer_has_none_to_save(tmp_path):
    model = tiny_model()
    model.beacons.layers[0]["v"].make_low_rank(2)
    with pytest.raises(AdapterError, match="has no scorer"):
        save_scorer(saved(model, tmp_path / "whole"), tmp_path / "alone")
    assert not (tmp_path / "alone").exists()
