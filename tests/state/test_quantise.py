"""Slots in 8 and 4 bits: small, near, and the same hot and cold."""

from __future__ import annotations

import dataclasses
import hashlib

import pytest
import torch

from beacon_memory import BeaconConfig, BeaconMemory
from beacon_memory.errors import CodecError, ConfigError
from beacon_memory.state.codec import decode_segment, encode_segment, seal, unseal
from beacon_memory.state.quantise import GROUP, pack
from beacon_memory.state.state import Fingerprint, Segment, segment_digest
from beacon_memory.testing import tiny_model

FORMS = ["int8", "int4"]
OURS = Fingerprint("m" * 16, "none", "t" * 16, "select")


def slots(count: int, *, width: int = 16, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys and values with channels of very different ranges, as models have them."""
    random = torch.Generator().manual_seed(seed)
    ranges = torch.logspace(-2, 2, width)
    keys = torch.randn(2, 3, count, width, generator=random) * ranges + 5 * ranges
    return keys, torch.randn(2, 3, count, width, generator=random)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("count", [0, 1, 4, 5, GROUP, GROUP + 5, 3 * GROUP])
@pytest.mark.parametrize("sink", [0, 4])
def test_what_is_packed_comes_back_near(form, count, sink):
    keys, values = slots(count)
    sink = min(sink, count)
    packed = pack(keys, values, sink=sink, dtype=form)
    found = packed.unpacked_keys(), packed.unpacked_values()
    steps = 255 if form == "int8" else 15
    for was, now, dim in ((keys, found[0], 2), (values, found[1], 3)):
        assert now.shape == was.shape
        assert now.dtype == torch.bfloat16
        assert torch.equal(now[:, :, :sink], was[:, :, :sink].bfloat16())
        if count > sink:
            rest = was[:, :, sink:]
            spread = rest.amax(dim, keepdim=True) - rest.amin(dim, keepdim=True)
            # Half a step, and what bfloat16 cannot tell apart.
            off = (now[:, :, sink:].float() - rest).abs() - rest.abs() / 128
            assert (off <= spread / steps * 0.51 + 1e-6).all()


@pytest.mark.parametrize("form", FORMS)
def test_equal_numbers_come_back_exactly(form):
    keys = torch.full((1, 1, 70, 16), 3.0)
    packed = pack(keys, keys, sink=0, dtype=form)
    assert torch.equal(packed.unpacked_keys(), keys.bfloat16())
    assert torch.equal(packed.unpacked_values(), keys.bfloat16())


@pytest.mark.parametrize(("form", "share"), [("int8", 0.54), ("int4", 0.29)])
def test_packed_slots_take_their_share_of_bfloat16(form, share):
    keys, values = slots(128, width=64)
    raw = 2 * (keys.numel() + values.numel())
    assert pack(keys, values, sink=0, dtype=form).nbytes <= share * raw


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("layout", ["select", "shadow", "interleave"])
def test_a_hot_session_and_a_stored_one_answer_the_same(form, layout, tmp_path):
    config = BeaconConfig(window=32, keep_last=8, sink=2, anchors="last", layout=layout, slot_dtype=form)
    model = tiny_model(config=config)
    hot = BeaconMemory.open(model, f"sqlite:///{tmp_path}/m.db")
    hot.session("alice").add_document("The lease ends in May. " * 20)
    hot.session("alice").add("I live in Lyon. " * 9)
    state = hot.session("alice").state()
    cold = BeaconMemory.open(model, f"sqlite:///{tmp_path}/m.db").session("alice").state()
    assert cold.equals(state)
    assert torch.equal(model.logits([5, 6, 7], cold), model.logits([5, 6, 7], state))
    again = [encode_segment(s, fingerprint=model.fingerprint, config=config) for s in cold.segments]
    assert again == [encode_segment(s, fingerprint=model.fingerprint, config=config) for s in state.segments]


def test_sessions_of_every_form_live_in_one_store(tmp_path):
    answers = {}
    for form in ("bfloat16", *FORMS):
        model = tiny_model(config=BeaconConfig(window=32, keep_last=8, sink=2, anchors="last", slot_dtype=form))
        with BeaconMemory.open(model, f"sqlite:///{tmp_path}/m.db") as memory:
            memory.session(form).add("I live in Lyon. " * 9)
    for form in ("bfloat16", *FORMS):
        # Whatever this worker writes, it reads them all.
        with BeaconMemory.open(model, f"sqlite:///{tmp_path}/m.db") as memory:
            answers[form] = model.logits([5, 6, 7], memory.session(form).state())
    off = {form: (answers[form] - answers["bfloat16"]).abs().mean() for form in FORMS}
    assert 0 < off["int8"] < off["int4"]


def test_a_session_chooses_its_form_and_keeps_it(tmp_path):
    model = tiny_model(config=BeaconConfig(window=32, keep_last=8, sink=2, anchors="last"))
    with BeaconMemory.open(model, f"sqlite:///{tmp_path}/m.db") as memory:
        memory.session("alice", slot_dtype="int8").add("I live in Lyon. " * 9)
        memory.session("bob").add("I live in Oslo. " * 9)
        memory.session("alice").add_document("The lease ends in May. " * 20)
        hot = memory.session("alice").state()
        sizes = [memory.session(name).info().bytes / memory.session(name).info().slots for name in ("alice", "bob")]
        memory.store.delete("bob")
    with BeaconMemory.open(model, f"sqlite:///{tmp_path}/m.db") as memory:
        cold = memory.session("alice").state()
        assert cold.equals(hot)
        assert {segment.packed.dtype for segment in cold.segments if segment.packed} == {"int8"}
        for segment in (*hot.segments, *cold.segments):  # on hand as small as in the store
            assert segment.packed is not None
            assert segment.nbytes == segment.packed.nbytes < segment.keys.nbytes + segment.values.nbytes
        assert sizes[0] < 0.6 * sizes[1]
        memory.session("alice", slot_dtype="int4").add("And I am a carpenter. " * 9)
        kept = [segment.packed.dtype for segment in memory.session("alice").state().segments if segment.packed]
        assert kept[0] == "int8"
        assert kept[-1] == "int4"
        with pytest.raises(ConfigError, match="int3"):
            memory.session("alice", slot_dtype="int3")


def made(form: str, count: int = 20, sink: int = 4) -> tuple[Segment, BeaconConfig]:
    """A segment that any machine makes alike: whole numbers, no random ones."""
    config = BeaconConfig(slot_dtype=form)
    ids = range(sink + 4 * (count - sink))
    parent = hashlib.sha256(b"beacon-chain-1").hexdigest()
    address = segment_digest(ids, ratio=4, sink=sink, parent=parent, config=config, fingerprint=OURS)
    numbers = (torch.arange(2 * count * 8) * 37 % 101 - 50).float().reshape(1, 2, count, 8)
    if form in FORMS:
        packed = pack(numbers, -numbers, sink=sink, dtype=form)
        return Segment(address, parent, tuple(ids), 4, sink, packed), config
    keys, values = (t.to(getattr(torch, form)) for t in (numbers, -numbers))
    return Segment(address, parent, tuple(ids), 4, sink, (keys, values)), config


GOLDEN = {
    "bfloat16": "a1488f9dbb1e17e362e56800319eeadc88bd3920da09cfeb6b83c8d262e7dc75",
    "int8": "538d30adb397dcf58a2412b76d918e7adf6254704edef48179b5ee4d0c4ee14a",
    "int4": "011be5650287027bdce2fea55322a1b18d3e741fed8e036e23d9645d9a8212b5",
}


@pytest.mark.parametrize("form", GOLDEN)
def test_bytes_are_those_of_the_format_page(form):
    """Any change here is a new format version."""
    segment, config = made(form)
    blob = encode_segment(segment, fingerprint=OURS, config=config)
    assert hashlib.sha256(blob).hexdigest() == GOLDEN[form]
    assert decode_segment(blob, fingerprint=OURS, digest=segment.digest).equals(segment)


@pytest.mark.parametrize("form", FORMS)
def test_a_segment_of_format_version_1_is_read(form):
    segment, config = made(form)
    assert segment.packed is not None
    names = ("key_scales", "key_lows", "value_scales", "value_lows")
    old = dataclasses.replace(segment.packed, **{name: getattr(segment.packed, name).float() for name in names})
    blob = encode_segment(dataclasses.replace(segment, kept=old), fingerprint=OURS, config=config)
    found = decode_segment(seal(b"SEGM", unseal(b"SEGM", blob)), fingerprint=OURS)
    assert found.keys.equal(segment.keys)
    assert found.values.equal(segment.values)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("far", [300.0, -300.0, 1e6])
def test_numbers_far_from_nought_lie_between_the_lowest_code_and_the_highest(form, far):
    keys = far + torch.rand(1, 1, GROUP, 16, generator=torch.Generator().manual_seed(0))
    packed = pack(keys, keys, sink=0, dtype=form)
    assert packed.key_lows.dtype == (torch.float16 if abs(far) < 1e4 else torch.bfloat16)
    lows, scales = packed.key_lows.float(), packed.key_scales.float()
    steps = 255 if form == "int8" else 15
    assert (lows[:, :, 0] <= keys.amin(2)).all()
    assert (lows[:, :, 0] + steps * scales[:, :, 0] >= keys.amax(2)).all()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    "name", ["sink_keys", "keys", "key_scales", "key_lows", "values", "value_scales", "value_lows"]
)
def test_a_tensor_of_the_wrong_shape_or_dtype_is_refused(form, name):
    segment, config = made(form)
    assert segment.packed is not None
    tensor = getattr(segment.packed, name)
    other = torch.bfloat16 if tensor.dtype == torch.float16 else torch.float16
    for wrong in (tensor[:, :1], tensor[..., :-1], tensor.to(other), tensor.to(torch.float64), tensor[0]):
        packed = dataclasses.replace(segment.packed, **{name: wrong.contiguous()})
        blob = encode_segment(dataclasses.replace(segment, kept=packed), fingerprint=OURS, config=config)
        with pytest.raises(CodecError):
            decode_segment(blob, fingerprint=OURS)


def test_pairs_of_an_odd_number_are_refused():
    segment, config = made("int4")
    assert segment.packed is not None
    cut = {name: tensor[..., :-1].contiguous() for name, tensor in segment.packed.tensors.items() if name[:3] != "val"}
    cut |= {"values": segment.packed.values[..., :-1].contiguous(), "keys": segment.packed.keys[..., :-1].contiguous()}
    packed = dataclasses.replace(segment.packed, **cut)
    assert packed.sink_keys.shape[-1] % 2
    blob = encode_segment(dataclasses.replace(segment, kept=packed), fingerprint=OURS, config=config)
    with pytest.raises(CodecError, match="pairs"):
        decode_segment(blob, fingerprint=OURS)


@pytest.mark.parametrize("form", FORMS)
def test_every_truncation_and_flip_of_a_packed_segment_is_refused(form):
    segment, config = made(form)
    blob = encode_segment(segment, fingerprint=OURS, config=config)
    for place in range(0, len(blob), 3):
        flipped = bytearray(blob)
        flipped[place] ^= 1 << place % 8
        for wrong in (blob[:place], bytes(flipped)):
            with pytest.raises(CodecError):
                decode_segment(wrong, fingerprint=OURS)
    assert seal(b"SEGM", unseal(b"SEGM", blob), version=2) == blob
