"""Which tokens slots stand for: exact, small, and known of every segment that is folded."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from beacon_memory.config import RATIOS, BeaconConfig, slot_count
from beacon_memory.errors import CodecError
from beacon_memory.state.codec import decode_segment, encode_segment, seal, unseal
from beacon_memory.state.places import pack_places, packed_bytes, unpack_places
from beacon_memory.state.state import Segment
from beacon_memory.testing import tiny_model

CONFIG = BeaconConfig(window=16, sink=2, keep_last=4, overlap=3)


@st.composite
def windows(draw: st.DrawFn) -> tuple[torch.Tensor, int, int]:
    """Any choice of slots: places, tokens and ratio."""
    ratio, tokens = draw(st.sampled_from(RATIOS)), draw(st.integers(0, 300))
    slots = slot_count(tokens, ratio)
    rows = [sorted(draw(st.permutations(range(tokens)))[:slots]) for _ in range(2)]
    return torch.tensor(rows, dtype=torch.int64).view(1, 2, slots), tokens, ratio


@given(windows())
def test_places_come_back_exactly_in_the_bytes_that_are_promised(window):
    places, tokens, ratio = window
    packed = pack_places(places, ratio=ratio)
    assert packed.shape == (1, 2, packed_bytes(tokens, ratio))
    assert unpack_places(packed, tokens=tokens, ratio=ratio).equal(places)


@given(st.binary(min_size=8, max_size=8), st.sampled_from([4, 8]))
def test_any_bytes_are_places_or_refused(data, ratio):
    tokens = 64 // (ratio.bit_length() + 1) * ratio
    packed = torch.frombuffer(bytearray(data[: packed_bytes(tokens, ratio)]), dtype=torch.uint8).view(1, 1, -1)
    try:
        places = unpack_places(packed, tokens=tokens, ratio=ratio)
    except ValueError:
        return
    assert places.diff().gt(0).all()
    assert places.min() >= 0
    assert places.max() < tokens
    assert pack_places(places, ratio=ratio).equal(packed)


@pytest.mark.parametrize("ratio", RATIOS)
def test_a_slot_of_smollm2_in_8_bits_takes_at_most_one_percent_more(ratio):
    heads, slot = 30 * 3, 2 * 64 * 17 / 16
    places = pack_places(torch.arange(0, 512, ratio).expand(1, 1, -1), ratio=ratio)
    assert places.nbytes * heads <= 0.01 * slot * heads * slot_count(512, ratio)


@pytest.mark.parametrize("anchors", ["last", "surprise", "reconstruct", "reconstruct+last"])
@pytest.mark.parametrize("form", ["float32", "int8"])
def test_a_slot_is_the_key_of_the_token_whose_place_it_has(anchors, form):
    """Untrained, so that a slot is its token; the raw keys are those of the same window at ratio 1."""
    model = tiny_model(config=CONFIG.replace(anchors=anchors, slot_dtype=form))
    raw = model.refold(range(40, 58), [], ratio=1, sink=2)
    segment = model.refold(range(40, 58), [], ratio=4, sink=2)
    places = segment.places()
    assert places is not None
    places = places.expand(*segment.keys.shape[:3])
    own = raw.keys.gather(2, places[..., None].expand_as(segment.keys))
    assert torch.allclose(own.float(), segment.keys.float(), atol=0 if form == "float32" else 0.05)
    assert places[..., :2].eq(torch.arange(2)).all()


@pytest.mark.parametrize("layout", ["select", "shadow", "interleave"])
@pytest.mark.parametrize("form", ["bfloat16", "int8", "int4"])
def test_every_segment_of_a_session_has_places_and_keeps_them_in_its_bytes(layout, form):
    """Folded, folded again over a budget, joined, and the last one of a document, which is short."""
    model = tiny_model(config=CONFIG.replace(layout=layout, anchors="last", slot_dtype=form))
    document = model.compress(range(3, 90), document=True)
    state = model.compress(range(5, 300), document, budget=60)
    joined = state.join(model.compress(range(7, 50), close=True, ratio=8).segments)
    assert {segment.ratio for segment in joined.segments} > {4}
    for segment in joined.segments:
        places = segment.places()
        assert places is not None
        assert places.shape[2] == segment.slots
        assert places[..., segment.sink :].diff().gt(0).all()
        assert places.max() < len(segment.ids)
        blob = encode_segment(segment, fingerprint=model.fingerprint, config=model.config)
        decoded = decode_segment(blob, fingerprint=model.fingerprint)
        assert decoded.equals(segment)
        assert torch.equal(decoded.placed, segment.placed)
        assert not segment.equals(dataclasses.replace(segment, placed=segment.placed + 1))
        assert segment.equals(dataclasses.replace(segment, placed=None))  # an older release's


def folded(form: str = "bfloat16") -> tuple[Segment, dict[str, object]]:
    model = tiny_model(config=CONFIG.replace(slot_dtype=form))
    return model.compress(range(40)).segments[0], {"fingerprint": model.fingerprint, "config": model.config}


@pytest.mark.parametrize(("form", "version"), [("bfloat16", 1), ("int8", 2)])
def test_a_segment_that_was_written_before_places_is_read_and_has_none(form, version):
    segment, how = folded(form)
    old = encode_segment(dataclasses.replace(segment, placed=None), **how)
    assert int.from_bytes(old[8:12], "little") == version
    found = decode_segment(old, fingerprint=how["fingerprint"], digest=segment.digest)
    assert found.places() is None
    assert found.keys.equal(segment.keys)
    assert int.from_bytes(encode_segment(segment, **how)[8:12], "little") == 4


@pytest.mark.parametrize(
    "wrong",
    [
        lambda placed: placed[..., :-1],
        lambda placed: placed.expand(3, -1, -1),
        lambda placed: placed[0],
        lambda placed: placed.to(torch.int32),
        lambda placed: torch.zeros_like(placed),
        lambda placed: torch.full_like(placed, 255),
        lambda placed: placed.flip(2),
    ],
)
def test_places_that_cannot_be_those_of_the_slots_are_refused(wrong):
    segment, how = folded()
    assert segment.placed is not None
    blob = encode_segment(dataclasses.replace(segment, placed=wrong(segment.placed[:1]).contiguous()), **how)
    with pytest.raises(CodecError):
        decode_segment(blob, fingerprint=how["fingerprint"])
    assert seal(b"SEGM", unseal(b"SEGM", blob), version=4) == blob
