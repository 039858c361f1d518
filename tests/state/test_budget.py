from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from beacon_memory.config import BeaconConfig
from beacon_memory.errors import BudgetExceeded, ConfigError
from beacon_memory.models.model import BeaconModel
from beacon_memory.state.budget import default_budget, next_refold
from beacon_memory.state.state import BeaconState, Segment


def segment(tokens: int, ratio: int, *, sink: int = 0) -> Segment:
    """A segment of the right shape; nobody looks inside."""
    slots = sink + -(-tokens // ratio)
    return Segment(
        "", "", tuple(range(sink + tokens)), ratio, sink, (torch.zeros(1, 1, slots, 2), torch.zeros(1, 1, slots, 2))
    )


def read(state: BeaconState) -> list[int]:
    """Every token a state has read, in order."""
    return [i for segment in state.segments for i in segment.ids] + list(state.tail)


def test_the_default_budget_leaves_room_for_the_tail_and_a_quarter_for_the_answer() -> None:
    assert default_budget(8192, BeaconConfig()) == 8192 - 2048 - 512 - 128
    assert default_budget(8192, BeaconConfig(document_windows=5)) == 8192 - 2048 - 512 - 128
    assert default_budget(8192, BeaconConfig(document_windows=8)) == 8192 - 8 * 512


def test_a_window_that_does_not_fit_the_model_is_refused() -> None:
    with pytest.raises(ConfigError, match="no room in a model of 1024 positions"):
        default_budget(1024, BeaconConfig())


def test_the_oldest_segment_of_the_ratio_that_holds_most_is_folded_again() -> None:
    segments = [segment(64, 8), segment(64, 4), segment(64, 4), segment(64, 4), segment(64, 2)]
    assert next_refold(segments, 0) == (1, 8)
    assert next_refold([*segments, segment(64, 2)], 0) == (4, 4)


def test_of_ratios_that_hold_the_same_the_finer_gives_way() -> None:
    assert next_refold([segment(64, 8), segment(64, 8), segment(64, 4)], 0) == (2, 8)


def test_raw_windows_are_folded_before_folded_ones() -> None:
    assert next_refold([segment(32, 1), segment(64, 2)], 0) == (0, 2)


def test_ratios_that_would_not_make_a_segment_smaller_are_skipped() -> None:
    assert next_refold([segment(3, 2)], 0) == (0, 4)
    assert next_refold([segment(20, 8, sink=2)], 0) == (0, 16)
    assert next_refold([segment(3, 4), segment(16, 8)], 0) == (1, 16)


def test_nothing_left_to_fold_is_said_with_both_numbers() -> None:
    with pytest.raises(BudgetExceeded, match="3 slots, a budget of 2"):
        next_refold([segment(32, 32, sink=2)], 2)


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_a_session_never_exceeds_its_budget_and_older_is_coarser(
    data: st.DataObject, config: BeaconConfig, ids: list[int], model_of: Callable[..., BeaconModel]
) -> None:
    model = model_of(config)
    budget = data.draw(st.integers(16, 40), "budget")
    ratio = data.draw(st.sampled_from([1, 2, 4, 8]), "ratio")
    stream = ids[: data.draw(st.integers(0, 200), "tokens")]
    state = BeaconState()
    for start in range(0, len(stream), 37):
        state = model.compress(stream[start : start + 37], state, ratio=ratio, budget=budget)
        assert state.slots <= budget
        assert all(older.ratio >= newer.ratio for older, newer in pairwise(state.segments))
    assert read(state) == stream
    assert all(segment.slots == segment.sink + -(-16 // segment.ratio) for segment in state.segments)


def test_a_chat_of_twenty_windows_stays_within_the_models_own_budget(
    config: BeaconConfig, model_of: Callable[..., BeaconModel]
) -> None:
    model = model_of(config, max_position_embeddings=64)
    stream = [3 + i % 290 for i in range(330)]
    state = model.compress(stream)
    assert len(state.segments) == 20
    assert state.slots <= model.budget == 64 - 16 - 16 - 5
    assert read(state) == stream
    assert model.generate([stream[:4]], [state], max_new_tokens=5)


def test_a_session_that_is_over_a_smaller_budget_is_folded_down_even_when_nothing_is_added(
    config: BeaconConfig, ids: list[int], model_of: Callable[..., BeaconModel]
) -> None:
    """Only a new window made it look at the budget: a state joined with documents could stay above it."""
    model = model_of(config)
    state = model.compress(ids)
    document = model.compress(ids[:60], close=True).segments
    joined = model.compress([], state.join(document), budget=30)
    assert joined.slots <= 30 < state.slots + sum(segment.slots for segment in document)
    assert [i for segment in joined.segments for i in segment.ids] == [
        i for segment in (*state.segments, *document) for i in segment.ids
    ]


def test_a_budget_that_cannot_be_met_raises_and_leaves_the_state_alone(
    config: BeaconConfig, ids: list[int], model_of: Callable[..., BeaconModel]
) -> None:
    model = model_of(config)
    state = model.compress(ids[:100])
    before = (state.digest, state.tail)
    with pytest.raises(BudgetExceeded, match="every segment is at its highest ratio"):
        model.compress(ids[100:], state, budget=5)
    assert (state.digest, state.tail) == before


def test_a_segment_folded_again_keeps_its_tokens_and_its_sinks_raw(
    config: BeaconConfig, ids: list[int], model_of: Callable[..., BeaconModel]
) -> None:
    model = model_of(config)
    fine = model.compress(ids[:23])
    coarse = model.fit(fine.segments, budget=4)
    assert [(s.ratio, s.sink, s.slots) for s in coarse] == [(8, 2, 4)]
    assert coarse[0].ids == fine.segments[0].ids
    assert torch.equal(coarse[0].keys[:, :, :2], fine.segments[0].keys[:, :, :2])
    assert coarse[0].equals(model.compress(ids[:23], ratio=8).segments[0])
