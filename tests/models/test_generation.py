"""Answers: in a batch as alone, streamed as whole, drawn as seeded, cut where they must stop."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import fields
from functools import cache
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from beacon_memory.config import BeaconConfig
from beacon_memory.errors import ConfigError
from beacon_memory.models.generation import Sampling, StopFilter
from beacon_memory.models.model import BeaconModel
from beacon_memory.sessions.memory import BeaconMemory
from beacon_memory.sessions.turn import Turn
from beacon_memory.state.state import BeaconState
from beacon_memory.stores.memory import MemoryStore
from beacon_memory.testing import tiny_model

HOW = [
    pytest.param({}, id="greedy"),
    pytest.param({"repetition_penalty": 1.7}, id="penalty"),
    pytest.param({"temperature": 1.3, "seed": 5}, id="sampled"),
    pytest.param({"temperature": 2, "top_p": 0.9, "top_k": 20, "repetition_penalty": 2, "seed": 6}, id="all"),
]


def readers(model: BeaconModel, ids: list[int]) -> tuple[list[list[int]], list[BeaconState]]:
    """Prompts and states of every length: many slots, none at all, a tail alone, few slots."""
    states = [
        model.compress(ids[:150]),
        BeaconState(),
        BeaconState(tail=tuple(ids[20:31])),
        model.compress(ids[40:80], ratio=8),
    ]
    return [ids[:9], ids[150:152], ids[160:161], ids[170:190]], states


# Batches


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_an_answer_in_a_batch_is_the_answer_alone(
    attention: str,
    how: dict[str, Any],
    family: str,
    config: BeaconConfig,
    ids: list[int],
    model_of: Callable[..., BeaconModel],
) -> None:
    """The penalty took the slots of longer sessions for padding, and the seed was shared out over the batch."""
    model = model_of(config, family, attn_implementation=attention)
    prompts, states = readers(model, ids)
    together = model.generate(prompts, states, max_new_tokens=24, **how)
    alone = [
        model.generate([prompt], [state], max_new_tokens=24, **how)[0]
        for prompt, state in zip(prompts, states, strict=True)
    ]
    assert together == alone
    assert len(set(alone)) == len(alone)


def test_an_answer_that_ends_early_is_not_lengthened_by_the_batch(config: BeaconConfig, ids: list[int]) -> None:
    """A model whose padding is an ordinary token had it written behind every answer but the longest."""
    model = tiny_model(config=config)
    prompts, states = readers(model, ids)
    model.lm.generation_config.eos_token_id = [2, *range(40, 90)]
    model.lm.generation_config.pad_token_id = 100
    together = model.generate(prompts, states, max_new_tokens=24)
    alone = [model.generate([p], [s], max_new_tokens=24)[0] for p, s in zip(prompts, states, strict=True)]
    assert len({len(answer) for answer in alone}) > 1
    shortest = min(range(4), key=lambda row: len(alone[row]))
    assert together[shortest].startswith(alone[shortest])
    assert model.decode([100]) not in together[shortest].removeprefix(alone[shortest])


# Streams


@pytest.mark.parametrize("how", HOW)
def test_a_streamed_answer_is_the_generated_one(
    how: dict[str, Any], config: BeaconConfig, ids: list[int], model_of: Callable[..., BeaconModel]
) -> None:
    model = model_of(config)
    lengths = []
    for prompt, state in zip(*readers(model, ids), strict=True):
        pieces = list(model.stream(prompt, state, max_new_tokens=60, **how))
        assert "".join(pieces) == model.generate([prompt], [state], max_new_tokens=60, **how)[0]
        assert all(pieces)
        lengths.append(len(pieces))
    assert max(lengths) > 3


def test_a_stop_string_cuts_the_answer_and_is_never_emitted(
    config: BeaconConfig, ids: list[int], model_of: Callable[..., BeaconModel]
) -> None:
    model = model_of(config)
    state = model.compress(ids)
    whole = model.generate([ids[:5]], [state], max_new_tokens=60)[0]
    clean = [at for at in range(4, len(whole) - 3) if "�" not in whole[at : at + 3]]
    assert len(clean) > 10
    for at in clean[:10]:
        stop = whole[at : at + 3]
        expected = whole[: whole.index(stop)]
        how: dict[str, Any] = {"max_new_tokens": 60, "stop": (stop, "never said")}
        assert model.generate([ids[:5]], [state], **how) == [expected]
        assert "".join(model.stream(ids[:5], state, **how)) == expected


def test_a_stop_string_that_began_in_the_prompt_stops_nothing(
    config: BeaconConfig, ids: list[int], model_of: Callable[..., BeaconModel]
) -> None:
    """A prompt that ended in a newline and an answer that began with one made "\\n\\n", and an answer of one token."""
    model = model_of(config)
    how: dict[str, Any] = {"max_new_tokens": 20}
    tried = 0
    for last in range(36, 66):  # one character each
        prompt = [*ids[:5], last]
        whole = model.generate([prompt], **how)[0]
        stop = model.decode([last]) + whole[:1]
        if "�" in stop or stop in whole or not whole:
            continue
        tried += 1
        assert model.generate([prompt], stop=stop, **how) == [whole]
        assert "".join(model.stream(prompt, stop=stop, **how)) == whole
    assert tried > 5


def test_an_answer_that_ends_in_what_could_become_a_stop_string_keeps_it(
    config: BeaconConfig, ids: list[int], model_of: Callable[..., BeaconModel]
) -> None:
    """generate() dropped what it had held back; only stream() gave it out at the end."""
    model = model_of(config)
    whole = model.generate([ids[:5]], max_new_tokens=20)[0]
    stop = whole[-1] + "never said"
    assert model.generate([ids[:5]], max_new_tokens=20, stop=stop) == [whole]
    assert "".join(model.stream(ids[:5], max_new_tokens=20, stop=stop)) == whole


def test_closing_the_iterator_stops_the_model(config: BeaconConfig, ids: list[int]) -> None:
    model = tiny_model(config=config)
    model.lm.generation_config.eos_token_id = None
    steps: list[None] = []
    model.lm.model.register_forward_hook(lambda *_: steps.append(None))
    stream = model.stream(ids[:5], max_new_tokens=2000)
    threads = threading.active_count()
    next(stream)
    made = len(steps)
    stream.close()
    assert 0 < made < 100
    assert len(steps) == made
    assert threading.active_count() == threads
    assert "".join(model.stream(ids[:5], max_new_tokens=8)) == model.generate([ids[:5]], max_new_tokens=8)[0]


def test_a_stream_that_is_never_read_starts_nothing(config: BeaconConfig, ids: list[int]) -> None:
    model = tiny_model(config=config)
    steps: list[None] = []
    model.lm.model.register_forward_hook(lambda *_: steps.append(None))
    model.stream(ids[:5]).close()
    assert not steps


def test_a_failed_generation_raises_from_the_iterator_and_the_next_one_works(
    config: BeaconConfig, ids: list[int]
) -> None:
    model = tiny_model(config=config)
    steps: list[None] = []

    def fail(*_: Any) -> None:
        steps.append(None)
        if len(steps) == 20:
            raise RuntimeError("the device is gone")

    broken = model.lm.lm_head.register_forward_hook(fail)
    said: list[str] = []
    with pytest.raises(RuntimeError, match="the device is gone"):
        said.extend(model.stream(ids[:5], max_new_tokens=60))
    broken.remove()
    whole = model.generate([ids[:5]], max_new_tokens=60)[0]
    assert whole.startswith("".join(said))
    assert "".join(model.stream(ids[:5], max_new_tokens=60)) == whole


# Seeds and settings


def test_seeds_reproduce_and_differ_and_leave_the_callers_random_state_alone(
    config: BeaconConfig, ids: list[int], model_of: Callable[..., BeaconModel]
) -> None:
    model = model_of(config)
    before = torch.get_rng_state()
    how: dict[str, Any] = {"temperature": 1.0, "max_new_tokens": 30}
    first, again, other = (model.generate([ids[:5]], seed=seed, **how) for seed in (1, 1, 2))
    assert first == again != other
    stream = model.stream(ids[:5], seed=1, **how)
    next(stream)
    assert torch.equal(torch.get_rng_state(), before)  # while it runs, too
    list(stream)
    assert torch.equal(torch.get_rng_state(), before)


def test_without_a_seed_an_answer_is_drawn_from_the_callers_random_state(
    config: BeaconConfig, ids: list[int], model_of: Callable[..., BeaconModel]
) -> None:
    model = model_of(config)

    def draw() -> list[str]:
        return model.generate([ids[:5]], temperature=1.0, max_new_tokens=30)

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        first, second = draw(), draw()
        torch.manual_seed(3)
        assert draw() == first != second


def test_one_token_to_choose_from_is_greedy(
    config: BeaconConfig, ids: list[int], model_of: Callable[..., BeaconModel]
) -> None:
    model = model_of(config)
    greedy = model.generate([ids[:5]], max_new_tokens=20)
    assert model.generate([ids[:5]], max_new_tokens=20, temperature=5.0, top_k=1) == greedy
    assert model.generate([ids[:5]], max_new_tokens=20, temperature=5.0, top_p=1e-6) == greedy


def test_the_models_own_defaults_never_mix_in(config: BeaconConfig, ids: list[int]) -> None:
    """Penalties, bans and beams of the checkpoint's generation_config.json went on acting."""
    model = tiny_model(config=config)
    calls: list[dict[str, Any]] = [{}, {"temperature": 0.8, "seed": 1}]
    expected = [model.generate([ids[:5]], max_new_tokens=20, **how) for how in calls]
    defaults: list[dict[str, Any]] = [
        {"do_sample": True, "temperature": 0.2, "top_p": 0.3, "top_k": 2},
        {"repetition_penalty": 3.0},
        {"no_repeat_ngram_size": 1},
        {"suppress_tokens": list(range(3, 150))},
        {"num_beams": 3},
        {"use_cache": False},
        {"max_length": 7},
        {"stop_strings": ["a", "e"]},
        {"return_dict_in_generate": True},
    ]
    for settings in defaults:
        own = model.lm.generation_config
        for name, value in settings.items():
            setattr(own, name, value)
        assert [model.generate([ids[:5]], max_new_tokens=20, **how) for how in calls] == expected, settings
        for name in settings:
            setattr(own, name, None)


@pytest.mark.parametrize(
    "setting",
    [
        {"max_new_tokens": 0},
        {"temperature": -1.0},
        {"temperature": float("nan")},
        {"top_p": 0.0},
        {"top_p": 1.5},
        {"top_k": -1},
        {"repetition_penalty": 0.0},
        {"stop": ("",)},
        {"max_new_tokens": -5},
        {"max_new_tokens": 2.5},
        {"max_new_tokens": None},
        {"temperature": "hot"},
        {"temperature": True},
        {"temperature": float("inf")},
        {"top_p": "most"},
        {"top_p": -0.1},
        {"top_k": 1.5},
        {"repetition_penalty": float("nan")},
        {"seed": "lucky"},
        {"seed": 1 << 64},
        {"stop": 7},
        {"stop": [None]},
        {"stop": b"END"},
        {"constraint": "json"},
    ],
)
def test_sampling_that_cannot_work_is_refused(setting: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        Sampling(**setting)


def test_a_setting_that_there_is_not_is_refused_by_every_way_to_ask(config: BeaconConfig) -> None:
    """It was Python's TypeError, which names a class that the caller has never heard of."""
    model = tiny_model(config=config)
    memory = BeaconMemory(model, MemoryStore())
    session = memory.session("ada")
    session.add("I live in Lyon.")
    asks: list[Callable[..., Any]] = [
        lambda **how: model.generate([[5, 6]], **how),
        lambda **how: model.stream([5, 6], **how),
        lambda **how: session.ask("Where?", **how),
        lambda **how: session.ask("Where?", stream=True, **how),
        lambda **how: session.chat("Where?", **how),
        lambda **how: memory.ask_many([("ada", "Where?")], **how),
        lambda **how: Turn(memory, [{"role": "user", "content": "Where?"}], **how),
    ]
    before = session.info()
    for ask in asks:
        with pytest.raises(ConfigError, match=r"unknown option temprature.*temperature"):
            ask(temprature=0.5)
        with pytest.raises(ConfigError, match="temperature is a number, 0 or more, not 'hot'"):
            ask(temperature="hot")
    assert session.info() == before


@given(
    name=st.sampled_from([field.name for field in fields(Sampling)]),
    value=st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary() | st.lists(st.text()),
)
def test_any_setting_draws_an_answer_or_is_refused(name: str, value: Any) -> None:
    model = _small()
    try:
        how = Sampling.of({"temperature": 1.0, "max_new_tokens": 2, name: value})
    except ConfigError:
        return
    if how.max_new_tokens <= 8:
        model.generate([[5, 6, 7]], **{field.name: getattr(how, field.name) for field in fields(how)})


@cache
def _small() -> BeaconModel:
    return tiny_model(config=BeaconConfig(window=16, keep_last=5, anchors="last"))


def test_one_stop_string_needs_no_list() -> None:
    assert Sampling(stop="END").stops == ("END",)
    assert Sampling(stop=["a", "b"]).stops == ("a", "b")
    assert Sampling(stop=None).stops == ()


# The filter


def cut(text: str, stops: Sequence[str]) -> str:
    """What is left of a text that comes letter by letter, up to the first stop string that is complete."""
    for end in range(len(text) + 1):
        found = [stop for stop in stops if text[:end].endswith(stop)]
        if found:
            return text[: end - max(map(len, found))]
    return text


LETTERS = st.text("abé", max_size=12)


@given(pieces=st.lists(LETTERS, max_size=6), stops=st.lists(st.text("abé", min_size=1, max_size=4), max_size=3))
def test_a_stop_string_is_cut_however_the_text_is_cut_into_pieces(pieces: list[str], stops: list[str]) -> None:
    """Of two stop strings in one piece the one that starts first was taken, by letters the one that ends first."""
    text = "".join(pieces)
    whole = StopFilter(stops)
    assert whole.cut(text) == cut(text, stops)
    letters = StopFilter(stops)
    assert "".join(map(letters.feed, text)) + letters.end() == cut(text, stops)
    piecewise = StopFilter(stops)
    fed = emitted = ""
    for piece in pieces:
        fed += piece
        emitted += piecewise.feed(piece)
        assert cut(text, stops).startswith(emitted)
        # No more is held back than could still become a stop string.
        assert piecewise.stopped or len(fed) - len(emitted) < max(map(len, stops), default=1)
    assert emitted + piecewise.end() == cut(text, stops)
    assert piecewise.stopped == (cut(text, stops) != text)
    if piecewise.stopped:
        assert piecewise.feed("ab") + piecewise.end() == ""


def test_an_answer_says_how_many_tokens_it_took_and_how_it_ended(model_of, config, ids):
    model = model_of(config)
    [cut] = model.answers([ids[:5]], max_new_tokens=40)
    assert (cut.tokens, cut.finish) == (40, "length")
    letter = next(letter for letter in cut.text[1:] if letter.isascii())
    [stopped] = model.answers([ids[:5]], max_new_tokens=60, stop=letter)
    assert stopped.finish == "stop"
    assert stopped.tokens < 60
    for how in ({"max_new_tokens": 7}, {"max_new_tokens": 60, "stop": letter}):
        stream = model.stream(ids[:5], **how)
        assert stream.answer is None
        "".join(stream)
        assert [stream.answer] == model.answers([ids[:5]], **how)
