"""A model folds streams into states and holds none of them."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from itertools import cycle
from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from beacon_memory.config import BeaconConfig
from beacon_memory.errors import BudgetExceeded, ConfigError, InputError, PromptTooLong
from beacon_memory.models.model import BeaconModel
from beacon_memory.state.state import BeaconState, Segment
from beacon_memory.testing import tiny_model
from beacon_memory.testing.models import SPECIALS

LAYOUTS = [
    ("select", "last"),
    ("select", "surprise"),
    ("select", "reconstruct"),
    ("select", "reconstruct+last"),
    ("shadow", "last"),
    ("shadow", "surprise+last"),
    ("shadow", "reconstruct"),
    ("interleave", "last"),
]


@st.composite
def configs(draw: st.DrawFn) -> BeaconConfig:
    layout, anchors = draw(st.sampled_from(LAYOUTS))
    return BeaconConfig(
        layout=layout,
        anchors=anchors,
        window=16,
        ratio=draw(st.sampled_from([1, 2, 4, 8, 16])),
        sink=draw(st.integers(0, 3)),
        keep_last=draw(st.sampled_from([0, 1, 7, 20])),
        overlap=draw(st.sampled_from([0, 0, 3, 40])),
        slot_dtype=draw(st.sampled_from(["float32", "bfloat16"])),
    )


# Lists that hypothesis draws itself are rarely long enough to be folded.
STREAM = st.builds(
    lambda length, seed: random.Random(seed).choices(range(300), k=length), st.integers(0, 110), st.integers(0, 10**6)
)
PIECES = st.lists(st.integers(1, 40), min_size=1, max_size=4)


def in_pieces(model: BeaconModel, stream: list[int], pieces: list[int], **options: Any) -> BeaconState:
    """The state after a stream that came in pieces of these lengths, over and over; it ends where the last one does."""
    close = options.pop("close", False)
    state, rest, lengths = BeaconState(), stream, cycle(pieces)
    while rest:
        length = next(lengths)
        state, rest = model.compress(rest[:length], state, **options), rest[length:]
    return model.compress([], state, close=close, **options)


# Pieces


@settings(max_examples=200, deadline=None)
@given(config=configs(), stream=STREAM, pieces=PIECES, close=st.booleans())
def test_folding_a_stream_in_any_pieces_gives_the_same_segments(
    model_of: Callable[..., BeaconModel], config: BeaconConfig, stream: list[int], pieces: list[int], close: bool
) -> None:
    model = model_of(config, num_hidden_layers=3)
    whole = model.compress(stream, close=close)
    assert in_pieces(model, stream, pieces, close=close).equals(whole)
    assert [i for segment in whole.segments for i in segment.ids] + list(whole.tail) == stream
    if close:
        assert whole.tail == ()
    else:
        assert whole.tail == tuple(stream) or config.keep_last <= len(whole.tail) < config.keep_last + 16 + config.sink


@settings(max_examples=200, deadline=None)
@given(config=configs(), stream=STREAM, pieces=PIECES, budget=st.integers(12, 24))
def test_folding_in_any_pieces_gives_the_same_segments_when_the_budget_folds_them_again(
    model_of: Callable[..., BeaconModel], config: BeaconConfig, stream: list[int], pieces: list[int], budget: int
) -> None:
    model = model_of(config, num_hidden_layers=3)
    whole = model.compress(stream, budget=budget)
    assert in_pieces(model, stream, pieces, budget=budget).equals(whole)
    assert whole.slots <= budget


@settings(max_examples=50, deadline=None)
@given(config=configs(), stream=STREAM, pieces=PIECES, budget=st.integers(12, 24))
def test_equal_digests_are_equal_segments_whatever_happened_before(
    model_of: Callable[..., BeaconModel], config: BeaconConfig, stream: list[int], pieces: list[int], budget: int
) -> None:
    model = model_of(config, num_hidden_layers=3)
    seen: dict[str, Segment] = {}
    for options in ({}, {"budget": budget}, {"ratio": 16}, {"close": True}):
        for segment in in_pieces(model, stream, pieces, **options).segments:
            assert seen.setdefault(segment.digest, segment).equals(segment)


def test_a_window_is_folded_when_the_tail_behind_it_is_long_enough_and_not_before(
    config: BeaconConfig, ids: list[int], model_of: Callable[..., BeaconModel]
) -> None:
    model = model_of(config)  # 2 sinks, windows of 16, 5 kept
    assert [len(model.compress(ids[:n]).segments) for n in (0, 22, 23, 38, 39)] == [0, 0, 1, 1, 2]
    assert model.compress(ids[:22]).tail == tuple(ids[:22])


def test_closing_folds_the_tail_and_the_stream_may_go_on(
    config: BeaconConfig, ids: list[int], model_of: Callable[..., BeaconModel]
) -> None:
    model = model_of(config)
    closed = model.compress(ids[:25], close=True)
    assert [(len(s.ids), s.sink, s.slots) for s in closed.segments] == [(18, 2, 6), (7, 0, 2)]
    assert closed.tail == ()
    more = model.compress(ids[25:60], closed)
    assert [len(s.ids) for s in more.segments] == [18, 7, 16]
    assert model.compress([], close=True).equals(BeaconState())
    assert [(s.ratio, s.sink, s.slots) for s in model.compress(ids[:1], close=True).segments] == [(1, 1, 1)]


def test_a_document_is_closed_and_folded_in_its_own_windows(
    config: BeaconConfig, ids: list[int], model_of: Callable[..., BeaconModel]
) -> None:
    assert model_of(config).compress(ids[:60], document=True).equals(model_of(config).compress(ids[:60], close=True))
    wide, large = config.replace(document_windows=3), config.replace(window=3 * config.window)
    document = model_of(wide).compress(ids[:60], document=True)
    assert [len(s.ids) for s in document.segments] == [50, 10]
    assert document.equals(model_of(large).compress(ids[:60], close=True))
    assert model_of(wide).compress(ids[:60]).equals(model_of(config).compress(ids[:60]))  # a talk stays as it is
    within = model_of(wide).compress(ids[:60], document=True, budget=12)
    assert within.slots <= 12
    assert [i for segment in within.segments for i in segment.ids] == ids[:60]


def test_a_window_is_read_behind_the_end_of_the_one_before(
    config: BeaconConfig, ids: list[int], model_of: Callable[..., BeaconModel]
) -> None:
    model, apart = model_of(config.replace(overlap=3)), model_of(config)
    state, without = model.compress(ids[:60], close=True), apart.compress(ids[:60], close=True)
    assert [segment.overlap for segment in state.segments] == [0, 3, 3, 3]
    assert [segment.ids for segment in state.segments] == [segment.ids for segment in without.segments]
    assert [segment.slots for segment in state.segments] == [segment.slots for segment in without.segments]
    assert state.segments[0].equals(without.segments[0])  # nothing is before it: the address of every version
    assert state.segments[1].digest != without.segments[1].digest
    assert not torch.equal(state.segments[1].keys, without.segments[1].keys)
    # The last of these is less than a window: its stream has ended.
    assert [segment.overlap for segment in model.compress(ids[60:120], state).segments[4:]] == [0, 3, 3]
    # All of them are what was asked for, where a window is shorter.
    longer = model_of(config.replace(overlap=50)).compress(ids[:60])
    assert [segment.overlap for segment in longer.segments] == [0, 18, 16]
    again = model.refold(state.segments[2].ids, state.segments[:2], ratio=config.ratio, sink=0)
    assert again.equals(state.segments[2])


def test_known_segments_are_not_folded_again(config: BeaconConfig, ids: list[int]) -> None:
    model = tiny_model(config=config)
    state = model.compress(ids)
    known = {segment.digest: segment for segment in state.segments}
    model.lm.model.register_forward_pre_hook(lambda *_: pytest.fail("a known segment was folded"))
    again = model.compress(ids, known=known.get)
    assert all(one is other for one, other in zip(again.segments, state.segments, strict=True))


def test_progress_is_told_of_every_window(
    config: BeaconConfig, ids: list[int], model_of: Callable[..., BeaconModel]
) -> None:
    told: list[int] = []
    state = model_of(config).compress(ids, progress=told.append)
    assert told == [len(segment.ids) for segment in state.segments]


def test_slots_are_kept_in_the_precision_asked_for(
    config: BeaconConfig, ids: list[int], model_of: Callable[..., BeaconModel]
) -> None:
    exact = model_of(config).compress(ids[:30])
    for name in ("bfloat16", "float16"):
        rounded = model_of(config.replace(slot_dtype=name)).compress(ids[:30])
        dtype = getattr(torch, name)
        assert torch.equal(rounded.segments[0].keys, exact.segments[0].keys.to(dtype))
        assert rounded.nbytes * 2 == exact.nbytes
        assert rounded.segments[0].digest != exact.segments[0].digest


# Values


def test_using_a_state_never_changes_it(
    family: str, config: BeaconConfig, ids: list[int], model_of: Callable[..., BeaconModel]
) -> None:
    model = model_of(config, family)
    state = model.compress(ids[:100])
    copies = [(segment, segment.keys.clone(), segment.values.clone()) for segment in state.segments]
    tail, slots, digest = state.tail, state.slots, state.digest
    longer = model.compress(ids[100:], state)
    model.compress(ids[100:], state, budget=20)
    model.compress([], state, close=True)
    model.generate([ids[:5], ids[:3]], [state, longer], max_new_tokens=8)
    list(model.stream(ids[:5], state, max_new_tokens=8))
    model.logits(ids[:5], state)
    assert (state.tail, state.slots, state.digest) == (tail, slots, digest)
    assert len(state.segments) == len(copies)
    for segment, (kept, keys, values) in zip(state.segments, copies, strict=True):
        assert segment is kept
        assert torch.equal(segment.keys, keys)
        assert torch.equal(segment.values, values)
    assert all(one is other for one, other in zip(longer.segments, state.segments, strict=False))


def test_a_state_makes_a_difference_to_the_answer(
    config: BeaconConfig, ids: list[int], model_of: Callable[..., BeaconModel]
) -> None:
    model = model_of(config)
    one, other = model.compress(ids[:60]), model.compress(ids[60:120])
    assert not torch.allclose(model.logits(ids[:3], one)[-1], model.logits(ids[:3], other)[-1], atol=0.1)


def test_a_tail_is_read_before_the_prompt(
    config: BeaconConfig, ids: list[int], model_of: Callable[..., BeaconModel]
) -> None:
    model = model_of(config)
    state = model.compress(ids[:50])
    bare = BeaconState(state.segments)
    torch.testing.assert_close(
        model.logits(ids[50:53], state), model.logits([*state.tail, *ids[50:53]], bare)[-3:], rtol=1e-4, atol=1e-4
    )
    assert model.generate([ids[50:53]], [state], max_new_tokens=9) == model.generate(
        [[*state.tail, *ids[50:53]]], [bare], max_new_tokens=9
    )
    assert model.generate([[]], [state], max_new_tokens=9) == model.generate([state.tail], [bare], max_new_tokens=9)


def test_a_tail_is_read_behind_the_end_of_the_window_before(
    config: BeaconConfig, ids: list[int], model_of: Callable[..., BeaconModel]
) -> None:
    model = model_of(config.replace(overlap=3))
    state = model.compress(ids[:50])
    bare, raw = BeaconState(state.segments), [*state.segments[-1].ids[-3:], *state.tail]
    assert model.tail(state) == raw
    torch.testing.assert_close(
        model.logits(ids[50:53], state), model.logits([*raw, *ids[50:53]], bare)[-3:], rtol=1e-4, atol=1e-4
    )
    assert model.generate([ids[50:53]], [state], max_new_tokens=9) == model.generate(
        [[*raw, *ids[50:53]]], [bare], max_new_tokens=9
    )
    # What has ended is not gone on with, and nothing stands behind nothing.
    assert model.tail(bare) == model.tail(BeaconState()) == []
    closed = model.compress(ids[:45], close=True)
    assert model.tail(model.compress(ids[45:50], closed)) == ids[45:50]


def test_two_threads_fold_and_answer_on_one_model_as_each_alone(config: BeaconConfig, ids: list[int]) -> None:
    config = config.replace(anchors="reconstruct+last")

    def work(model: BeaconModel, mine: list[int], seed: int) -> list[Any]:
        found: list[Any] = []
        for turn in range(6):
            state = model.compress(mine[turn * 7 :], budget=25)
            how: dict[str, Any] = {"max_new_tokens": 8, "temperature": float(turn % 2), "seed": seed}
            found += [state.digest, *(segment.keys for segment in state.segments)]
            found += [model.generate([mine[:4]], [state], **how)[0], "".join(model.stream(mine[:4], state, **how))]
            found.append(model.logits(mine[:4], state))
        return found

    jobs = [(ids[:100], 1), (ids[100:], 2), (ids[50:150], 1)]
    model = tiny_model(config=config)
    alone = [work(model, *job) for job in jobs]
    model = tiny_model(config=config)  # no angles cached yet
    together: list[list[Any]] = [[] for _ in jobs]
    start = threading.Barrier(len(jobs))

    def run(index: int) -> None:
        start.wait()
        together[index] = work(model, *jobs[index])

    threads = [threading.Thread(target=run, args=(index,)) for index in range(len(jobs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for one, other in zip(alone, together, strict=True):
        assert len(one) == len(other)
        for expected, found in zip(one, other, strict=True):
            assert torch.equal(expected, found) if isinstance(expected, torch.Tensor) else expected == found


# The tokenizer


@given(st.text())
def test_any_text_comes_back_from_its_ids(model_of: Callable[..., BeaconModel], text: str) -> None:
    assume(not any(special in text for special in SPECIALS))
    model = model_of(BeaconConfig())
    ids = model.encode(text)
    assert model.decode(ids) == text
    assert all(3 <= i < 300 for i in ids)


def test_a_message_that_is_not_the_systems_gets_a_default_one_before_it(model_of: Callable[..., BeaconModel]) -> None:
    tokenizer = model_of(BeaconConfig()).tokenizer
    turn = [{"role": "user", "content": "Hi"}]
    said = tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)
    system = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
    assert said == system + "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    own = tokenizer.apply_chat_template([{"role": "system", "content": "Be brief."}, *turn], tokenize=False)
    assert own == "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n"


def test_the_raw_bytes_of_a_token_are_those_of_a_plain_cache_in_bfloat16(
    config: BeaconConfig, family: str, model_of: Callable[..., BeaconModel]
) -> None:
    assert model_of(config, family).raw_bytes_per_token == 2 * 2 * 2 * 2 * 8


# Bad input


@pytest.mark.parametrize("bad", [-1, 300, 10**6])
def test_an_id_that_is_not_in_the_vocabulary_is_refused_before_anything_is_folded(
    bad: int, config: BeaconConfig, ids: list[int], model_of: Callable[..., BeaconModel]
) -> None:
    model = model_of(config)
    for use in (model.compress, model.logits, lambda found: model.generate([found]), model.stream):
        with pytest.raises(InputError, match=f"token ids are 0 to 299, found .*{bad}"):
            use([*ids, bad])  # type: ignore[operator]


def test_an_empty_prompt_behind_an_empty_tail_is_refused(
    config: BeaconConfig, ids: list[int], model_of: Callable[..., BeaconModel]
) -> None:
    """Logits at no ids at all were those of the tail, or a shape error."""
    model = model_of(config)
    closed = model.compress(ids, close=True)
    for use in (lambda: model.generate([[]]), lambda: model.generate([[]], [closed]), lambda: model.stream([], closed)):
        with pytest.raises(InputError, match="nothing to answer"):
            use()
    with pytest.raises(InputError, match="at least one token id"):
        model.logits([], model.compress(ids))


def test_prompts_and_states_must_be_as_many(
    config: BeaconConfig, ids: list[int], model_of: Callable[..., BeaconModel]
) -> None:
    model = model_of(config)
    with pytest.raises(InputError, match="got 2 prompts and 1 states"):
        model.generate([ids[:3], ids[:4]], [BeaconState()])
    with pytest.raises(InputError, match="got 0 prompts"):
        model.generate([])


def test_a_prompt_that_cannot_fit_is_refused_with_its_numbers(
    config: BeaconConfig, ids: list[int], model_of: Callable[..., BeaconModel]
) -> None:
    model = model_of(config, max_position_embeddings=128)
    state = model.compress(ids[:100])
    total = state.slots + len(state.tail) + 80 + 30
    said = (
        f"{state.slots} slots, {len(state.tail) + 80} prompt tokens and 30 for the answer are {total}, .* 128 positions"
    )
    with pytest.raises(PromptTooLong, match=said):
        model.generate([ids[:80]], [state], max_new_tokens=30)
    with pytest.raises(PromptTooLong, match=said):
        model.stream(ids[:80], state, max_new_tokens=30)  # at once, not when it is read
    fits = 128 - state.slots - len(state.tail) - 80
    assert model.generate([ids[:80]], [state], max_new_tokens=fits)


def test_a_ratio_that_does_not_divide_the_window_is_refused_before_anything_is_folded(
    config: BeaconConfig, ids: list[int], model_of: Callable[..., BeaconModel]
) -> None:
    model = model_of(config)
    for ratio, said in ((32, "32 does not divide the window of 16"), (3, "ratio is one of"), (0, "ratio is one of")):
        with pytest.raises(ConfigError, match=said):
            model.compress(ids, ratio=ratio)


def test_a_window_larger_than_the_model_is_refused_and_the_model_given_back() -> None:
    lm = tiny_model(config=BeaconConfig(window=16, keep_last=4)).detach()
    lm.config.max_position_embeddings = 64
    with pytest.raises(ConfigError, match="choose a smaller window"):
        BeaconModel(lm, tiny_model().tokenizer, BeaconConfig(window=512))
    assert not any(name.endswith(".base") for name, _ in lm.named_modules())


def test_a_budget_of_nothing_is_exceeded(
    config: BeaconConfig, ids: list[int], model_of: Callable[..., BeaconModel]
) -> None:
    with pytest.raises(BudgetExceeded):
        model_of(config).compress(ids, budget=0)
