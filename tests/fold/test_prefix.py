from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from beacon_memory.config import BeaconConfig
from beacon_memory.fold.prefix import BLOCK, Prefix, Rope
from beacon_memory.testing import tiny_model
from beacon_memory.testing.models import tiny_lm

ROPES: dict[str, dict[str, Any]] = {
    "default": {"rope_type": "default", "rope_theta": 10000.0},
    "linear": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 2.0},
    "llama3": {
        "rope_type": "llama3",
        "rope_theta": 10000.0,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    },
    "yarn": {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 512},
}
ROTARY = tiny_lm().model.rotary_emb


@pytest.mark.parametrize("kind", ROPES)
def test_keys_are_rotated_as_the_model_rotates_them(kind: str) -> None:
    lm = tiny_lm(rope_parameters=ROPES[kind])
    keys = torch.randn(2, 3, 40, 8, generator=torch.Generator().manual_seed(0))
    cos, sin = lm.model.rotary_emb(keys, position_ids=torch.arange(1000, 1040)[None])
    expected, _ = apply_rotary_pos_emb(keys, keys, cos, sin)
    torch.testing.assert_close(Rope(lm.model.rotary_emb).rotate(keys, start=1000), expected)


@given(st.integers(0, 2 * BLOCK), st.lists(st.integers(1, 60), min_size=1, max_size=5))
def test_angles_have_the_same_bits_in_any_pieces(start: int, pieces: list[int]) -> None:
    like = torch.empty(0)
    whole = Rope(ROTARY).at(start, start + sum(pieces), like)
    rope, place = Rope(ROTARY), start
    for piece in pieces:
        for part, all_of_it in zip(rope.at(place, place + piece, like), whole, strict=True):
            assert torch.equal(part, all_of_it[place - start : place - start + piece])
        place += piece


def test_a_prefix_in_pieces_is_the_prefix_at_once() -> None:
    keys, values = torch.randn(2, 2, 1, 2, 50, 8, generator=torch.Generator().manual_seed(0)).unbind()
    empty = Prefix(Rope(ROTARY), torch.float32, torch.device("cpu"))
    whole, pieces = empty.append(keys, values), empty
    for start, end in ((0, 3), (3, 3), (3, 47), (47, 50)):
        pieces = pieces.append(keys[..., start:end, :], values[..., start:end, :])
    assert whole.slots == pieces.slots == 50
    assert empty.slots == 0
    for one, other in ((whole.keys, pieces.keys), (whole.values, pieces.values)):
        assert one is not None
        assert other is not None
        assert torch.equal(one, other)


def test_a_streams_first_token_stands_at_the_front_alone() -> None:
    model = tiny_model(config=BeaconConfig(window=8, keep_last=2, sink=2, anchors="last"))
    one, two = (model.compress(list(range(3, 3 + n)), close=True).segments for n in (18, 10))
    alone = model.empty.extend(one)
    both = model.empty.extend([*one, *two])
    again = alone.extend(two)
    assert alone.slots == sum(segment.slots for segment in one)
    assert both.slots == again.slots == alone.slots + two[0].slots - 1
    behind = alone.append(two[0].keys[:, None, :, 1:], two[0].values[:, None, :, 1:])
    for found in (both, again):
        assert torch.equal(found.keys, behind.keys)
        assert torch.equal(found.values, behind.values)


def test_a_past_of_one_serves_a_batch() -> None:
    keys = torch.randn(2, 1, 2, 5, 8, generator=torch.Generator().manual_seed(0))
    past = Prefix(Rope(ROTARY), torch.float32, torch.device("cpu")).append(keys, keys)
    new = torch.zeros(3, 2, 4, 8)
    joined, values = past.join(1, new, new)
    assert joined.shape == values.shape == (3, 2, 9, 8)
    assert torch.equal(values[2, :, :5], keys[1, 0])


def test_angles_made_in_inference_mode_can_be_trained_through() -> None:
    rope = Rope(ROTARY)
    with torch.inference_mode():
        rope.at(0, 5, torch.empty(0))
    keys = torch.randn(1, 5, 8, requires_grad=True)
    rope.rotate(keys, start=0).sum().backward()
    assert keys.grad is not None


def test_a_prefix_with_room_has_the_same_bits_and_older_ones_stay_as_they_were() -> None:
    keys, values = torch.randn(2, 2, 1, 2, 60, 8, generator=torch.Generator().manual_seed(0)).unbind()
    plain = Prefix(Rope(ROTARY), torch.float32, torch.device("cpu"))
    first = plain.reserve(60).append(keys[..., :40, :], values[..., :40, :])
    second = first.append(keys[..., 40:, :], values[..., 40:, :])
    whole = plain.append(keys, values)
    assert first.room is second.room  # nothing moved
    assert torch.equal(second.keys, whole.keys)
    assert torch.equal(second.values, whole.values)
    # The room belongs to the newest: another one behind the first is written elsewhere.
    other = first.append(-keys[..., 40:, :], values[..., 40:, :])
    assert other.room is None
    assert torch.equal(second.keys, whole.keys)
    assert torch.equal(first.keys, whole.keys[..., :40, :])


def test_rows_are_joined_in_the_room_and_give_way_to_slots() -> None:
    keys = torch.randn(2, 1, 2, 6, 8, generator=torch.Generator().manual_seed(0))
    plain = Prefix(Rope(ROTARY), torch.float32, torch.device("cpu"))
    rows = torch.randn(1, 2, 3, 8)
    roomy, tight = plain.reserve(9).append(keys, keys), plain.append(keys, keys)
    joined, expected = roomy.join(1, rows, rows), tight.join(1, rows, rows)
    assert roomy.room is not None
    assert joined[0].data_ptr() == roomy.room.keys[1].data_ptr()
    assert torch.equal(joined[0], expected[0])
    assert torch.equal(joined[1], expected[1])
    new = keys[..., :2, :]
    assert torch.equal(roomy.append(new, new).keys, tight.append(new, new).keys)
    # A batch behind one past does not fit its room.
    two = rows.repeat(2, 1, 1, 1)
    assert torch.equal(roomy.join(0, two, two)[0][0], roomy.join(0, rows, rows)[0][0])


def test_a_past_goes_back_and_is_written_anew() -> None:
    keys = torch.randn(2, 1, 2, 6, 8, generator=torch.Generator().manual_seed(0))
    plain = Prefix(Rope(ROTARY), torch.float32, torch.device("cpu"))
    past = plain.reserve(8).append(keys, keys)
    back = past.back(2).append(keys[..., 2:5, :], keys[..., 2:5, :])
    assert back.room is past.room
    assert torch.equal(back.keys, plain.append(keys[..., :5, :], keys[..., :5, :]).keys)


def test_what_is_trained_through_is_never_written_in_a_room() -> None:
    keys = torch.randn(2, 1, 2, 4, 8)
    past = Prefix(Rope(ROTARY), torch.float32, torch.device("cpu")).reserve(20).append(keys, keys)
    values = torch.randn(1, 2, 3, 8, requires_grad=True)
    past.join(0, torch.randn(1, 2, 3, 8), values)[1].sum().backward()
    assert values.grad is not None
