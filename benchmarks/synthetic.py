"""Sessions of any length without folding them: real ids and messages, slots of random numbers.

No time and no number of bytes depends on what a slot holds; `speed/fold.py` folds real text.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace

import torch

from beacon_memory import BeaconMemory, BeaconModel, BeaconState, Segment
from beacon_memory.config import slot_count
from beacon_memory.state.budget import next_refold
from beacon_memory.state.codec import encode_ids
from beacon_memory.state.head import DOCUMENT
from beacon_memory.state.quantise import BITS, pack
from beacon_memory.state.state import chain, segment_digest
from benchmarks.baselines import random_entries

MESSAGE = 60  # tokens


def state(
    model: BeaconModel, ids: Sequence[int], *, ratio: int, document: bool, slot_dtype: str = "bfloat16"
) -> BeaconState:
    """What `model.compress` would give, old memories coarser where the budget asks, but for the slots' numbers."""
    config = model.config.replace(slot_dtype=slot_dtype)
    planned: list[Segment] = []
    rest = list(ids)
    while rest:
        sink = 0 if planned else min(config.sink, len(rest))
        size = sink + (config.document_window if document else config.window)
        if not document and len(rest) < size + config.keep_last:
            break
        planned.append(_empty(rest[:size], ratio, sink))
        rest = rest[size:]
        while sum(segment.slots for segment in planned) > model.budget:
            index, coarser = next_refold(planned, model.budget)
            planned[index] = _empty(planned[index].ids, coarser, planned[index].sink)
    segments: list[Segment] = []
    for number, one in enumerate(planned):
        parent = chain(segment.digest for segment in segments)
        how = {"ratio": one.ratio, "sink": one.sink, "parent": parent}
        digest = segment_digest(one.ids, **how, config=config, fingerprint=model.fingerprint)  # type: ignore[arg-type]
        keys, values = random_entries(model.lm, one.slots, seed=number)
        packed = pack(keys, values, sink=one.sink, dtype=slot_dtype) if slot_dtype in BITS else None
        segments.append(Segment(digest, parent, one.ids, one.ratio, one.sink, packed or (keys, values)))
    return BeaconState(tuple(segments), tuple(rest))


def _empty(ids: Sequence[int], ratio: int, sink: int) -> Segment:
    """A segment that holds nothing but its size."""
    shape = torch.empty(1, 1, sink + slot_count(len(ids) - sink, ratio), 1, device="meta")
    return Segment("", "", tuple(ids), ratio, sink, (shape, shape))


def slots(model: BeaconModel, count: int, *, seed: int) -> BeaconState:
    """A state of so many slots and nothing else."""
    keys, values = random_entries(model.lm, count, seed=seed)
    digest = hashlib.sha256(b"%d %d" % (count, seed)).hexdigest()
    return BeaconState((Segment(digest, "", (0,) * count, 1, 0, (keys, values)),))


def filled(memory: BeaconMemory, name: str, count: int, *, seed: int) -> None:
    """A session of so many slots and nothing else."""
    session = memory.session(name)
    head, _, _ = session.opened()
    state = slots(memory.model, count, seed=seed)
    session.write(head, head.with_state(state), state, {}, expected=0)


def document(memory: BeaconMemory, name: str, ids: Sequence[int], *, ratio: int, slot_dtype: str = "bfloat16") -> None:
    """A session that has read one document."""
    session = memory.session(name, ratio=ratio, slot_dtype=slot_dtype)
    head, _, _ = session.opened()
    read = state(memory.model, ids, ratio=ratio, document=True, slot_dtype=slot_dtype)
    address = read.digest[:16]
    note = {"role": DOCUMENT, "content": name, "tokens": read.tokens, "document": address}
    changed, pages = head.with_state(read, document=address).with_messages([note])
    source = encode_ids(ids)
    digest = hashlib.sha256(source).hexdigest()
    changed = replace(changed, sources={address: digest})
    session.write(head, changed, read, pages | {digest: source}, expected=0)


def talk(memory: BeaconMemory, name: str, ids: Sequence[int], *, ratio: int, slot_dtype: str = "bfloat16") -> None:
    """A session of messages that say these ids, user and assistant in turn.

    It ends where the raw tail has its mean length: what is never folded, and half a window.
    """
    config = memory.model.config
    tail = config.keep_last + config.window // 2
    whole = (len(ids) - config.sink - tail) // config.window * config.window
    length = config.sink + max(whole, 0) + tail
    said = messages(memory, ids, each=MESSAGE)
    told = 0
    for number, message in enumerate(said):
        told += len(memory.transcript.turn(message))
        if told >= length:
            said = said[: number + 1]
    keep(memory, name, said, ratio=ratio, slot_dtype=slot_dtype)


def messages(memory: BeaconMemory, ids: Sequence[int], *, each: int) -> list[dict[str, str]]:
    """These ids said in messages of so many tokens, user and assistant in turn."""
    texts = [memory.model.decode(ids[first : first + each]) for first in range(0, len(ids), each)]
    return [{"role": ("user", "assistant")[n % 2], "content": text} for n, text in enumerate(texts)]


def keep(
    memory: BeaconMemory, name: str, said: Sequence[dict[str, str]], *, ratio: int, slot_dtype: str = "bfloat16"
) -> None:
    """A session that remembers these messages."""
    session = memory.session(name, ratio=ratio, slot_dtype=slot_dtype)
    head, _, _ = session.opened()
    ids = [i for message in said for i in memory.transcript.turn(message)]
    after = state(memory.model, [*memory.transcript.start, *ids], ratio=ratio, document=False, slot_dtype=slot_dtype)
    changed, pages = head.with_state(after).with_messages(list(said))
    session.write(head, changed, after, pages, expected=0)
