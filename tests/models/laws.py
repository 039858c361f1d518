"""What holds for every model family, as functions of a tiny model: `test_families.py` runs each over all of them.

A law fails by an AssertionError. Each compares with transformers alone, on another model of the same weights.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import dataclass, field
from functools import cache, cached_property
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import DynamicCache

from beacon_memory.config import BeaconConfig
from beacon_memory.fold.family import FAMILIES, FULL, RECURRENT, Family, kv_heads, slot_shapes
from beacon_memory.fold.fold import embed, read
from beacon_memory.fold.passes import SeekPass
from beacon_memory.models.families import REFUSED
from beacon_memory.models.loading import Weights as ModelWeights
from beacon_memory.models.model import BeaconModel
from beacon_memory.models.resident import CACHE, ResidentPrefix
from beacon_memory.sessions.memory import BeaconMemory
from beacon_memory.state.state import BeaconState
from beacon_memory.testing.models import tiny_lm, tiny_tokenizer
from beacon_memory.training.fit import fit_anchors
from beacon_memory.training.objective import Example, Objective, Weights

CONFIG = BeaconConfig(ratio=4, window=16, anchors="last", sink=2, keep_last=5, slot_dtype="float32")
IDS = random.Random(7).choices(range(3, 300), k=200)
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 512}
PARTIAL = {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5}
LONG = {
    "rope_parameters": {
        "rope_type": "longrope",
        "rope_theta": 10000.0,
        "partial_rotary_factor": 0.5,
        "short_factor": [1.0, 1.5],
        "long_factor": [3.0, 9.0],
    },
    "original_max_position_embeddings": 512,
}
GEMMA4_LARGE = {
    "hidden_size_per_layer_input": 0,
    "attention_k_eq_v": True,
    "num_global_key_value_heads": 1,
    "enable_moe_block": True,
    "num_experts": 4,
    "top_k_experts": 2,
    "moe_intermediate_size": 32,
}
QWEN_SLIDING = {"use_sliding_window": True, "sliding_window": 24, "max_window_layers": 1}


@dataclass(frozen=True)
class Case:
    """A family, and what its configuration has otherwise than the smallest one."""

    name: str
    family: Family
    changes: dict[str, Any] = field(default_factory=dict)
    note: str = ""  # what the variant is, for the table

    def plain(self, **changes: Any) -> Any:
        """The language model alone."""
        return tiny_lm(self.family.name, **deepcopy({"num_hidden_layers": 3, **self.changes, **changes}))

    def made(self, config: BeaconConfig = CONFIG, **changes: Any) -> BeaconModel:
        """The same weights with beacons, made anew."""
        return BeaconModel(self.plain(**changes), tiny_tokenizer(), config)

    @cached_property
    def model(self) -> BeaconModel:
        """One for laws that leave it as they found it."""
        return self.made()

    def plain_cache(self, lm: Any) -> tuple[DynamicCache, list[Any]]:
        """A cache of transformers' own that forgets nothing, and what gives its layers that attend, once it is used."""
        if not self.family.recurrent:
            cache = DynamicCache()
            return cache, cache.layers
        cache = DynamicCache(config=lm.config)
        return cache, [cache.layers[layer.index] for layer in self.family.layers(lm.config)]


CASES = [Case(name, family) for name, family in FAMILIES.items()] + [
    Case("llama-3.1", FAMILIES["llama"], {"rope_parameters": LLAMA3}, "RoPE scaled as in Llama 3.1"),
    Case("llama-shared", FAMILIES["llama"], {"num_key_value_heads": 1}, "one KV head"),
    Case("llama-biased", FAMILIES["llama"], {"attention_bias": True}, "biased projections"),
    Case("phi3-partial", FAMILIES["phi3"], {"rope_parameters": PARTIAL}, "half of the channels rotated"),
    Case("phi3-longrope", FAMILIES["phi3"], LONG, "LongRoPE (Phi-3.5, Phi-4-mini)"),
    Case("qwen3-yarn", FAMILIES["qwen3"], {"rope_parameters": YARN}, "YaRN"),
    Case(
        "gemma4-shared",
        FAMILIES["gemma4_text"],
        {"num_hidden_layers": 4, "num_kv_shared_layers": 2},
        "upper layers read the keys of lower ones (E2B, E4B)",
    ),
    Case("gemma4-experts", FAMILIES["gemma4_text"], GEMMA4_LARGE, "values are keys, experts (26B-A4B, 31B)"),
    Case("mistral-sliding", FAMILIES["mistral"], {"sliding_window": 24}, "every layer sliding (Mistral 7B v0.1)"),
    Case("qwen2-sliding", FAMILIES["qwen2"], QWEN_SLIDING, "upper layers sliding"),
    Case("qwen3-sliding", FAMILIES["qwen3"], QWEN_SLIDING, "upper layers sliding"),
    Case("qwen3_moe-sliding", FAMILIES["qwen3_moe"], QWEN_SLIDING, "every layer sliding"),
    Case("phi3-sliding", FAMILIES["phi3"], {"sliding_window": 24}, "every layer sliding (Phi-3-mini-4k)"),
    Case(
        "qwen3_5-full-last", FAMILIES["qwen3_5_text"], {"layer_types": [FULL, RECURRENT[0], FULL]}, "a full layer last"
    ),
]


def plain_logits(lm: Any, ids: list[int]) -> Tensor:
    """The logits by transformers alone.  # (ids, vocabulary)"""
    with torch.inference_mode():
        logits: Tensor = lm(torch.tensor([ids])).logits[0]
    return logits


def own(slots: Tensor, kept: Tensor) -> Tensor:
    """A slot's numbers in a layer without what fills them up to the shape of all layers: zeros.

    # (kv_heads, head_dim) both
    """
    heads, width = kept.shape
    assert not slots[heads:].any()
    assert not slots[:, width:].any()
    return slots[:heads, :width]


def close(found: Tensor, expected: Tensor, tolerance: float = 1e-4) -> None:
    """Equal but for rounding, relative to the largest number."""
    assert found.shape == expected.shape
    assert float((found - expected).abs().max()) <= tolerance * float(expected.abs().max())


def attach(case: Case) -> None:
    """Beacons change no bit of the model, padded batches included."""
    lm = case.plain()
    rows, mask = torch.tensor([IDS[:40], [0] * 9 + IDS[:31]]), torch.tensor([[1] * 40, [0] * 9 + [1] * 31])
    with torch.inference_mode():
        before, padded = plain_logits(lm, IDS), lm(rows, attention_mask=mask).logits
        attached = BeaconModel(lm, tiny_tokenizer(), CONFIG).lm
        assert torch.equal(plain_logits(attached, IDS), before)
        assert torch.equal(attached(rows, attention_mask=mask).logits, padded)


def detach(case: Case) -> None:
    """The model comes back as it was: weights, names, hooks, configuration and logits."""

    def seen(lm: Any) -> list[Any]:
        kinds = ("_forward_hooks", "_forward_pre_hooks", "_forward_hooks_always_called")
        modules = [(name, type(module), getattr(module, "config", None)) for name, module in lm.named_modules()]
        hooks = [[getattr(module, kind) for kind in kinds] for module in lm.modules()]
        return [modules, hooks, [sorted(vars(m)) for m in lm.modules()], lm.config.to_dict(), list(lm.state_dict())]

    lm = case.plain()
    logits = plain_logits(lm, IDS)  # LongRoPE keeps something from its first forward on
    before = seen(lm)
    weights = {name: weight.clone() for name, weight in ModelWeights(lm).items()}
    model = BeaconModel(lm, tiny_tokenizer(), CONFIG)
    train(model, kind="full")
    model.generate([IDS[:4]], [model.compress(IDS)], max_new_tokens=3)
    assert seen(lm) != before
    assert model.detach() is lm
    assert seen(lm) == before
    found = ModelWeights(lm)
    assert found.keys() == weights.keys()
    assert all(torch.equal(found[name], weight) for name, weight in weights.items())
    assert torch.equal(plain_logits(lm, IDS), logits)


def pieces(case: Case) -> None:
    """A stream in any pieces leaves the same segments, bit for bit."""
    model, overlap = case.model, 0 if case.family.recurrent else 3

    @settings(max_examples=5, deadline=None, database=None)
    @given(
        cuts=st.lists(st.integers(1, 120), max_size=6, unique=True), anchors=st.sampled_from(["last", "reconstruct"])
    )
    def any_pieces(cuts: list[int], anchors: str) -> None:
        model.adapted(CONFIG.replace(anchors=anchors, overlap=overlap))
        state, ends = BeaconState(), [0, *sorted(cuts), 120]
        for start, end in pairwise(ends):
            state = model.compress(IDS[start:end], state)
        assert state.equals(model.compress(IDS[:120]))

    try:
        any_pieces()
    finally:
        model.adapted(CONFIG)


def ratio_one(case: Case) -> None:
    """Slots that keep every token answer as transformers does without a memory."""
    lm, model = case.plain(), case.model
    state = model.compress(IDS[:100], ratio=1)
    assert state.slots + len(state.tail) == 100
    close(model.logits(IDS[100:130], state), plain_logits(lm, IDS[:130])[100:])
    generated = lm.generate(
        torch.tensor([IDS[:130]]), attention_mask=torch.ones(1, 130).long(), max_new_tokens=30, do_sample=False
    )
    answer = model.decode(generated[0, 130:].tolist())
    assert answer
    assert model.generate([IDS[100:130]], [state], max_new_tokens=30) == [answer]


def raw_keys(case: Case) -> None:
    """A slot is its anchor's raw key, before RoPE, and value: those of transformers' own cache, where they stood."""
    lm = case.plain()
    cache, kept_layers = case.plain_cache(lm)
    with torch.inference_mode():
        lm(torch.tensor([IDS[:18]]), **{CACHE: cache})
    anchors = [0, 1, 5, 9, 13, 17]  # two sinks, then the last of each unit of four
    for layout in ("select",) if case.family.recurrent else ("select", "shadow"):
        model = case.made(CONFIG.replace(layout=layout))
        segment = model.compress(IDS[:30]).segments[0]
        for slot, place in enumerate(anchors):
            rotated = model.empty.rope.rotate(segment.keys[:, :, slot : slot + 1], start=place)
            for layer, kept in enumerate(kept_layers):
                key, value = kept.keys[0, :, place], kept.values[0, :, place]
                close(own(rotated[layer, :, 0], key), key, 1e-5)
                close(own(segment.values[layer, :, slot], value), value, 1e-5)


def look_back(case: Case) -> None:
    """`reconstruct` keeps what each head attends to, by transformers' own attention, when the window is read again."""
    size = 20
    model = case.made(CONFIG.replace(anchors="reconstruct", window=size))
    segment = model.compress(IDS[: size + 2], close=True).segments[0]
    window = list(segment.ids)
    lm = case.plain(attn_implementation="eager")
    cache, kept_layers = case.plain_cache(lm)
    with torch.inference_mode():
        read = lm(torch.tensor([window + window]), output_attentions=True, **{CACHE: cache})
    for layer, kept in enumerate(kept_layers):
        attention, heads, width = read.attentions[layer], kept.keys.shape[1], kept.keys.shape[3]
        again = attention[0, :, len(window) :, 2 : len(window)]
        paid = again.amax(dim=1).view(heads, -1, size).amax(dim=1)
        for head in range(heads):
            best = paid[head].topk(size // 4).indices.sort().values + 2
            close(segment.values[layer, head, 2:, :width], kept.values[0, head, best], 1e-5)


def batch(case: Case) -> None:
    """Answers of a batch are those that each prompt gets alone, from states and prompts of any length."""
    model = case.model
    states = [model.compress(IDS[:150]), BeaconState(), model.compress(IDS[50:90])]
    prompts = [IDS[150:153], IDS[:60], IDS[90:101]]
    alone = [model.generate([p], [s], max_new_tokens=12)[0] for p, s in zip(prompts, states, strict=True)]
    assert model.generate(prompts, states, max_new_tokens=12) == alone


def hot(case: Case) -> None:
    """What a turn left on the device answers as reading everything again does."""
    model = case.model
    resident = ResidentPrefix(model.empty)
    state = model.compress(IDS[:100])
    for end in (104, 110, 131):
        prompt = IDS[100:end]
        (kept,) = model.answers([prompt], [state], residents=[resident], max_new_tokens=6)
        assert [kept.text] == model.generate([prompt], [state], max_new_tokens=6)


def stored(case: Case) -> None:
    """A session that one process wrote, another reads: the same slots, the same answer."""
    with TemporaryDirectory() as folder:
        url = f"sqlite:///{Path(folder) / 'memory.db'}"
        config = CONFIG.replace(slot_dtype="bfloat16", keep_last=40)
        with BeaconMemory.open(case.made(config), url) as first:
            first.session("s").add("I live in Lyon with a dog named Turing. " * 12)
            state, said = first.session("s").state(), first.session("s").ask("Where?", max_new_tokens=8)
        with BeaconMemory.open(case.made(config), url) as second:
            assert second.session("s").state().equals(state)
            assert str(second.session("s").ask("Where?", max_new_tokens=8)) == str(said)
        assert state.slots > 0


def adapter(case: Case) -> None:
    """Trained weights start from the model's, change slots, and change nothing else."""
    for kind in ("full", "low-rank"):
        model = case.made()
        untrained, logits = model.compress(IDS[:60]), plain_logits(model.lm, IDS)
        train(model, kind=kind, far=False)
        for new, old in zip(model.compress(IDS[:60]).segments, untrained.segments, strict=True):
            close(new.keys, old.keys, 1e-5)
            close(new.values, old.values, 1e-5)
        train(model, kind=kind)
        assert torch.equal(plain_logits(model.lm, IDS), logits)
        assert not torch.allclose(model.compress(IDS[:60]).segments[0].keys, untrained.segments[0].keys, atol=0.1)


def fitted(case: Case) -> None:
    """Scorers of the `learned` anchors can be fitted, choose the slots, and change nothing else."""
    model = case.made()
    logits = plain_logits(model.lm, IDS)
    fit_anchors(model, ["In the beginning was the word, and the word was with her and the others. " * 30], tokens=800)
    assert model.config.anchors == "learned"
    state = model.compress(IDS)
    assert state.slots > 0
    assert all(segment.keys.isfinite().all() for segment in state.segments)
    assert torch.equal(plain_logits(model.lm, IDS), logits)


def seek(case: Case) -> None:
    """Where a question looks in a memory is where it looks in transformers' own attention."""
    model = case.model
    past, asked = model.empty.extend(model.compress(IDS[:40], ratio=1, close=True).segments), IDS[40:46]
    heads, shapes = kv_heads(model.lm.config), slot_shapes(model.lm.config)
    with torch.inference_mode():
        looking = SeekPass(past, len(asked), heads)
        read(model.lm, looking, embed(model.lm, torch.tensor([asked])), torch.arange(6) + past.slots)
        told = case.plain(attn_implementation="eager")(torch.tensor([IDS[:46]]), output_attentions=True)
    for (layer, head), seen in zip(heads, looking.seen, strict=True):
        attention = told.attentions[layer][0, :, 40:, :40]
        of_group = attention.view(shapes[layer][0], -1, *attention.shape[1:])[head]
        close(seen[0], of_group.mean(dim=0))


def learned(case: Case) -> None:
    """Training has nothing to learn where nothing was folded, and gradients for the beacons where something was."""
    model = case.made()
    train(model, kind="low-rank", far=False)
    draw = torch.Generator().manual_seed(3)
    windows, tails = torch.randint(3, 200, (2, 34), generator=draw), torch.randint(3, 200, (2, 2, 9), generator=draw)
    scored = torch.ones_like(tails, dtype=torch.bool)
    objective = Objective(model.beacons, config=CONFIG, weights=Weights(next_token=0, teacher=1, hidden=1))
    for parameter in model.beacons.parameters().values():
        parameter.requires_grad_(True)
    same, folded = (objective(Example((windows[:, :18], windows[:, 18:]), (n, n), tails, scored)) for n in (1, 4))
    assert abs(float(same.detach())) < 1e-4
    assert float(folded.detach()) > 0.01
    folded.backward()
    grown = [parameter.grad for name, parameter in model.beacons.parameters().items() if ".q." not in name]
    assert any(grad is not None and float(grad.abs().max()) > 0 for grad in grown)
    assert all(grad.isfinite().all() for grad in grown if grad is not None)


def train(model: BeaconModel, *, kind: str, far: bool = True) -> None:
    """Give the model beacon weights: where training starts, or far from there."""
    random = torch.Generator().manual_seed(5)
    for wrapped in model.beacons.layers:
        for projection in wrapped.values():
            if not projection.trained:
                projection.make_full() if kind == "full" else projection.make_low_rank(3, reach=1)
    with torch.no_grad():
        for parameter in model.beacons.parameters().values() if far else ():
            parameter.add_(torch.randn(parameter.shape, generator=random))


LAWS: dict[str, Callable[[Case], None]] = {
    "attach": attach,
    "detach": detach,
    "pieces": pieces,
    "ratio 1": ratio_one,
    "raw keys": raw_keys,
    "look back": look_back,
    "batch": batch,
    "hot": hot,
    "stored": stored,
    "adapter": adapter,
    "fit": fitted,
    "seek": seek,
    "learn": learned,
}


# What docs/models.md says


@cache
def failure(case: str, law: str) -> AssertionError | None:
    """What a law says against a case, or None: it holds."""
    try:
        LAWS[law](next(one for one in CASES if one.name == case))
    except AssertionError as exc:
        return exc
    return None


def of_its_own(case: Case) -> str:
    """What an architecture has that Llama has not."""
    family, config = case.family, case.plain().config
    layers = family.layers(config)
    told = {
        "one fused projection": family.fused,
        "keys normed by head": family.norm == "head",
        "keys normed by token": family.norm == "row",
        "values normed": family.values,
        "layers without RoPE": any(layer.rope is None for layer in layers),
        "RoPE by layer type": family.typed_rope,
        "a soft limit of attention": family.softcap,
        "sinks": family.sinks,
        "experts": family.experts,
        "recurrent layers": bool(family.recurrent),
        "full layers with wider heads": len({width for _, width in slot_shapes(config)}) > 1,
        "tokens that enter each layer anew": bool(getattr(config, "hidden_size_per_layer_input", 0)),
        "sliding and full layers": 0 < sum(bool(layer.window) for layer in layers) < len(layers),
    }
    words = [word for word, true in told.items() if true and not case.note]
    return ", ".join([*words, *([case.note] if case.note else [])]) or "–"


def table() -> Iterator[str]:
    """The cases, and what came of the laws."""
    yield "| model | `model_type` | of its own | laws |"
    yield "|---|---|---|---|"
    for case in CASES:
        broken = [law for law in LAWS if failure(case.name, law)]
        laws = f"all {len(LAWS)}" if not broken else f"all but {', '.join(broken)}"
        model = case.family.models if not case.note else ""
        yield f"| {model} | `{case.family.name}` | {of_its_own(case)} | {laws} |"


def refused() -> Iterator[str]:
    """Well-known architectures that are not supported."""
    yield "| why | `model_type`, and the nearest supported one |"
    yield "|---|---|"
    for reason in dict.fromkeys(why for why, _ in REFUSED.values()):
        named = [f"`{name}` ({nearest})" for name, (why, nearest) in REFUSED.items() if why == reason]
        yield f"| {reason} | {', '.join(named)} |"


if __name__ == "__main__":
    print("\n".join(table()), end="\n\n")
    print("\n".join(refused()))
