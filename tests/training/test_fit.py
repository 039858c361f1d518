"""Fitting the learned anchors: closed form, deterministic, the base untouched."""

from __future__ import annotations

import pytest
import torch

from beacon_memory import BeaconConfig
from beacon_memory.errors import AdapterError, InputError
from beacon_memory.fold.fold import embed, look_back, read
from beacon_memory.fold.passes import RawPass
from beacon_memory.fold.prefix import Prefix, Rope
from beacon_memory.models.adapter import save_adapter
from beacon_memory.models.model import BeaconModel
from beacon_memory.testing import tiny_model
from beacon_memory.training.fit import _Regression, fit_anchors

CONFIG = BeaconConfig(window=64, sink=2, keep_last=8)
TEXT = " ".join(f"The {i}th door is {('red', 'green', 'blue')[i * i % 3]} and opens {i % 7} times." for i in range(200))


def test_the_regression_finds_the_weights_that_made_the_data():
    draw = torch.Generator().manual_seed(0)
    inputs = torch.randn(4000, 6, generator=draw)
    true = torch.randn(6, 4, generator=draw)
    targets = inputs @ true + torch.tensor([5.0, -3.0, 0.0, 1.0])
    sums = _Regression(6, 2)
    for part in range(0, 4000, 500):
        sums.add(inputs[part : part + 500], targets[part : part + 500])
    weight, bias = sums.solve()
    standardised = (targets - targets.mean(0)) / targets.std(0, correction=0)
    both = standardised[:, :2] + standardised[:, 2:]
    torch.testing.assert_close(inputs @ weight.float().T + bias.float(), both, atol=0.01, rtol=0.01)


def test_fitting_makes_learned_anchors_work_and_leaves_the_base_alone():
    model, plain = tiny_model(config=CONFIG), tiny_model(config=CONFIG)
    before = model.fingerprint
    seen: list[int] = []
    fit_anchors(model, [TEXT], tokens=2000, progress=seen.append)
    assert sum(seen) <= 2000
    assert model.config.anchors == "learned"
    assert model.fingerprint.differences(before) == ["adapter"]
    assert model.compress(model.encode(TEXT)).slots > 0
    assert torch.equal(model.logits([5, 6, 7]), plain.logits([5, 6, 7]))


def test_fitting_twice_gives_the_same_scorer():
    models = [tiny_model(config=CONFIG) for _ in range(2)]
    for model in models:
        fit_anchors(model, [TEXT], tokens=1200)
    assert models[0].fingerprint == models[1].fingerprint


def test_a_fitted_scorer_ranks_tokens_as_looking_back_does():
    model = tiny_model(config=CONFIG)
    fit_anchors(model, [TEXT], tokens=12_000)
    ids = torch.tensor([model.encode(TEXT[1000:])[:64]])
    with torch.inference_mode():
        raw = RawPass(Prefix(Rope(model.lm.model.rotary_emb), model.lm.dtype, model.lm.device), 64, rotated=True)
        embedded = embed(model.lm, ids)
        read(model.lm, raw, embedded, torch.arange(64))
        looked = look_back(model.lm, raw, embedded)
    pairs = [(raw.scores[n][0, h, 2:], looked[n][0, h, 2:].log()) for n in range(2) for h in range(2)]
    agreement = [float(torch.corrcoef(torch.stack(pair))[0, 1]) for pair in pairs]
    assert sum(agreement) / len(agreement) > 0.3


def test_an_adapter_of_a_fitted_scorer_folds_the_same(tmp_path):
    fitted = tiny_model(config=CONFIG)
    fit_anchors(fitted, [TEXT], tokens=1200)
    save_adapter(fitted.beacons, tmp_path, config=fitted.config, model=fitted.fingerprint.model)
    plain = tiny_model(config=CONFIG)
    loaded = BeaconModel(plain.detach(), plain.tokenizer, adapter=tmp_path)
    assert loaded.fingerprint == fitted.fingerprint
    ids = fitted.encode(TEXT)
    assert loaded.compress(ids).equals(fitted.compress(ids))


def test_learned_anchors_without_a_scorer_say_what_to_do():
    with pytest.raises(AdapterError, match="fit one"):
        tiny_model(config=CONFIG.replace(anchors="learned")).compress(range(100))


def test_texts_too_short_to_fit_on_are_refused():
    with pytest.raises(InputError, match="at least"):
        fit_anchors(tiny_model(config=CONFIG), ["short"])
