"""Hostile bytes: nothing but our own errors, and no memory for a size that a blob only claims."""

from __future__ import annotations

import hashlib
import json
import random
import resource
import struct
from collections.abc import Callable

import pytest

from beacon_memory import BeaconConfig
from beacon_memory.errors import BeaconError
from beacon_memory.state.codec import (
    HEAD,
    PAGE,
    SEGMENT,
    SOURCE,
    decode_ids,
    decode_segment,
    encode_ids,
    encode_segment,
    seal,
)
from beacon_memory.state.head import Entry, SessionHead, read_page
from beacon_memory.state.state import Fingerprint
from beacon_memory.stores.signing import Signer
from beacon_memory.testing import tiny_model

SIGNER = Signer("beacon:{default}", b"a key of this deployment")
NASTY = [
    b"\0", b"\xff" * 8, b"[" * 5000, b"{", b"}", b'"', b"null", b"-1", b"1e999", b"NaN", b"9" * 5000,
    b"[0,18446744073709551615]", b"99999999999999", b'"shape":[1099511627776,1099511627776,0,8]', b"\xf0\x9f\x98\x80",
    b"true", b'{"a":' * 900,
]  # fmt: skip


def blobs() -> list[tuple[bytes, bytes, Callable[[bytes], object]]]:
    """(kind, blob, its reader) of all that is ever decoded."""
    found: list[tuple[bytes, bytes, Callable[[bytes], object]]] = []
    for form, family in (("bfloat16", "llama"), ("int8", "llama"), ("int4", "llama"), ("bfloat16", "qwen3_5_text")):
        config = BeaconConfig(window=16, sink=2, keep_last=4, anchors="last", slot_dtype=form)
        model = tiny_model(family, config=config)
        ours: Fingerprint = model.fingerprint
        for segment in model.compress(range(40)).segments[:2]:
            blob = encode_segment(segment, fingerprint=ours, config=config)
            found.append((SEGMENT, blob, lambda data, ours=ours: decode_segment(data, fingerprint=ours)))  # type: ignore[misc]
    head = SessionHead(
        fingerprint=ours,
        ratio=4,
        budget=100,
        entries=(Entry("a" * 64, 18, 6, 4, "doc"), Entry("b" * 64, 16, 4, 4)),
        tail=(1, 2, 3),
        pages=("c" * 64,),
        recent=({"role": "user", "content": "où?"},),
        sources={"doc": "d" * 64},
    )

    def use(data: bytes) -> object:
        read = SessionHead.from_bytes(data)
        return read.digests, read.messages, read.to_bytes()

    found.append((HEAD, head.to_bytes(), use))
    page = seal(PAGE, json.dumps([{"role": "user", "content": "x"}] * 3).encode())
    found.append((PAGE, page, lambda data: read_page(data, hashlib.sha256(data).hexdigest())))
    found.append((SOURCE, encode_ids(range(30)), lambda data: decode_ids(data, hashlib.sha256(data).hexdigest())))
    found.append((b"", SIGNER.sign("blob", "d1", page), lambda data: SIGNER.verify("blob", "d1", data)))
    return found


def mutated(data: bytes, draw: random.Random) -> bytes:
    out = bytearray(data)
    for _ in range(draw.choice([1, 1, 1, 2, 5])):
        place = draw.randrange(len(out) + 1)
        end = min(len(out), place + draw.choice([0, 1, 2, 8, 60]))
        act = draw.randrange(6)
        if act == 0 and out:
            out[place % len(out)] ^= 1 << draw.randrange(8)
        elif act == 1:
            out[place:end] = draw.choice(NASTY)
        elif act == 2:
            del out[place:end]
        elif act == 3:
            del out[place:]
        elif act == 4:
            out[place:end] = out[draw.randrange(len(out) + 1) :][:60]
        else:
            # Lengths and counts: what a reader might allocate by.
            out[:8] = struct.pack(
                "<Q", draw.choice([0, 1, len(out), 2**31, 2**63 - 1, 2**64 - 1, draw.randrange(9999)])
            )
    return bytes(out)


def fuzz(times: int, seed: int) -> tuple[int, int]:
    """How many were refused, and how many read: the right form with other words or numbers, behind a checksum made
    for them. Anything but our own errors ends it."""
    draw = random.Random(seed)
    found = blobs()
    refused = 0
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for number in range(times):
        kind, blob, read = found[number % len(found)]
        # Most behind a checksum that holds: then the payload itself is reached.
        resealed = kind and draw.random() < 0.8
        wrong = seal(kind, mutated(blob[48:], draw)) if resealed else mutated(blob, draw)
        try:
            read(wrong)
        except BeaconError:
            refused += 1
        except Exception as exc:
            raise AssertionError(f"seed {seed}, number {number}: {type(exc).__name__} for {wrong[:4000]!r}") from exc
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < 100 * 1024, f"{grown} KiB more at the peak"
    return refused, times - refused


def test_mutated_blobs_and_heads_raise_our_errors_alone() -> None:
    refused, read = fuzz(6_000, seed=random.randrange(1 << 30))
    assert refused > 4 * read


@pytest.mark.long
def test_200_000_mutated_blobs_and_heads_raise_our_errors_alone() -> None:
    refused, read = fuzz(200_000, seed=1)
    print(f"{refused} refused, {read} read as other words or numbers")
