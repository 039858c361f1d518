"""Requests between vLLM's scheduler and its workers: which slots to load into which blocks. No vLLM is needed here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from beacon_memory.errors import BeaconError, ConfigError, InputError
from vllm_beacon.asked import Asked


@dataclass(frozen=True)
class Load:
    """Slots to write into a request's blocks before the model reads them."""

    request: str
    asked: Asked | None  # None where it was refused
    ids: tuple[int, ...]  # the request's placeholders
    blocks: tuple[int, ...]
    start: int  # what stands before it is in the blocks already
    end: int
    refused: str = ""  # why the request fails instead


@dataclass
class Loads:
    """The scheduler's side: what requests ask for, and what is loaded in the next step."""

    _next: list[Load] = field(default_factory=list)

    def wanted(self, request: Any) -> tuple[Asked | None, str]:
        """What a request of vLLM's asks for, and why it is refused, if it is."""
        ids = request.prompt_token_ids
        try:
            asked = Asked.of(request.kv_transfer_params)
            if asked is None:
                return None, ""
            if ids is None:
                raise InputError("a memory stands in front of token ids, not of embeddings")
            if request.lora_request is not None:
                raise InputError("a memory was folded by the base model: ask without a LoRA adapter")
            if request.sampling_params is not None and request.sampling_params.prompt_logprobs is not None:
                raise InputError("placeholders have no log-probabilities: ask without prompt_logprobs")
            return asked.check(len(ids)), ""
        except BeaconError as exc:
            return None, str(exc)

    def refuse(self, request: Any) -> None:
        """Have a request that is refused find nothing in the prefix cache, and no other request find its blocks: it
        fails when it is loaded, and nothing is answered.
        """
        request.cache_salt = f"refused {request.request_id}"
        request.skip_reading_prefix_cache = False
        request.block_hashes.clear()
        request.update_block_hashes()

    def matched(self, request: Any, computed: int) -> int:
        """How many tokens behind the first `computed` are loaded."""
        asked, refused = self.wanted(request)
        end = len(request.prompt_token_ids or ()) - 1 if refused else asked.slots if asked else 0
        return max(0, end - computed)

    def allocated(self, request: Any, blocks: Sequence[int], loaded: int) -> None:
        """Note that a request was given blocks, and that so many tokens are to be loaded into them."""
        if not loaded:
            return
        asked, refused = self.wanted(request)
        end = asked.slots if asked else len(request.prompt_token_ids or ()) - 1
        ids = tuple(request.prompt_token_ids[:end]) if asked else ()
        self._next.append(Load(request.request_id, asked, ids, tuple(blocks), end - loaded, end, refused))

    def step(self) -> list[Load]:
        """What is to be loaded now; it is told once."""
        loads, self._next = self._next, []
        return loads


def check_settings(extra: Mapping[str, Any], *, policy: str, known: Sequence[str]) -> None:
    """Raises ConfigError for settings of vLLM's that would give wrong answers, and for settings that are not ours."""
    if policy != "fail":
        raise ConfigError(
            f'kv_load_failure_policy is {policy!r}: the model would read placeholders as words; leave it at "fail"'
        )
    if unknown := sorted(set(extra) - set(known)):
        raise ConfigError(f"kv_connector_extra_config takes {', '.join(known)}, not {', '.join(unknown)}")
    if not isinstance(extra.get("store"), str):
        raise ConfigError('kv_connector_extra_config needs a store: {"store": "redis://localhost:6379"}')
