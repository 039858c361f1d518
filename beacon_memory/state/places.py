"""Which tokens slots stand for, in two bits and log2(ratio) more for each slot and KV head (Elias-Fano).

The places of a head ascend and lie below the number of tokens. So of each place only the low log2(ratio) bits are kept
as they are; what is left ascends too and stays below the number of slots, and is kept as steps in unary.
"""

from __future__ import annotations

import numpy
import torch
from torch import Tensor

from beacon_memory.config import slot_count


def pack_places(places: Tensor, *, ratio: int) -> Tensor:
    """Ascending places of slots among the tokens they were folded from.

    places: (layers, kv_heads, slots), whole numbers; the slots are `slot_count(tokens, ratio)`.
    # (layers, kv_heads, bytes), uint8

    >>> packed = pack_places(torch.tensor([[[1, 6, 8]]]), ratio=4)
    >>> packed.shape, unpack_places(packed, tokens=10, ratio=4).tolist()
    (torch.Size([1, 1, 2]), [[[1, 6, 8]]])
    """
    numbers = places.cpu().numpy()
    low_bits = _low_bits(ratio)
    *heads, slots = numbers.shape
    bits = numpy.zeros((*heads, slots * (low_bits + 2)), dtype=numpy.uint8)
    low = (numbers[..., None] >> numpy.arange(low_bits)) & 1
    bits[..., : slots * low_bits] = low.reshape(*heads, -1)
    steps = slots * low_bits + (numbers >> low_bits) + numpy.arange(slots)
    numpy.put_along_axis(bits, steps, 1, axis=-1)
    return torch.from_numpy(numpy.packbits(bits, axis=-1, bitorder="little"))


def unpack_places(packed: Tensor, *, tokens: int, ratio: int) -> Tensor:
    """The places back. Raises ValueError when they do not ascend within so many tokens, a slot for each unit.

    # (layers, kv_heads, slots), int64
    """
    slots, low_bits = slot_count(tokens, ratio), _low_bits(ratio)
    if packed.dtype != torch.uint8 or packed.ndim != 3 or packed.shape[2] != packed_bytes(tokens, ratio):
        raise ValueError(f"places of {slots} slots, found {tuple(packed.shape)} of {packed.dtype}")
    bits = numpy.unpackbits(packed.cpu().numpy(), axis=-1, bitorder="little")
    start, end = slots * low_bits, slots * (low_bits + 2)
    if bits[..., end:].any() or (bits[..., start:end].sum(axis=-1) != slots).any():
        raise ValueError(f"places of {slots} slots, found another number of them")
    heads = packed.shape[:2]
    low = (bits[..., :start].reshape(*heads, slots, low_bits).astype(numpy.int64) << numpy.arange(low_bits)).sum(-1)
    steps = bits[..., start:end].nonzero()[2].reshape(*heads, slots)
    places = ((steps - numpy.arange(slots)) << low_bits) + low
    if slots and (places[..., -1].max() >= tokens or (numpy.diff(places, axis=-1) <= 0).any()):
        raise ValueError(f"places that do not ascend within {tokens} tokens")
    return torch.from_numpy(places)


def packed_bytes(tokens: int, ratio: int) -> int:
    """The bytes of one head's places."""
    return -(-slot_count(tokens, ratio) * (_low_bits(ratio) + 2) // 8)


def _low_bits(ratio: int) -> int:
    return ratio.bit_length() - 1
