"""Models with recurrent layers: what holds beyond the laws, and what is refused with its reason."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from kinds import packed, spread
from laws import CONFIG, IDS, close, plain_logits, train
from transformers import AutoConfig, AutoModelForImageTextToText

from beacon_memory.errors import ConfigError, UnsupportedModel
from beacon_memory.evaluation.reading import BranchPass
from beacon_memory.fold.family import FAMILIES
from beacon_memory.fold.fold import embed, read
from beacon_memory.models.finder import read_on
from beacon_memory.models.model import BeaconModel
from beacon_memory.models.resident import ResidentPrefix
from beacon_memory.state.state import BeaconState
from beacon_memory.testing.models import tiny_lm, tiny_model, tiny_tokenizer
from beacon_memory.training.objective import Example, Objective, Weights

HYBRIDS = [name for name, family in FAMILIES.items() if family.recurrent]


@pytest.fixture(scope="module")
def model() -> BeaconModel:
    return tiny_model("qwen3_5_text", config=CONFIG, num_hidden_layers=3)


@pytest.mark.parametrize("family", HYBRIDS)
def test_what_was_read_at_a_segments_end_is_what_transformers_own_cache_holds(family: str) -> None:
    model, lm = tiny_model(family, config=CONFIG), tiny_lm(family)
    state = model.compress(IDS[:60], ratio=1)
    with torch.inference_mode():
        cache = lm(torch.tensor([IDS[: state.tokens - len(state.tail)]]), use_cache=True)
    cache = getattr(cache, "cache", None) or cache.past_key_values
    kept = state.segments[-1].recurrent
    assert kept is not None
    for at, layer in enumerate(model.empty.recurrences):
        assert torch.allclose(kept.conv[at], cache.layers[layer].conv_states[0][0], atol=1e-4)
        if kept.delta is not None:
            assert torch.allclose(kept.delta[at], cache.layers[layer].recurrent_states[0][0], atol=1e-3)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"layout": "shadow", "anchors": "last"}, "beacon rows of layout 'shadow' stand in none"),
        ({"overlap": 4}, "overlap=0, not 4"),
    ],
)
def test_settings_that_would_read_a_token_twice_are_refused_with_the_reason(
    changed: dict[str, object], said: str
) -> None:
    config = CONFIG.replace(**changed)
    with pytest.raises(ConfigError, match=f"layers of 'qwen3_5_text' are recurrent.*{said}"):
        tiny_model("qwen3_5_text", config=config)
    model = tiny_model("qwen3_5_text", config=CONFIG)
    with pytest.raises(ConfigError, match=said):
        model.adapted(config)
    assert model.config == CONFIG


def test_a_model_that_was_refused_its_settings_is_as_it_was() -> None:
    lm = tiny_lm("qwen3_5_text")
    named = [name for name, _ in lm.named_modules()]
    with pytest.raises(ConfigError):
        BeaconModel(lm, tiny_tokenizer(), CONFIG.replace(overlap=4))
    assert [name for name, _ in lm.named_modules()] == named


def test_the_text_model_of_a_checkpoint_that_sees_is_loaded_by_its_name(tmp_path: Path) -> None:
    text = tiny_lm("qwen3_5_text")
    eyes = {"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": 32}
    config = AutoConfig.for_model("qwen3_5", text_config=text.config.to_dict(), vision_config=eyes)
    whole = AutoModelForImageTextToText.from_config(config)
    whole.model.language_model.load_state_dict(text.model.state_dict())
    whole.lm_head.load_state_dict(text.lm_head.state_dict())
    whole.save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    loaded = BeaconModel.from_pretrained(tmp_path, CONFIG, local_files_only=True)
    made = tiny_model("qwen3_5_text", config=CONFIG)
    assert loaded.fingerprint == made.fingerprint
    assert loaded.compress(IDS).equals(made.compress(IDS))
    with pytest.raises(UnsupportedModel, match="give the checkpoint's name to BeaconModel"):
        BeaconModel(whole, tiny_tokenizer(), CONFIG)


def test_training_reads_a_tail_behind_all_that_was_read_before(model: BeaconModel) -> None:
    """At ratio 1 the loss of a tail is the plain model's: recurrent layers have read the windows in front of it."""
    made = tiny_model("qwen3_5_text", config=CONFIG, num_hidden_layers=3)
    train(made, kind="low-rank", far=False)
    windows, tails = torch.tensor([IDS[:34]]), torch.tensor([[IDS[34:50]]])
    weights = Weights(next_token=1, teacher=0, hidden=0, context=0)
    objective = Objective(made.beacons, config=CONFIG, weights=weights)
    example = Example((windows[:, :18], windows[:, 18:]), (1, 1), tails, torch.ones_like(tails, dtype=torch.bool))
    loss = objective(example)
    with torch.no_grad():
        logits = tiny_lm("qwen3_5_text", num_hidden_layers=3)(torch.tensor([IDS[:50]])).logits[0]
    plain = torch.nn.functional.cross_entropy(logits[33:49], torch.tensor(IDS[34:50]))
    assert abs(float(loss.detach()) - float(plain)) < 1e-3


def test_what_reads_several_texts_side_by_side_is_refused_with_the_reason(model: BeaconModel) -> None:
    past = model.empty.extend(model.compress(IDS[:40]).segments)
    branches = BranchPass(past, torch.ones(2, 2).bool().tril(), torch.arange(2))
    with pytest.raises(UnsupportedModel, match="recurrent layers, which read all of them in one order"):
        read(model.lm, branches, embed(model.lm, torch.tensor([[3, 4]])), torch.arange(2) + past.slots)


def test_rows_that_are_read_to_look_with_leave_what_an_answer_goes_on_from(model: BeaconModel) -> None:
    state = model.compress(IDS[:60])
    resident = ResidentPrefix(model.empty)
    prompt = [*state.tail, *IDS[60:90]]
    resident.stand(state.segments, prompt[:20], room=64)
    read_on(model.lm, resident, prompt[:20], heads=[(0, 0), (0, 1)], looking=4)
    assert resident.ids == prompt[:20]
    (hot,) = model.answers([IDS[60:90]], [state], residents=[resident], max_new_tokens=8)
    assert [hot.text] == model.generate([IDS[60:90]], [state], max_new_tokens=8)


def test_many_answers_in_one_pass_are_those_that_each_gets_alone(model: BeaconModel) -> None:
    states = [model.compress(IDS[:n]) for n in (20, 90, 150)] + [BeaconState()]
    prompts = [IDS[150:151], IDS[100:190], IDS[150:153], IDS[:70]]
    alone = [model.generate([p], [s], max_new_tokens=9)[0] for p, s in zip(prompts, states, strict=True)]
    assert model.generate(prompts, states, max_new_tokens=9) == alone


def test_a_state_is_a_value_whatever_is_read_behind_it(model: BeaconModel) -> None:
    state = model.compress(IDS[:60])
    kept = state.segments[-1].recurrent
    assert kept is not None
    before = kept.mapped(torch.Tensor.clone)
    model.generate([IDS[:3], IDS[:1]], [state, state], max_new_tokens=5)
    model.logits(IDS[:1], state)
    model.compress(IDS[60:], state)
    assert kept.equals(before)


@pytest.mark.parametrize("kind", [packed, spread])
def test_weights_of_other_kinds_and_places_read_on_as_well(kind: Callable[[Any], Any]) -> None:
    lm, model = kind(tiny_lm("qwen3_5_text")), BeaconModel(kind(tiny_lm("qwen3_5_text")), tiny_tokenizer(), CONFIG)
    state = model.compress(IDS[:100], ratio=1)
    close(model.logits(IDS[100:130], state), plain_logits(lm, IDS[:130])[100:])
    answers = model.generate([IDS[100:130], IDS[100:101]], [state, state], max_new_tokens=5)
    assert answers == [model.generate([ids], [state], max_new_tokens=5)[0] for ids in (IDS[100:130], IDS[100:101])]
