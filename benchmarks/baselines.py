"""What a user would pick instead, as transformers does it: reading again, a cache that is there, a cache restored."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import redis
import safetensors.torch
import torch
from torch import Tensor
from transformers import DynamicCache, LogitsProcessorList

from beacon_memory.fold.family import slot_shape
from beacon_memory.models.resident import CACHE

CHUNK = 256  # tokens of one stored value: LMCache's default
BATCH_BYTES = 32 << 20  # of one MGET


def prefill(lm: Any, ids: Sequence[int]) -> Any:
    """Read ids, cache kept, up to the first next-token logits."""
    with torch.inference_mode():
        return lm(torch.tensor([list(ids)], device=lm.device), use_cache=True, logits_to_keep=1)


def random_entries(lm: Any, entries: int, *, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Keys and values of so many tokens, in bfloat16: no time depends on what they are.

    # (layers, kv_heads, entries, head_dim) each
    """
    random = torch.Generator().manual_seed(seed)
    layers, kv_heads, width = slot_shape(lm.config)
    shape = (layers, kv_heads, entries, width)
    keys, values = (torch.randn(shape, generator=random).to(torch.bfloat16) for _ in range(2))
    return keys, values


def cache_of(lm: Any, keys: Tensor, values: Tensor) -> DynamicCache:
    """A stock cache that holds these.  # (layers, kv_heads, entries, head_dim) each"""
    cache = DynamicCache(config=lm.config)
    for layer in range(len(keys)):
        cache.update(*(t[layer][None].to(lm.device, lm.dtype) for t in (keys, values)), layer)
    return cache


def answer(
    lm: Any, prompt: Sequence[int], cache: DynamicCache, *, new: int, processors: Sequence[Any] = ()
) -> tuple[Tensor, DynamicCache]:
    """Stock generate() behind a cache: so many new tokens, greedy."""
    ids = torch.tensor([list(prompt)], device=lm.device)
    mask = torch.ones(1, cache.get_seq_length() + ids.shape[1], dtype=torch.long, device=lm.device)
    with torch.inference_mode():
        found: Tensor = lm.generate(
            ids,
            attention_mask=mask,
            **{CACHE: cache},
            max_new_tokens=new,
            do_sample=False,
            pad_token_id=0,
            logits_processor=LogitsProcessorList(processors),
        )
    return found, cache


class RawStore:
    """A KV cache kept as safetensors in Redis, a value for each so many tokens, as LMCache and MemOS keep theirs."""

    def __init__(self, client: redis.Redis, name: str) -> None:
        self._client = client
        self._name = name
        self._names: list[str] = []
        self.bytes = 0

    def save(self, keys: Tensor, values: Tensor) -> None:
        """Keep a cache.  # (layers, kv_heads, tokens, head_dim) each"""
        for number, first in enumerate(range(0, keys.shape[2], CHUNK)):
            part = {
                "keys": keys[:, :, first : first + CHUNK].contiguous(),
                "values": values[:, :, first : first + CHUNK].contiguous(),
            }
            blob = safetensors.torch.save(part)
            self._names.append(f"raw:{self._name}:{number}")
            self._client.set(self._names[-1], blob)
            self.bytes += len(blob)

    def restore(self, lm: Any) -> DynamicCache:
        """The cache back, in the model's dtype."""
        each = max(1, BATCH_BYTES // (self.bytes // len(self._names)))
        keys, values = [], []
        for first in range(0, len(self._names), each):
            for blob in self._client.mget(self._names[first : first + each]):
                part = safetensors.torch.load(blob)
                keys.append(part["keys"])
                values.append(part["values"])
        cache = DynamicCache(config=lm.config)
        for layer in range(lm.config.num_hidden_layers):
            found = [torch.cat([part[layer] for part in parts], dim=1)[None] for parts in (keys, values)]
            cache.update(*(t.to(lm.device, lm.dtype) for t in found), layer)
        return cache

    def drop(self) -> None:
        """Give its memory back."""
        if self._names:
            self._client.delete(*self._names)
        self._names, self.bytes = [], 0


def get(
    client: redis.Redis, names: Sequence[str], *, size: int, each: Callable[[bytes], object] = lambda value: None
) -> None:
    """The floor of every restore: so many bytes out of Redis, in batches, and next to nothing done with each value."""
    batch = max(1, BATCH_BYTES // (size // len(names) + 1))
    for first in range(0, len(names), batch):
        for value in client.mget(list(names[first : first + batch])):
            each(value)
