"""Bytes of segments, heads and pages: framed, checksummed, versioned (docs/format.md). No pickle.

Every blob is a frame: 4 bytes "BCNM", 4 bytes kind, the version (uint32, little-endian), 4 zero bytes, a SHA-256 over
everything but itself, then the payload. A segment's payload is a safetensors file, the others' are JSON.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Mapping, Sequence
from typing import Any

import safetensors
import torch
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from beacon_memory.config import RATIOS, BeaconConfig, slot_count
from beacon_memory.errors import BeaconError, CodecError, ModelMismatch
from beacon_memory.state.places import unpack_places
from beacon_memory.state.quantise import BITS, SCALES, Packed, pack, shapes
from beacon_memory.state.recurrent import Recurrent, kept_dtype
from beacon_memory.state.state import Fingerprint, Segment, segment_digest

VERSION = 5  # newest that is read
PLAIN, PACKED, OVERLAPPED, PLACED, RECURRENT = (
    1,
    2,
    3,
    4,
    5,
)  # what is written: a blob names the oldest version that knows its form
MAGIC = b"BCNM"
SEGMENT, HEAD, PAGE, SOURCE, NOTE = b"SEGM", b"HEAD", b"PAGE", b"TEXT", b"NOTE"

# Everything that reading a hostile payload can raise.
_UNREADABLE = (
    safetensors.SafetensorError,
    BeaconError,
    ValueError,
    KeyError,
    TypeError,
    AttributeError,
    OverflowError,
    RecursionError,
    RuntimeError,  # torch, for a size that overflows
    struct.error,
)
_START = struct.Struct("<4s4sII")
_HEADER = _START.size + hashlib.sha256().digest_size


def seal(kind: bytes, payload: bytes, *, version: int = PLAIN) -> bytes:
    """A payload in its frame."""
    start = _START.pack(MAGIC, kind, version, 0)
    return b"".join((start, _checksum(start, payload), payload))


def unseal(kind: bytes, blob: bytes) -> bytes:
    """The payload of a frame of this kind. Anything else raises CodecError before the payload is parsed."""
    name = kind.decode().lower()
    if len(blob) < _HEADER:
        raise CodecError(f"{name}: {len(blob)} bytes are too few for a blob, which has at least {_HEADER}")
    magic, found, version, _ = _START.unpack_from(blob)
    if magic != MAGIC:
        raise CodecError(f"{name}: not a beacon-memory blob (it begins with {magic!r})")
    start, checksum, payload = blob[: _START.size], blob[_START.size : _HEADER], blob[_HEADER:]
    if _checksum(start, payload) != checksum:
        raise CodecError(f"{name}: the checksum does not match: the blob is damaged or truncated")
    if not 1 <= version <= VERSION:
        raise CodecError(f"{name}: written in format version {version}, this release reads up to {VERSION}: upgrade it")
    if found != kind:
        raise CodecError(f"{name}: expected a blob of kind {kind!r}, found {found!r}")
    return payload


def checksum(blob: bytes) -> str:
    """The SHA-256 in a frame's header, in hex. It covers all other bytes of the frame; `unseal` checks it."""
    return blob[_START.size : _HEADER].hex()


def _checksum(start: bytes, payload: bytes) -> bytes:
    digest = hashlib.sha256(start)
    digest.update(payload)
    return digest.digest()


def encode_segment(segment: Segment, *, fingerprint: Fingerprint, config: BeaconConfig) -> bytes:
    """A segment's bytes, with its fingerprint and settings. Raises CodecError when it holds a NaN or an infinity."""
    about = {
        "model": fingerprint.model,
        "adapter": fingerprint.adapter,
        "tokenizer": fingerprint.tokenizer,
        "layout": fingerprint.layout,
        "anchors": config.anchors,
        "slot_dtype": config.slot_dtype,
        "digest": segment.digest,
        "parent": segment.parent,
        "ratio": segment.ratio,
        "sink": segment.sink,
    } | ({"overlap": segment.overlap} if segment.overlap else {})
    tensors = {"ids": torch.tensor(segment.ids, dtype=torch.int32)}
    if config.slot_dtype in BITS:
        packed = segment.packed or pack(segment.keys, segment.values, sink=segment.sink, dtype=config.slot_dtype)
        tensors |= packed.tensors
    else:
        tensors |= {"keys": segment.keys.cpu().contiguous(), "values": segment.values.cpu().contiguous()}
    if segment.placed is not None:
        tensors |= {"places": segment.placed.cpu().contiguous()}
    if segment.recurrent is not None:
        tensors |= segment.recurrent.mapped(lambda tensor: tensor.cpu().contiguous()).tensors
    _check_finite(tensors)
    # One metadata entry: safetensors writes several in any order, and equal segments must be equal bytes.
    payload = save_tensors(tensors, metadata={"beacon": json.dumps(about, sort_keys=True)})
    version = PACKED if config.slot_dtype in BITS else PLAIN
    if segment.placed is not None or segment.overlap:
        version = OVERLAPPED if segment.placed is None else PLACED
    if segment.recurrent is not None:
        version = RECURRENT
    return seal(SEGMENT, payload, version=version)


def decode_segment(
    blob: bytes, *, fingerprint: Fingerprint, digest: str | None = None, checked: str | None = None
) -> Segment:
    """The segment, bit for bit.

    Raises CodecError when the blob is damaged, holds a NaN or an infinity, does not match its own digest, is not the
    segment `digest`, or does not have the checksum `checked`. Raises ModelMismatch, naming the fields that differ, when
    another model, adapter, tokenizer or layout wrote it.
    """
    payload = unseal(SEGMENT, blob)
    if checked and checksum(blob) != checked:
        raise CodecError(f"segment {str(digest)[:12]}: other slots than those that the session's head names")
    try:
        size = int.from_bytes(payload[:8], "little")
        about = json.loads(json.loads(payload[8 : 8 + size])["__metadata__"]["beacon"])
        theirs = Fingerprint(about["model"], about["adapter"], about["tokenizer"], about["layout"])
        config = BeaconConfig(layout=theirs.layout, anchors=about["anchors"], slot_dtype=about["slot_dtype"])
        tensors = load_tensors(payload)
        ids, ratio, sink = tensors.pop("ids"), int(about["ratio"]), int(about["sink"])
        overlap = int(about.get("overlap", 0))
        if ids.dtype != torch.int32 or ids.ndim != 1 or ratio not in RATIOS or not 0 <= sink <= len(ids) or overlap < 0:
            raise ValueError(f"{tuple(ids.shape)} ids of {ids.dtype}, ratio {ratio}, sink {sink}, overlap {overlap}")
        slots = sink + slot_count(len(ids) - sink, ratio)
        digest_, parent = str(about["digest"]), str(about["parent"])
        placed = tensors.pop("places", None)
        if placed is not None:
            unpack_places(placed, tokens=len(ids) - sink, ratio=ratio)
        recurrent = _recurrent(tensors, config)
        kept = _slots(tensors, slots, sink, config)
        named: dict[str, Any] = {"placed": placed, "recurrent": recurrent}
        segment = Segment(digest_, parent, tuple(ids.tolist()), ratio, sink, kept, overlap, **named)
        _check_heads(segment)
        address = segment_digest(
            segment.ids,
            ratio=segment.ratio,
            sink=segment.sink,
            overlap=segment.overlap,
            parent=segment.parent,
            config=config,
            fingerprint=theirs,
        )
    except CodecError:
        raise
    except _UNREADABLE as exc:
        raise CodecError(f"segment: not a readable payload: {exc!r}") from exc
    if address != segment.digest or (digest is not None and digest != segment.digest):
        raise CodecError(f"segment: asked for {digest}, found {segment.digest}, whose contents are {address}")
    require(theirs, fingerprint, what=f"segment {segment.digest[:12]}")
    return segment


def _recurrent(tensors: dict[str, Tensor], config: BeaconConfig) -> Recurrent | None:
    """The recurrent state, which is taken out of a segment's tensors; None where there is none. Raises CodecError."""
    found: dict[str, Tensor] = {name: tensors.pop(name) for name in ("conv", "delta") if name in tensors}
    if not found:
        return None
    dtype = kept_dtype(config.slot_dtype)
    for name, dimensions in (("conv", 3), ("delta", 4)):
        if name in found and (found[name].dtype != dtype or found[name].ndim != dimensions):
            about = f"{found[name].dtype} of shape {tuple(found[name].shape)}"
            raise CodecError(f"segment: a recurrent state's {name} is {dtype} in {dimensions} dimensions, not {about}")
    if "conv" not in found or len({len(tensor) for tensor in found.values()}) > 1:
        raise CodecError("segment: a recurrent state has as many layers in each of its tensors, and a conv")
    _check_finite(found)
    return Recurrent(**found)


def _slots(
    tensors: Mapping[str, Tensor], slots: int, sink: int, config: BeaconConfig
) -> tuple[Tensor, Tensor] | Packed:
    """The keys and values from a segment's tensors. Raises CodecError when a shape or dtype is wrong."""
    packed = config.slot_dtype in BITS
    layers, heads, _, width = tensors["sink_keys" if packed else "keys"].shape
    if config.slot_dtype == "int4" and width % 2:
        raise CodecError(f"segment: int4 packs channels in pairs, so heads of {width} channels are impossible")
    if packed:
        scales = tensors["key_scales"].dtype
        if scales not in SCALES:
            raise CodecError(f"segment: scales must be one of {SCALES}, found {scales}")
        size = {"layers": layers, "heads": heads, "slots": slots, "sink": sink, "width": width}
        expected = shapes(**size, dtype=config.slot_dtype, scales=scales)
    else:
        expected = dict.fromkeys(("keys", "values"), ((layers, heads, slots, width), getattr(torch, config.slot_dtype)))
    found = {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in tensors.items()}
    if found != expected:
        raise CodecError(f"segment: expected {slots} slots, {expected}, found {found}")
    _check_finite(tensors)
    if not packed:
        return tensors["keys"], tensors["values"]
    for kind in ("key", "value"):
        highest = tensors[f"{kind}_scales"].float() * (2 ** BITS[config.slot_dtype] - 1) + tensors[f"{kind}_lows"]
        if not highest.to(torch.bfloat16).isfinite().all():
            raise CodecError(f"segment: {kind}s unpack to numbers that are not finite")
    return Packed(config.slot_dtype, **tensors)


def _check_heads(segment: Segment) -> None:
    """Raises CodecError for places of other layers or heads than those of the slots."""
    if segment.placed is None:
        return
    theirs, ours = segment.placed.shape[:2], (segment.packed.sink_keys if segment.packed else segment.keys).shape[:2]
    if any(found not in (1, expected) for found, expected in zip(theirs, ours, strict=True)):
        raise CodecError(f"segment: places of {tuple(theirs)} layers and heads, slots of {tuple(ours)}")


def _check_finite(tensors: Mapping[str, Tensor]) -> None:
    """Raises CodecError for a NaN or an infinity: one would make every answer a NaN."""
    for name, tensor in tensors.items():
        # The sum is finite unless a number is not, or the sum overflows: far cheaper than checking each number.
        wide = tensor.is_floating_point() and not tensor.sum(dtype=torch.float32).isfinite()
        if wide and not tensor.isfinite().all():
            raise CodecError(f"segment: {name} hold numbers that are not finite")


def require(theirs: Fingerprint, ours: Fingerprint, *, what: str) -> None:
    """Raises ModelMismatch, naming every field that differs."""
    if fields := theirs.differences(ours):
        differ = ", ".join(f"{f} {getattr(theirs, f)} (this one is {getattr(ours, f)})" for f in fields)
        raise ModelMismatch(f"{what} was written with another {differ}: open it with that, or refold it for this one")


def encode_ids(ids: Sequence[int]) -> bytes:
    """A document's ids as bytes: its segments can be folded again from them."""
    return seal(SOURCE, struct.pack(f"<{len(ids)}i", *ids))


def decode_ids(blob: bytes, digest: str) -> list[int]:
    """The ids. Raises CodecError when the blob is damaged or is not the one that `digest` names."""
    payload = unseal(SOURCE, blob)
    if len(payload) % 4 or hashlib.sha256(blob).hexdigest() != digest:
        raise CodecError(f"text: its {len(payload)} bytes are not those of {digest}")
    return list(struct.unpack(f"<{len(payload) // 4}i", payload))


def encode_json(kind: bytes, value: Any) -> bytes:
    """A head or a page as bytes."""
    return seal(kind, json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode())


def decode_json(kind: bytes, blob: bytes) -> Any:
    """The value of a head or a page. Raises CodecError."""
    try:
        payload = unseal(kind, blob)
        value = json.loads(payload)
        if b"\\ud" in payload or b"\\uD" in payload:  # half a letter, which could be read and not be written again
            json.dumps(value, ensure_ascii=False).encode()
        return value
    except (ValueError, RecursionError) as exc:
        raise CodecError(f"{kind.decode().lower()}: not a readable payload: {exc}") from exc
