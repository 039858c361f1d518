"""Sessions of any length without folding them: real ids and messages, slots of random numbers.

No time and no number of bytes depends on what a slot holds; `fold.py` folds real text.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace

from rivals import random_entries

from beacon_memory import BeaconMemory, BeaconModel, BeaconState, Segment
from beacon_memory.codec import encode_ids
from beacon_memory.head import DOCUMENT
from beacon_memory.layout import slot_count
from beacon_memory.quantise import BITS, pack, unpack
from beacon_memory.state import chain, segment_digest

MESSAGE = 60  # tokens


def state(
    model: BeaconModel, ids: Sequence[int], *, ratio: int, close: bool, slot_dtype: str = "bfloat16"
) -> BeaconState:
    """What `model.compress` would give, but for what the slots hold."""
    config = model.config.replace(slot_dtype=slot_dtype)
    segments: list[Segment] = []
    rest = list(ids)
    while rest:
        sink = 0 if segments else min(config.sink, len(rest))
        size = sink + config.window
        if not close and len(rest) < size + config.keep_last:
            break
        window, rest = rest[:size], rest[size:]
        parent = chain(segment.digest for segment in segments)
        how = {"ratio": ratio, "sink": sink, "parent": parent, "config": config, "fingerprint": model.fingerprint}
        digest = segment_digest(window, **how)
        keys, values = random_entries(model.lm, sink + slot_count(len(window) - sink, ratio), seed=len(segments))
        packed = pack(keys, values, sink=sink, dtype=slot_dtype) if slot_dtype in BITS else None
        if packed:
            keys, values = unpack(packed)
        segments.append(Segment(digest, parent, tuple(window), ratio, sink, keys, values, packed))
    return BeaconState(tuple(segments), tuple(rest))


def slots(model: BeaconModel, count: int, *, seed: int) -> BeaconState:
    """A state of so many slots and nothing else."""
    keys, values = random_entries(model.lm, count, seed=seed)
    digest = hashlib.sha256(b"%d %d" % (count, seed)).hexdigest()
    return BeaconState((Segment(digest, "", (0,) * count, 1, 0, keys, values),))


def document(memory: BeaconMemory, name: str, ids: Sequence[int], *, ratio: int, slot_dtype: str = "bfloat16") -> None:
    """A session that has read one document."""
    session = memory.session(name, ratio=ratio, slot_dtype=slot_dtype)
    head, _, _ = session.opened()
    read = state(memory.model, ids, ratio=ratio, close=True, slot_dtype=slot_dtype)
    address = read.digest[:16]
    note = {"role": DOCUMENT, "content": name, "tokens": read.tokens, "document": address}
    changed, pages = head.with_state(read, document=address).with_messages([note])
    source = encode_ids(ids)
    digest = hashlib.sha256(source).hexdigest()
    changed = replace(changed, sources={address: digest})
    session.write(head, changed, read, pages | {digest: source}, expected=0)


def talk(memory: BeaconMemory, name: str, ids: Sequence[int], *, ratio: int, slot_dtype: str = "bfloat16") -> None:
    """A session of messages of 60 tokens that say these ids, user and assistant in turn.

    It ends where the raw tail has its mean length: what is never folded, and half a window.
    """
    session = memory.session(name, ratio=ratio, slot_dtype=slot_dtype)
    head, _, _ = session.opened()
    model, transcript = memory.model, memory.transcript
    messages: list[dict[str, str]] = []
    said: list[int] = list(transcript.start)
    config = model.config
    tail = config.keep_last + config.window // 2
    whole = (len(ids) - config.sink - tail) // config.window * config.window
    for first in range(0, len(ids), MESSAGE):
        if len(said) >= config.sink + max(whole, 0) + tail:
            break
        text = model.decode(ids[first : first + MESSAGE])
        messages.append({"role": ("user", "assistant")[len(messages) % 2], "content": text})
        said += transcript.turn(messages[-1])
    after = state(model, said, ratio=ratio, close=False, slot_dtype=slot_dtype)
    changed, pages = head.with_state(after).with_messages(list(messages))
    session.write(head, changed, after, pages, expected=0)
