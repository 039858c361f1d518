"""The fold against the paper's published code, against plain transformers, and against itself trained."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM, DynamicCache
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from beacon_memory.config import BeaconConfig
from beacon_memory.errors import AdapterError
from beacon_memory.fold.fold import fold
from beacon_memory.fold.prefix import Rope
from beacon_memory.models.model import BeaconModel
from beacon_memory.models.resident import CACHE
from beacon_memory.state.state import BeaconState
from beacon_memory.testing.models import tiny_lm, tiny_model, tiny_tokenizer

GOLDEN = Path(__file__).parents[1] / "golden"
YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 512}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
RAW_MODELS = [
    pytest.param("llama", {}, id="llama"),
    pytest.param("mistral", {}, id="mistral"),
    pytest.param("qwen2", {}, id="qwen2"),
    pytest.param("qwen3", {}, id="qwen3"),
    pytest.param("llama", {"rope_parameters": LLAMA3}, id="llama3-rope"),
    pytest.param("qwen2", {"rope_parameters": YARN}, id="yarn"),
    pytest.param("qwen3", {"rope_parameters": YARN}, id="yarn-normed"),
]
FOLDS = [
    ("select", "last"),
    ("select", "surprise"),
    ("select", "reconstruct+last"),
    ("shadow", "last"),
    ("shadow", "reconstruct"),
    ("interleave", "last"),
]


def far(found: Tensor, expected: Tensor) -> float:
    """The largest error, relative to the largest number."""
    return float((found - expected).abs().max() / expected.abs().max())


# The paper's layout


@pytest.mark.parametrize("loading", ["given", "from_pretrained"])
@pytest.mark.parametrize("name", ["llama-ratio4", "qwen2-ratio8"])
def test_interleave_equals_the_published_code(name: str, loading: str, tmp_path: Path) -> None:
    folder = GOLDEN / name
    settings = json.loads((folder / "config.json").read_text())
    config = BeaconConfig(
        layout="interleave",
        anchors="last",
        window=settings["beacon_window"],
        ratio=settings["beacon_ratio"][0],
        sink=0,
        keep_last=3,
        slot_dtype="float32",
    )
    if loading == "given":
        lm = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        model = BeaconModel(lm, tiny_tokenizer(), config, published=[str(folder / "model.safetensors")])
    else:
        shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
        tiny_tokenizer().save_pretrained(tmp_path)
        model = BeaconModel.from_pretrained(str(tmp_path), config)
    expected = load_file(folder / "expected.safetensors")
    state = model.compress(expected["input_ids"][0].tolist())
    assert len(state.tail) == expected["tail_logits"].shape[1]
    assert far(torch.cat([s.keys for s in state.segments], dim=2), expected["beacon_keys"]) < 1e-4
    assert far(torch.cat([s.values for s in state.segments], dim=2), expected["beacon_values"]) < 1e-4
    logits = model.logits(state.tail, BeaconState(state.segments))
    assert far(logits, expected["tail_logits"][0]) < 1e-4


# Untrained slots are what plain transformers would have kept


class Plain:
    """Plain transformers on a model of its own: raw keys before RoPE, rotated keys, values, and logits."""

    def __init__(self, family: str, ids: list[int], *, past: DynamicCache | None = None, **changes: Any) -> None:
        lm = tiny_lm(family, **changes)
        cache = past or DynamicCache(config=lm.config)
        start = cache.get_seq_length()
        keys: list[Tensor] = []
        hooks = []
        for layer in lm.model.layers:
            source = getattr(layer.self_attn, "k_norm", layer.self_attn.k_proj)
            hooks.append(source.register_forward_hook(lambda *called: keys.append(called[2])))
        with torch.inference_mode():
            mask = torch.ones(1, start + len(ids), dtype=torch.long)
            self.logits = lm(torch.tensor([ids]), attention_mask=mask, **{CACHE: cache}).logits[0]
        # (layers, kv_heads, tokens, head_dim)
        self.keys = torch.stack([found.view(len(ids), 2, 8).transpose(0, 1) for found in keys])
        self.rotated = torch.stack([layer.keys[0, :, start:] for layer in cache.layers])
        self.values = torch.stack([layer.values[0, :, start:] for layer in cache.layers])
        self.lm = lm


def cache_of(state: BeaconState, family: str, **changes: Any) -> DynamicCache:
    """A state as any engine would take it: slots rotated at 0, 1, 2, ..."""
    lm = tiny_lm(family, **changes)
    cache = DynamicCache(config=lm.config)
    for layer in range(lm.config.num_hidden_layers if state.segments else 0):
        keys = torch.cat([segment.keys[layer] for segment in state.segments], dim=1)
        values = torch.cat([segment.values[layer] for segment in state.segments], dim=1)
        cache.update(Rope(lm.model.rotary_emb).rotate(keys, start=0)[None], values[None], layer)
    return cache


@pytest.mark.parametrize("layout", ["select", "shadow"])
def test_an_untrained_slot_is_its_anchors_raw_key_and_value(
    layout: str, family: str, config: BeaconConfig, ids: list[int]
) -> None:
    deep = {"num_hidden_layers": 3}  # what a slot hands on to a slot shows from the third layer on
    model = tiny_model(family, config=config.replace(layout=layout), **deep)
    state = model.compress(ids[:42])
    first, second = state.segments
    anchors = [0, 1, 5, 9, 13, 17]  # two sinks, then the last of each unit of four
    raw = Plain(family, ids[:18], **deep)
    if layout == "select":
        assert torch.equal(first.keys, raw.keys[:, :, anchors])
        assert torch.equal(first.values, raw.values[:, :, anchors])
    else:
        assert far(first.keys, raw.keys[:, :, anchors]) < 2e-6
        assert far(first.values, raw.values[:, :, anchors]) < 2e-6
    # The second window, read by transformers behind a cache filled with the first one's slots.
    raw = Plain(family, ids[18:34], past=cache_of(BeaconState((first,)), family, **deep), **deep)
    assert far(second.keys, raw.keys[:, :, [3, 7, 11, 15]]) < 5e-6
    assert far(second.values, raw.values[:, :, [3, 7, 11, 15]]) < 5e-6


def test_surprise_takes_the_tokens_that_transformers_predicts_worst(config: BeaconConfig, ids: list[int]) -> None:
    model = tiny_model(config=config.replace(anchors="surprise"))
    segment = model.compress(ids[:30]).segments[0]
    raw = Plain("llama", ids[:18])
    losses = torch.nn.functional.cross_entropy(raw.logits[:-1], torch.tensor(ids[1:18]), reduction="none")
    worst = losses[1:].topk(4).indices.sort().values + 2  # sinks are kept anyway
    assert torch.equal(segment.keys[:, :, 2:], raw.keys[:, :, worst])


@pytest.mark.parametrize("size", [16, 128 + 16])  # within a block of queries, and beyond one
def test_reconstruct_takes_what_each_head_looks_at_when_the_window_is_read_again(
    size: int, config: BeaconConfig, ids: list[int], family: str
) -> None:
    model = tiny_model(family, config=config.replace(anchors="reconstruct", window=size))
    first = model.compress(ids[: 2 + size], close=True).segments[0]
    second = model.compress(ids[2 : 2 + size], BeaconState((first,)), close=True, ratio=4).segments[1]
    lm = tiny_lm(family, attn_implementation="eager")
    for segment, past in ((first, BeaconState()), (second, BeaconState((first,)))):
        if past.slots > 16:
            continue  # of a longer past the repeat pass sees the front alone
        window, sink, front = list(segment.ids), segment.sink, past.slots
        with torch.inference_mode():
            attentions = lm(
                torch.tensor([window + window]),
                attention_mask=torch.ones(1, front + 2 * len(window), dtype=torch.long),
                **{CACHE: cache_of(past, family)},
                output_attentions=True,
            ).attentions
        raw = Plain(family, window, past=cache_of(past, family))
        for layer, attention in enumerate(attentions):
            # Two query heads share a KV head; each first token counts by the most that anyone pays it.
            again = attention[0, :, len(window) :, front + sink : front + len(window)]
            paid = again.amax(dim=1).view(2, 2, size).amax(dim=1)
            for head in range(2):
                best = paid[head].topk(size // 4).indices.sort().values + sink
                torch.testing.assert_close(segment.keys[layer, head, sink:], raw.keys[layer, head, best])
                torch.testing.assert_close(segment.values[layer, head, sink:], raw.values[layer, head, best])


@pytest.mark.parametrize(("family", "changes"), RAW_MODELS)
def test_a_window_at_ratio_one_equals_plain_transformers(
    family: str, changes: dict[str, Any], config: BeaconConfig, ids: list[int]
) -> None:
    model = tiny_model(family, config=config.replace(ratio=1), **changes)
    state = model.compress(ids[:100])
    assert state.slots + len(state.tail) == 100
    raw = Plain(family, ids[:130], **changes)
    torch.testing.assert_close(model.logits(ids[100:130], state), raw.logits[100:], rtol=1e-4, atol=1e-4)
    generated = raw.lm.generate(
        torch.tensor([ids[:130]]),
        attention_mask=torch.ones(1, 130, dtype=torch.long),
        max_new_tokens=40,
        do_sample=False,
    )
    answer = model.decode(generated[0, 130:].tolist())
    assert answer
    assert model.generate([ids[100:130]], [state], max_new_tokens=40) == [answer]


@pytest.mark.parametrize(
    ("layout", "anchors", "scoring"),  # scoring: passes that read the last layer whole to choose anchors
    [
        ("select", "last", 0),
        ("select", "surprise", 1),  # it asks how each token was predicted
        ("select", "reconstruct", 0),
        ("select", "reconstruct+last", 0),
        ("shadow", "last", 0),
        ("shadow", "surprise", 2),
        ("shadow", "reconstruct", 0),
        ("interleave", "last", 0),
    ],
)
@pytest.mark.parametrize("ratio", [1, 4])
def test_slots_are_the_same_bits_whether_or_not_the_last_states_are_wanted(
    ratio: int, layout: str, anchors: str, scoring: int, config: BeaconConfig, ids: list[int]
) -> None:
    config = config.replace(layout=layout, anchors=anchors)
    model, rows = tiny_model(config=config), torch.tensor([ids[:18]])
    read: list[int] = []
    hook = model.lm.model.layers[-1].mlp.register_forward_hook(lambda *_: read.append(1))
    how: dict[str, Any] = {"ratio": ratio, "sink": 2, "config": model.config}
    with torch.inference_mode():
        whole, enough = (fold(model.beacons, model.empty, rows, **how, states=states) for states in (True, False))
    hook.remove()
    assert torch.equal(whole.keys, enough.keys)
    assert torch.equal(whole.values, enough.values)
    assert whole.hidden.shape[1] == 18
    assert len(read) == 1 + (scoring if ratio == 4 else 0)
    # The model is as it was.
    assert model.generate([ids[:9]], max_new_tokens=4) == tiny_model(config=config).generate(
        [ids[:9]], max_new_tokens=4
    )


@pytest.mark.parametrize("ratio", [1, 4])
def test_a_window_behind_an_overlap_leaves_what_its_tokens_have_behind_those(
    ratio: int, config: BeaconConfig, ids: list[int]
) -> None:
    model = tiny_model(config=config)
    raw, rows = Plain("llama", ids[:19]), torch.tensor([ids[:19]])
    with torch.inference_mode():
        folded = fold(model.beacons, model.empty, rows, ratio=ratio, sink=0, overlap=3, config=config)
    places = list(range(3, 19)) if ratio == 1 else [6, 10, 14, 18]
    torch.testing.assert_close(folded.keys[:, 0], raw.keys[:, :, places])
    torch.testing.assert_close(folded.values[:, 0], raw.values[:, :, places])
    assert folded.hidden.shape[1] == 16


@pytest.mark.parametrize("rope", [YARN, LLAMA3], ids=["yarn", "llama3"])
def test_slots_are_kept_without_what_rope_does_to_them(
    rope: dict[str, Any], config: BeaconConfig, ids: list[int], family: str
) -> None:
    """YaRN multiplies an attention factor into its cosines; kept in the slots, it would count twice on recall."""
    model = tiny_model(family, config=config, rope_parameters=rope)
    segment = model.compress(ids[:30]).segments[0]
    raw = Plain(family, ids[:18], rope_parameters=rope)
    if rope is YARN:
        assert raw.lm.model.rotary_emb.attention_scaling == pytest.approx(0.1 * math.log(4) + 1)
    assert torch.equal(segment.keys, raw.keys[:, :, [0, 1, 5, 9, 13, 17]])
    back = Rope(model.lm.model.rotary_emb)
    for slot, place in enumerate([0, 1, 5, 9, 13, 17]):
        rotated = back.rotate(segment.keys[:, :, slot : slot + 1], start=place)
        torch.testing.assert_close(rotated, raw.rotated[:, :, place : place + 1], rtol=1e-5, atol=1e-5)


def test_a_trained_shadow_beacon_sees_what_its_anchor_saw_with_the_beacons_in_their_anchors_places(
    config: BeaconConfig, ids: list[int]
) -> None:
    model = tiny_model(config=config.replace(layout="shadow"), num_hidden_layers=3)
    trainable(model, "full", "qkv")
    segment = model.compress(ids[:30]).segments[0]
    raw = Plain("llama", ids[:18], num_hidden_layers=3)
    anchors = [5, 9, 13, 17]
    cos, sin = raw.lm.model.rotary_emb(torch.empty(0), position_ids=torch.tensor([anchors]))
    with torch.inference_mode():
        hidden = raw.lm.model.embed_tokens(torch.tensor([ids[place] for place in anchors]))
        for index, layer in enumerate(raw.lm.model.layers):
            normed = layer.input_layernorm(hidden)
            query, key, value = (
                model.beacons.layers[index][name].beacon(normed).view(4, -1, 8).transpose(0, 1) for name in "qkv"
            )
            torch.testing.assert_close(segment.keys[index, :, 2:], key, rtol=1e-4, atol=1e-4)
            torch.testing.assert_close(segment.values[index, :, 2:], value, rtol=1e-4, atol=1e-4)
            rotated_query, rotated_key = apply_rotary_pos_emb(query[None], key[None], cos, sin)
            attended = []
            for beacon, anchor in enumerate(anchors):
                keys, values = raw.rotated[index, :, : anchor + 1].clone(), raw.values[index, :, : anchor + 1].clone()
                keys[:, anchors[: beacon + 1]] = rotated_key[0, :, : beacon + 1]
                values[:, anchors[: beacon + 1]] = value[:, : beacon + 1]
                grouped = rotated_query[0, :, beacon].view(2, 2, 8)
                chances = (grouped @ keys.mT / 8**0.5).softmax(-1)
                attended.append((chances @ values).reshape(32))
            hidden = hidden + layer.self_attn.o_proj(torch.stack(attended))
            hidden = hidden + layer.mlp(layer.post_attention_layernorm(hidden))


# Several streams at once


@pytest.mark.parametrize(("layout", "anchors"), FOLDS)
def test_streams_folded_together_are_folded_as_each_alone(
    layout: str, anchors: str, config: BeaconConfig, ids: list[int]
) -> None:
    config = config.replace(layout=layout, anchors=anchors)
    model = tiny_model(config=config, num_hidden_layers=3)
    rows = torch.tensor([ids[:34], ids[50:84], ids[100:134]])

    def two_windows(rows: Tensor) -> Tensor:
        past = model.empty
        for sink, window in ((2, rows[:, :18]), (0, rows[:, 18:])):
            folded = fold(model.beacons, past, window, ratio=4, sink=sink, config=config)
            past = past.append(folded.keys, folded.values)
        assert past.keys is not None
        assert past.values is not None
        return torch.stack([past.keys, past.values])

    with torch.inference_mode():
        together = two_windows(rows)
        for row in range(3):
            torch.testing.assert_close(
                together[:, :, row : row + 1], two_windows(rows[row : row + 1]), rtol=1e-4, atol=1e-4
            )


# Trained


def trainable(model: BeaconModel, kind: str, projections: str) -> dict[str, torch.nn.Parameter]:
    """Beacon weights a step away from their start, the base frozen."""
    for parameter in model.lm.parameters():
        parameter.requires_grad_(False)
    for wrapped in model.beacons.layers:
        for name in projections:
            wrapped[name].make_full() if kind == "full" else wrapped[name].make_low_rank(4)
    parameters = model.beacons.parameters()
    random = torch.Generator().manual_seed(11)
    with torch.no_grad():
        for parameter in parameters.values():
            parameter.copy_(parameter + 0.05 * torch.randn(parameter.shape, generator=random))
    return parameters


def loss_of(model: BeaconModel, ids: list[int]) -> tuple[Tensor, Tensor]:
    """What the second window's slots sum to, and the first window's keys that they were read behind."""
    config = model.config
    first = fold(model.beacons, model.empty, torch.tensor([ids[:18]]), ratio=4, sink=2, config=config)
    first.keys.retain_grad()
    past = model.empty.append(first.keys, first.values)
    second = fold(model.beacons, past, torch.tensor([ids[18:34]]), ratio=4, sink=0, config=config)
    return second.keys.sum() + second.values.sum(), first.keys


@contextmanager
def checkpointing(lm: Any) -> Iterator[None]:
    lm.activation_checkpointing_enable({"use_reentrant": False})
    lm.train()
    yield
    lm.eval()
    lm.activation_checkpointing_disable()


@pytest.mark.parametrize("kind", ["full", "low-rank"])
@pytest.mark.parametrize(
    ("layout", "anchors", "projections"),
    [
        ("select", "last", "kv"),
        ("select", "reconstruct", "kv"),
        ("shadow", "last", "qkv"),
        ("shadow", "surprise", "qkv"),
        ("interleave", "last", "qkv"),
    ],
)
def test_beacon_weights_learn_through_windows_with_and_without_checkpointing(
    layout: str, anchors: str, projections: str, kind: str, family: str, config: BeaconConfig, ids: list[int]
) -> None:
    model = tiny_model(family, config=config.replace(layout=layout, anchors=anchors))
    weights = trainable(model, kind, projections)
    loss, first = loss_of(model, ids)
    loss.backward()
    assert first.grad is not None
    assert first.grad.abs().sum() > 0
    gradients = {}
    for name, weight in weights.items():
        # Nothing that the last layer attends to comes back into a slot, so its queries have nothing to learn here.
        if name.startswith("layers.1.q."):
            assert weight.grad is None or not weight.grad.any()
            continue
        assert weight.grad is not None, name
        assert weight.grad.abs().sum() > 0, name
        gradients[name], weight.grad = weight.grad, None
    assert all(parameter.grad is None for name, parameter in model.lm.named_parameters() if "base" in name)
    runs: list[None] = []
    model.lm.model.layers[0].mlp.register_forward_pre_hook(lambda *_: runs.append(None))
    with checkpointing(model.lm):
        again, _ = loss_of(model, ids)
        assert torch.equal(again, loss)
        forward = len(runs)
        again.backward()
        assert len(runs) > forward  # it did read again what it had let go
    for name, gradient in gradients.items():
        found = weights[name].grad
        assert found is not None, name
        torch.testing.assert_close(found, gradient, rtol=1e-4, atol=1e-4)


def test_where_beacons_start_is_learned_too(config: BeaconConfig, ids: list[int]) -> None:
    for layout, name in (("shadow", "offset"), ("interleave", "embedding")):
        model = tiny_model(config=config.replace(layout=layout))
        trainable(model, "full", "qkv")
        start = torch.nn.Parameter(torch.randn(32, generator=torch.Generator().manual_seed(3)))
        setattr(model.beacons, name, start)
        loss_of(model, ids)[0].backward()
        assert start.grad is not None
        assert start.grad.abs().sum() > 0


def test_a_gradient_is_what_a_small_step_changes(config: BeaconConfig, ids: list[int]) -> None:
    model = tiny_model(config=config)
    weights = trainable(model, "full", "kv")
    loss, _ = loss_of(model, ids)
    loss.backward()
    weight = weights["layers.0.v.full.weight"]
    assert weight.grad is not None
    direction = weight.grad / weight.grad.norm()
    losses = []
    for step in (-1e-2, 1e-2):
        with torch.no_grad():
            weight.add_(step * direction)
            losses.append(float(loss_of_without_grad(model, ids)))
            weight.sub_(step * direction)
    assert (losses[1] - losses[0]) / 2e-2 == pytest.approx(float(weight.grad.norm()), rel=0.02)


def loss_of_without_grad(model: BeaconModel, ids: list[int]) -> Tensor:
    with torch.enable_grad():
        return loss_of(model, ids)[0].detach()


# Learned anchors have their place


def test_learned_anchors_need_a_scorer_and_say_so(config: BeaconConfig, ids: list[int]) -> None:
    model = tiny_model(config=config.replace(anchors="learned"))
    with pytest.raises(AdapterError, match="need an adapter with a scorer"):
        model.compress(ids)


def test_learned_anchors_are_what_the_scorer_says_of_the_layers_input(config: BeaconConfig, ids: list[int]) -> None:
    model = tiny_model(config=config.replace(anchors="learned"))
    random = torch.Generator().manual_seed(2)
    inputs: list[Tensor] = []
    for layer, wrapped in zip(model.lm.model.layers, model.beacons.layers, strict=True):
        wrapped["k"].make_scorer(2)
        scorer = wrapped["k"].scorer
        assert scorer is not None
        with torch.no_grad():
            scorer.weight.copy_(torch.randn(2, 32, generator=random))
        layer.input_layernorm.register_forward_hook(lambda *called: inputs.append(called[2]))
    segment = model.compress(ids[:30]).segments[0]
    raw = Plain("llama", ids[:18])
    for layer in range(2):
        scorer = model.beacons.layers[layer]["k"].scorer
        assert scorer is not None
        with torch.inference_mode():
            scores = scorer(inputs[layer])[0].T[:, 2:]
        for head in range(2):
            best = scores[head].topk(4).indices.sort().values + 2
            assert torch.equal(segment.keys[layer, head, 2:], raw.keys[layer, head, best])


def test_spread_anchors_are_told_what_the_heads_of_layers_below_kept(config: BeaconConfig, ids: list[int]) -> None:
    model = tiny_model(config=config.replace(anchors="learned"))
    for wrapped in model.beacons.layers:
        wrapped["k"].make_scorer(2)
        scorer = wrapped["k"].scorer
        assert scorer is not None
        with torch.no_grad():  # all heads of a layer want the same tokens
            scorer.weight.copy_(torch.randn(1, 32, generator=torch.Generator().manual_seed(2)).expand(2, 32))
    learned = model.compress(ids[:30]).segments[0]
    model.adapted(config.replace(anchors="spread"))
    spread = model.compress(ids[:30]).segments[0]
    assert spread.digest != learned.digest
    assert spread.keys.shape == learned.keys.shape
    assert torch.equal(spread.keys[0, 0], learned.keys[0, 0])  # nothing is kept yet
    assert not torch.equal(spread.keys[0, 1], learned.keys[0, 1])
    raw = Plain("llama", ids[:18])
    kept = {
        _row_of(key, raw.keys[layer, head])
        for layer in (0, 1)
        for head in (0, 1)
        for key in spread.keys[layer, head, 2:]
    }
    assert len(kept) > 8  # of sixteen tokens four heads that agree would keep four


def _row_of(key: Tensor, rows: Tensor) -> int:
    return int((rows - key).abs().sum(dim=-1).argmin())
