"""Attaching changes nothing until a pass is handed down, and detaching leaves no trace."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import flash_attention_mask
from transformers.modeling_flash_attention_utils import _is_packed_sequence

from beacon_memory.config import BeaconConfig
from beacon_memory.errors import ModelError
from beacon_memory.fold.attention import Beacons
from beacon_memory.fold.projections import BeaconProjection, _current
from beacon_memory.models.model import BeaconModel
from beacon_memory.testing.models import tiny_lm, tiny_model, tiny_tokenizer

ATTENTION = ["sdpa", "eager"]


def plain(lm: Any, ids: Sequence[int]) -> Tensor:
    """The model's logits by transformers alone."""
    with torch.inference_mode():
        logits: Tensor = lm(torch.tensor([list(ids)])).logits[0]
    return logits


def perturb(beacons: Beacons) -> None:
    """Beacon weights far from where they start."""
    random = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in beacons.parameters().values():
            parameter.add_(torch.randn(parameter.shape, generator=random))


@pytest.mark.parametrize("attention", ATTENTION)
def test_an_attached_model_without_beacons_gives_the_base_models_logits(
    family: str, attention: str, config: BeaconConfig, ids: list[int]
) -> None:
    lm = tiny_lm(family, attn_implementation=attention)
    before = plain(lm, ids)
    model = BeaconModel(lm, tiny_tokenizer(), config)
    assert torch.equal(plain(model.lm, ids), before)


@pytest.mark.parametrize("attention", ATTENTION)
def test_detaching_gives_the_base_model_back(family: str, attention: str, config: BeaconConfig, ids: list[int]) -> None:
    def seen(lm: Any) -> list[Any]:
        modules = [(name, type(module), getattr(module, "config", None)) for name, module in lm.named_modules()]
        hooks = [
            [getattr(module, kind) for kind in ("_forward_hooks", "_forward_pre_hooks", "_forward_hooks_always_called")]
            for module in lm.modules()
        ]
        attributes = [sorted(vars(module)) for module in lm.modules()]
        return [modules, hooks, attributes, lm.config.to_dict(), lm.config._attn_implementation, list(lm.state_dict())]

    lm = tiny_lm(family, attn_implementation=attention)
    before, weights, logits = seen(lm), {k: v.clone() for k, v in lm.state_dict().items()}, plain(lm, ids)
    model = BeaconModel(lm, tiny_tokenizer(), config)
    for wrapped in model.beacons.layers:
        for projection in wrapped.values():
            projection.make_full()
    perturb(model.beacons)
    model.generate([ids[:4]], [model.compress(ids)], max_new_tokens=3)
    assert seen(lm) != before
    assert model.detach() is lm
    assert seen(lm) == before
    assert all(torch.equal(lm.state_dict()[name], weight) for name, weight in weights.items())
    assert torch.equal(plain(lm, ids), logits)


@pytest.mark.parametrize("kind", ["full", "low-rank"])
def test_only_beacon_weights_differ_from_the_base_model(
    family: str, kind: str, config: BeaconConfig, ids: list[int]
) -> None:
    model = tiny_model(family, config=config)
    untrained = model.compress(ids)
    base = {name: weight.clone() for name, weight in model.lm.state_dict().items()}
    logits = plain(model.lm, ids)
    for wrapped in model.beacons.layers:
        for projection in wrapped.values():
            projection.make_full() if kind == "full" else projection.make_low_rank(3)
    # Where training starts: a copy, or a delta of zero.
    for new, old in zip(model.compress(ids).segments, untrained.segments, strict=True):
        torch.testing.assert_close(new.keys, old.keys)
        torch.testing.assert_close(new.values, old.values)
    perturb(model.beacons)
    assert all(torch.equal(model.lm.state_dict()[name], weight) for name, weight in base.items())
    assert torch.equal(plain(model.lm, ids), logits)
    trained = model.compress(ids)
    assert not torch.allclose(trained.segments[0].keys, untrained.segments[0].keys, atol=0.1)


@pytest.mark.parametrize(
    ("layout", "anchors"),
    [("select", "last"), ("select", "reconstruct"), ("shadow", "surprise"), ("interleave", "last")],
)
def test_eager_attention_folds_as_sdpa_does(
    layout: str, anchors: str, config: BeaconConfig, ids: list[int], family: str
) -> None:
    """The first window, which has no past and so no mask, was read by eager attention as if nothing were causal."""
    config = config.replace(layout=layout, anchors=anchors)
    sdpa, eager = (tiny_model(family, config=config, attn_implementation=name).compress(ids[:60]) for name in ATTENTION)
    for one, other in zip(sdpa.segments, eager.segments, strict=True):
        torch.testing.assert_close(one.keys, other.keys, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(one.values, other.values, rtol=1e-4, atol=1e-4)


def flash_reference(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
) -> tuple[Tensor, None]:
    """What transformers' flash-attn function makes of its arguments, without the kernel: it finds its own name in the
    module's config, takes positions that start again for packed texts, and aligns its mask to the newest key.
    """
    assert module.config._attn_implementation == "flash_reference"
    assert not _is_packed_sequence(kwargs.get("position_ids"), len(query))
    rows, columns = query.shape[2], key.shape[2]
    seen = torch.ones(rows, columns, dtype=torch.bool).tril(columns - rows)
    if attention_mask is not None:
        seen = seen & attention_mask[:, None, None, :].bool()
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    attended = torch.nn.functional.scaled_dot_product_attention(query, key, value, seen, scale=kwargs["scaling"])
    return attended.transpose(1, 2), None


@pytest.mark.parametrize(
    ("layout", "anchors"), [("select", "last"), ("select", "reconstruct"), ("shadow", "last"), ("interleave", "last")]
)
def test_flash_attention_is_called_as_transformers_would_call_it(
    layout: str, anchors: str, config: BeaconConfig, ids: list[int]
) -> None:
    """It was given the name "beacon" to look up, and a shadow's positions, which it takes for packed texts."""
    AttentionInterface.register("flash_reference", flash_reference)
    AttentionMaskInterface.register("flash_reference", flash_attention_mask)
    config = config.replace(layout=layout, anchors=anchors)
    sdpa = tiny_model(config=config)
    lm = tiny_lm()
    lm.config._attn_implementation = "flash_reference"
    flash = BeaconModel(lm, sdpa.tokenizer, config)
    one, other = sdpa.compress(ids[:80]), flash.compress(ids[:80])
    for expected, found in zip(one.segments, other.segments, strict=True):
        torch.testing.assert_close(found.keys, expected.keys, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(flash.logits(ids[80:90], one), sdpa.logits(ids[80:90], one), rtol=1e-4, atol=1e-4)


def test_a_model_that_carries_beacons_is_not_given_a_second_set(
    config: BeaconConfig, model_of: Callable[..., BeaconModel]
) -> None:
    """Two sets looked each other's attention up until the stack overflowed."""
    model = model_of(config)
    with pytest.raises(ModelError, match="carries beacons already"):
        BeaconModel(model.lm, model.tokenizer, config)
    assert model.compress(list(range(3, 40))).slots > 0


def test_detaching_twice_is_detaching_once_and_a_detached_model_can_be_attached_again(
    config: BeaconConfig, ids: list[int]
) -> None:
    """The second time failed, over layers that were not there any more."""
    model = tiny_model(config=config)
    state = model.compress(ids)
    model.detach()
    lm = model.detach()
    assert BeaconModel(lm, model.tokenizer, config).compress(ids).equals(state)


def test_a_fold_that_fails_leaves_no_pass_behind(config: BeaconConfig, ids: list[int]) -> None:
    model = tiny_model(config=config)
    logits = plain(model.lm, ids)
    broken = model.lm.model.layers[0].self_attn.o_proj.register_forward_hook(_fail)
    with pytest.raises(RuntimeError, match="a layer broke"):
        model.compress(ids)
    broken.remove()
    assert _current.get() is None
    assert torch.equal(plain(model.lm, ids), logits)


def _fail(*_: Any) -> None:
    raise RuntimeError("a layer broke")


def test_a_delta_with_reach_adds_what_its_neighbours_have_for_it() -> None:
    base = torch.nn.Linear(6, 4)
    projection = BeaconProjection(base, layer=0, name="v", sizes=(6, 4), dtype=torch.float32)
    projection.make_low_rank(3, reach=2)
    assert projection.down is not None
    assert projection.up is not None
    rows = torch.randn(2, 7, 6)
    torch.testing.assert_close(projection.beacon(rows), base(rows))  # zero at the start
    torch.nn.init.normal_(projection.up.weight)
    own = projection.down.weight.view(5, 3, 6)
    for row in range(7):
        lowered = sum(rows[:, row + offset] @ own[offset + 2].T for offset in range(-2, 3) if 0 <= row + offset < 7)
        expected = base(rows[:, row]) + lowered @ projection.up.weight.T
        torch.testing.assert_close(projection.beacon(rows)[:, row], expected)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("kind", ["none", "full", "delta", "reaching delta"])
def test_anchors_projected_alone_are_those_of_all_rows(kind: str, bias: bool) -> None:
    projection = BeaconProjection(
        torch.nn.Linear(6, 8, bias=bias), layer=0, name="v", sizes=(6, 8), dtype=torch.float32
    )
    if kind == "full":
        projection.make_full()
    elif kind != "none":
        projection.make_low_rank(3, reach=2 if kind.startswith("reaching") else 0)
    for parameter in projection.parameters():
        torch.nn.init.normal_(parameter)
    hidden = torch.randn(2, 9, 6)
    anchors = torch.stack([torch.stack([torch.randperm(9)[:4].sort()[0] for _ in range(2)]) for _ in range(2)])
    own = projection.beacon_at(hidden, anchors, based=projection.base(hidden))
    everywhere = projection.beacon(hidden).view(2, 9, 2, 4).transpose(1, 2)
    torch.testing.assert_close(own, everywhere.gather(2, anchors[..., None].expand(-1, -1, -1, 4)))


def test_a_padded_batch_has_the_base_models_logits(family: str, ids: list[int], config: BeaconConfig) -> None:
    lm = tiny_lm(family)
    rows, mask = torch.tensor([ids[:12], [0] * 5 + ids[:7]]), torch.tensor([[1] * 12, [0] * 5 + [1] * 7])
    with torch.inference_mode():
        before = lm(rows, attention_mask=mask).logits
        model = BeaconModel(lm, tiny_tokenizer(), config)
        assert torch.equal(model.lm(rows, attention_mask=mask).logits, before)
