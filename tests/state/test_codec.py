"""Bytes of segments and heads: exact, checked, and theirs alone."""

from __future__ import annotations

import dataclasses
import random

import pytest
import torch

from beacon_memory import BeaconConfig, BeaconModel, Segment
from beacon_memory.errors import CodecError, ModelMismatch
from beacon_memory.state.codec import HEAD, PAGE, decode_json, decode_segment, encode_json, encode_segment, seal, unseal
from beacon_memory.state.head import Entry, SessionHead
from beacon_memory.testing import tiny_model

CONFIG = BeaconConfig(window=16, sink=2, keep_last=4)


@pytest.fixture(scope="module")
def model() -> BeaconModel:
    return tiny_model(config=CONFIG)


@pytest.fixture(scope="module")
def segment(model: BeaconModel) -> Segment:
    return model.compress(range(40)).segments[0]


@pytest.fixture(scope="module")
def blob(model: BeaconModel, segment: Segment) -> bytes:
    return encode_segment(segment, fingerprint=model.fingerprint, config=model.config)


def test_decoding_what_was_encoded_gives_the_segment_bit_for_bit(model, segment, blob):
    assert decode_segment(blob, fingerprint=model.fingerprint, digest=segment.digest).equals(segment)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("layout", ["select", "shadow", "interleave"])
def test_every_layout_and_dtype_comes_back(layout, dtype):
    config = CONFIG.replace(layout=layout, slot_dtype=dtype, anchors="last")
    model = tiny_model(config=config)
    for segment in model.compress(range(60)).segments:
        blob = encode_segment(segment, fingerprint=model.fingerprint, config=config)
        assert decode_segment(blob, fingerprint=model.fingerprint).equals(segment)


@pytest.mark.parametrize("dtype", ["bfloat16", "int8"])
def test_a_segment_that_was_read_behind_an_overlap_says_so(dtype):
    model = tiny_model(config=CONFIG.replace(overlap=3, slot_dtype=dtype))
    first, second = model.compress(range(40)).segments
    blobs = [encode_segment(one, fingerprint=model.fingerprint, config=model.config) for one in (first, second)]
    assert [int.from_bytes(blob[8:12], "little") for blob in blobs] == [4, 4]
    before = dataclasses.replace(second, placed=None)  # as an older release wrote it
    blob = encode_segment(before, fingerprint=model.fingerprint, config=model.config)
    assert int.from_bytes(blob[8:12], "little") == 3
    assert decode_segment(blob, fingerprint=model.fingerprint, digest=second.digest).equals(before)
    found = decode_segment(blobs[1], fingerprint=model.fingerprint, digest=second.digest)
    assert found.overlap == 3
    assert found.equals(second)
    assert not found.equals(dataclasses.replace(second, overlap=0))


def test_equal_segments_are_equal_bytes(model, blob):
    again = model.compress(range(40)).segments[0]
    assert encode_segment(again, fingerprint=model.fingerprint, config=model.config) == blob


def test_every_truncation_raises_codec_error(model, blob):
    for length in range(len(blob)):
        with pytest.raises(CodecError):
            decode_segment(blob[:length], fingerprint=model.fingerprint)


def test_every_flipped_byte_raises_codec_error(model, blob):
    draw = random.Random(0)
    for place in range(len(blob)):
        flipped = bytearray(blob)
        flipped[place] ^= 1 << draw.randrange(8)
        with pytest.raises(CodecError):
            decode_segment(bytes(flipped), fingerprint=model.fingerprint)


def test_bytes_behind_a_blob_raise_codec_error(model, blob):
    with pytest.raises(CodecError):
        decode_segment(blob + b"\0", fingerprint=model.fingerprint)


@pytest.mark.parametrize(
    "payload", [b"", b"\xff" * 8, b"\x02\0\0\0\0\0\0\0{}", b"\xff\xff\xff\xff\xff\xff\xff\x7f{}", b"[]" * 40]
)
def test_a_sealed_payload_that_is_no_segment_raises_codec_error(model, payload):
    with pytest.raises(CodecError):
        decode_segment(seal(b"SEGM", payload), fingerprint=model.fingerprint)


def test_a_blob_under_anothers_digest_raises_codec_error(model, blob):
    with pytest.raises(CodecError, match="asked for"):
        decode_segment(blob, fingerprint=model.fingerprint, digest="0" * 64)


@pytest.mark.parametrize(
    "change",
    [
        {"ids": (7,) * 18},
        {"ratio": 8},
        {"sink": 1},
        {"parent": "0" * 64},
        {"digest": "1" * 64},
        {"overlap": 2},
    ],
)
def test_a_segment_that_does_not_match_its_address_raises_codec_error(model, segment, change):
    edited = dataclasses.replace(segment, **change)
    blob = encode_segment(edited, fingerprint=model.fingerprint, config=model.config)
    with pytest.raises(CodecError):
        decode_segment(blob, fingerprint=model.fingerprint)


def test_slots_of_the_wrong_shape_raise_codec_error(model, segment):
    edited = dataclasses.replace(segment, kept=(segment.keys[:, :, 1:], segment.values[:, :, 1:]))
    with pytest.raises(CodecError, match="slots"):
        decode_segment(
            encode_segment(edited, fingerprint=model.fingerprint, config=model.config), fingerprint=model.fingerprint
        )


@pytest.mark.parametrize("field", ["model", "adapter", "tokenizer", "layout"])
def test_a_blob_of_another_writer_raises_model_mismatch_naming_the_field(model, blob, field):
    other = dataclasses.replace(model.fingerprint, **{field: "another"})
    with pytest.raises(ModelMismatch, match=field):
        decode_segment(blob, fingerprint=other)


def test_a_blob_of_other_weights_raises_model_mismatch(blob):
    with pytest.raises(ModelMismatch, match="another model "):
        decode_segment(blob, fingerprint=tiny_model(seed=1, config=CONFIG).fingerprint)


@pytest.mark.parametrize(("dtype", "kept"), [("float32", "float32"), ("float16", "bfloat16"), ("int4", "bfloat16")])
@pytest.mark.parametrize("family", ["qwen3_5_text", "lfm2"])
def test_what_recurrent_layers_have_read_comes_back(family, dtype, kept):
    config = CONFIG.replace(slot_dtype=dtype)
    model = tiny_model(family, config=config)
    for segment in model.compress(range(60)).segments:
        assert segment.recurrent is not None
        assert {tensor.dtype for tensor in segment.recurrent.tensors.values()} == {getattr(torch, kept)}
        blob = encode_segment(segment, fingerprint=model.fingerprint, config=config)
        assert int.from_bytes(blob[8:12], "little") == 5
        found = decode_segment(blob, fingerprint=model.fingerprint)
        assert found.equals(segment)
        assert not found.equals(dataclasses.replace(segment, recurrent=None))
        assert not dataclasses.replace(segment, recurrent=None).equals(found)


def there_and_back(segment: Segment, model: BeaconModel) -> Segment:
    blob = encode_segment(segment, fingerprint=model.fingerprint, config=model.config)
    return decode_segment(blob, fingerprint=model.fingerprint)


def test_a_damaged_recurrent_state_is_refused():
    model = tiny_model("qwen3_5_text", config=CONFIG)
    segment = model.compress(range(40)).segments[0]
    state = segment.recurrent
    assert state is not None
    delta = state.delta
    assert delta is not None
    for damaged, said in (
        (dataclasses.replace(state, delta=delta * float("nan")), "delta hold numbers that are not finite"),
        (dataclasses.replace(state, delta=delta.float()), "delta is torch.bfloat16 in 4 dimensions"),
        (dataclasses.replace(state, conv=state.conv[None]), "conv is torch.bfloat16 in 3 dimensions"),
        (dataclasses.replace(state, conv=state.conv.repeat(2, 1, 1)), "as many layers in each of its tensors"),
    ):
        changed = dataclasses.replace(segment, recurrent=damaged)
        with pytest.raises(CodecError, match=said):
            there_and_back(changed, model)


def test_a_newer_format_says_so(model, blob):
    import hashlib
    import struct

    start = struct.pack("<4s4sII", b"BCNM", b"SEGM", 6, 0)
    newer = start + hashlib.sha256(start + blob[48:]).digest() + blob[48:]
    with pytest.raises(CodecError, match="version 6"):
        decode_segment(newer, fingerprint=model.fingerprint)


def test_kinds_are_not_taken_for_each_other():
    with pytest.raises(CodecError, match="kind"):
        unseal(PAGE, encode_json(HEAD, {}))


def test_a_head_comes_back(model):
    head = SessionHead(
        fingerprint=model.fingerprint,
        ratio=4,
        budget=100,
        entries=(Entry("a" * 64, 18, 6, 4, "doc"), Entry("b" * 64, 16, 4, 4)),
        tail=(1, 2, 3),
        pages=("c" * 64,),
        recent=({"role": "user", "content": "où? 去\0"},),
    )
    assert SessionHead.from_bytes(head.to_bytes()) == head
    assert head.digests == ("a" * 64, "b" * 64, "c" * 64)


@pytest.mark.parametrize("value", [{}, [], {"fingerprint": {}}, None, 3])
def test_a_sealed_head_without_its_fields_raises_codec_error(value):
    with pytest.raises(CodecError):
        SessionHead.from_bytes(encode_json(HEAD, value))


def test_json_that_is_none_raises_codec_error():
    with pytest.raises(CodecError):
        decode_json(HEAD, seal(HEAD, b"{\xff"))


def test_a_decoded_segment_gives_bit_identical_logits(model):
    state = model.compress(range(100))
    decoded = [
        decode_segment(
            encode_segment(s, fingerprint=model.fingerprint, config=model.config), fingerprint=model.fingerprint
        )
        for s in state.segments
    ]
    again = dataclasses.replace(state, segments=tuple(decoded))
    assert torch.equal(model.logits([5, 6, 7], state), model.logits([5, 6, 7], again))
