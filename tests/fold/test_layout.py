from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from beacon_memory.config import slot_count
from beacon_memory.fold.layout import causal, evenly, interleaved, unit_ends

TOKENS = st.integers(1, 70)
RATIO = st.sampled_from([2, 4, 8, 16, 32])


@given(TOKENS, RATIO)
def test_every_unit_has_one_slot_and_a_partial_one_too(tokens: int, ratio: int) -> None:
    ends = unit_ends(tokens, ratio).tolist()
    assert len(ends) == slot_count(tokens, ratio)
    assert ends == [min(start + ratio, tokens) - 1 for start in range(0, tokens, ratio)]


@given(TOKENS, st.data())
def test_tokens_spread_evenly_are_distinct_in_order_and_end_with_the_newest(tokens: int, data: st.DataObject) -> None:
    count = data.draw(st.integers(1, tokens))
    places = evenly(tokens, count).tolist()
    assert places == sorted(set(places))
    assert len(places) == count
    assert places[0] >= 0
    assert places[-1] == tokens - 1
    gaps = [b - a for a, b in zip([-1, *places], places, strict=False)]
    assert max(gaps) - min(gaps) <= 1


def test_none_spread_evenly_is_none() -> None:
    assert evenly(10, 0).tolist() == []


@given(st.integers(0, 3), TOKENS, RATIO)
def test_an_interleaved_beacon_stands_right_behind_its_unit(sink: int, tokens: int, ratio: int) -> None:
    raw, beacons = interleaved(sink + tokens, ratio, sink=sink)
    assert sorted([*raw.tolist(), *beacons.tolist()]) == list(range(len(raw) + len(beacons)))
    ends = unit_ends(tokens, ratio) + sink
    assert beacons.tolist() == (raw[ends] + 1).tolist()


def test_sinks_stand_before_the_first_unit() -> None:
    raw, beacons = interleaved(7, 2, sink=3)
    assert raw.tolist() == [0, 1, 2, 3, 4, 6, 7]
    assert beacons.tolist() == [5, 8]


def test_a_row_sees_the_past_and_what_stands_no_later_than_itself() -> None:
    queries, keys = torch.tensor([1, 4, 2]), torch.tensor([0, 1, 3, 4, 2])
    mask = causal(queries, keys, past=2, dtype=torch.float32)
    assert mask.shape == (1, 1, 3, 7)
    seen = [[bool(mask[0, 0, row, column] == 0) for column in range(7)] for row in range(3)]
    assert seen == [[True, True, *(int(key) <= int(query) for key in keys)] for query in queries]
    assert mask[mask != 0].unique().tolist() == [float("-inf")]
