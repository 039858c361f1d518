"""The connector by which stock vLLM reads folded sessions (docs/vllm.md).

The scheduler's side tells vLLM that a request's first tokens, which are placeholders, are computed already. The
worker's side reads the session, and writes its slots into the request's blocks before the model runs.
"""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass, field
from functools import cache, partial
from typing import Any

import torch

from beacon_memory.errors import BeaconError, ConfigError, UnsupportedModel
from beacon_memory.fold.family import slot_shape
from beacon_memory.fold.prefix import Rope
from beacon_memory.stores import open_store
from vllm_beacon.places import rank_heads, slot_mapping, touched
from vllm_beacon.reading import Reader
from vllm_beacon.requests import Load, Loads, check_settings
from vllm_beacon.weights import check_layers, checkpoint_fingerprint, own_dtype, rotary_of

try:
    from vllm.distributed import get_tensor_model_parallel_rank, get_tensor_model_parallel_world_size
    from vllm.distributed.kv_transfer.kv_connector.v1.base import (
        KVConnectorBase_V1,
        KVConnectorMetadata,
        KVConnectorRole,
    )
    from vllm.model_executor.models.utils import extract_layer_index
except ImportError as exc:
    raise UnsupportedModel(
        f"BeaconConnector runs inside vLLM, which is not installed here or has another interface ({exc}): docs/vllm.md "
        f"names the releases that it was tested with"
    ) from exc

logger = logging.getLogger("vllm.beacon")  # below vLLM's own, so that its handlers show it

SETTINGS = ("store", "salt")


@dataclass
class BeaconMetadata(KVConnectorMetadata):  # type: ignore[misc]
    """What the workers load before a step."""

    loads: list[Load] = field(default_factory=list)


class BeaconConnector(KVConnectorBase_V1):  # type: ignore[misc]
    """Named from vLLM's command line:

    `--kv-transfer-config '{"kv_connector": "BeaconConnector", "kv_connector_module_path": "vllm_beacon.connector",
    "kv_role": "kv_both", "kv_connector_extra_config": {"store": "redis://localhost:6379"}}'`

    `salt` is an option beside `store`, the same as `VLLMServer` is given. Keys of a signed store come from
    BEACON_STORE_KEY. Raises ConfigError, UnsupportedModel, StoreUnavailable when vLLM starts.
    """

    def __init__(self, vllm_config: Any, role: Any, kv_cache_config: Any) -> None:
        super().__init__(vllm_config, role, kv_cache_config)
        transfer, model = vllm_config.kv_transfer_config, vllm_config.model_config
        extra = transfer.kv_connector_extra_config
        check_settings(extra, policy=transfer.kv_load_failure_policy, known=SETTINGS)
        if vllm_config.speculative_config is not None:
            raise UnsupportedModel("a draft model has no slots to read: serve without speculative decoding")
        if len(kv_cache_config.kv_cache_groups) > 1:
            raise UnsupportedModel("slots are read by full attention in every layer, this model mixes kinds of it")
        self._block_size = int(vllm_config.cache_config.block_size)
        self._loads, self._failed = Loads(), set[int]()
        self._layers: dict[int, Any] = {}
        self._reader: Reader | None = None
        if role == KVConnectorRole.WORKER:
            self._reader = _reader(extra, model, device=vllm_config.device_config.device)
            self._layers = _layers(vllm_config)
            check_layers({str(index): layer for index, layer in self._layers.items()}, config=model.hf_text_config)
            heads = slot_shape(model.hf_text_config)[1]
            ranks = get_tensor_model_parallel_world_size()
            self._heads = rank_heads(heads, rank=get_tensor_model_parallel_rank(), ranks=ranks)

    def on_new_request(self, request: Any) -> None:
        """Keep a request that is refused away from the prefix cache."""
        if self._loads.wanted(request)[1]:
            self._loads.refuse(request)

    def get_num_new_matched_tokens(self, request: Any, num_computed_tokens: int) -> tuple[int, bool]:
        """How many placeholders are not in the prefix cache; they are loaded before the step."""
        return self._loads.matched(request, num_computed_tokens), False

    def update_state_after_alloc(self, request: Any, blocks: Any, num_external_tokens: int) -> None:
        """Note what is to be loaded into which blocks."""
        self._loads.allocated(request, blocks.get_block_ids()[0], num_external_tokens)

    def build_connector_meta(self, scheduler_output: Any) -> BeaconMetadata:
        """What the workers load in this step."""
        return BeaconMetadata(self._loads.step())

    def start_load_kv(self, forward_context: Any, **kwargs: Any) -> None:
        """Write the slots of this step's requests. One that cannot be loaded fails by itself."""
        for load in self._get_connector_metadata().loads:
            try:
                self._write(load)
            except Exception as exc:  # whatever it is, the other requests are answered
                why = str(exc) if isinstance(exc, BeaconError) else repr(exc)
                logger.error("request %s has no memory and fails: %s: %s", load.request, type(exc).__name__, why)
                at = {"start": load.start, "end": load.end, "block_size": self._block_size}
                self._failed |= touched(load.blocks, **at)

    def _write(self, load: Load) -> None:
        assert self._reader is not None
        if load.asked is None:
            raise ConfigError(load.refused)
        prefix = self._reader.read(load.asked, load.ids)
        assert prefix.keys is not None
        assert prefix.values is not None
        rows = slot_mapping(load.blocks, start=load.start, end=load.end, block_size=self._block_size)
        where = torch.tensor(rows, dtype=torch.int64, device=self._reader.device)
        for index, layer in self._layers.items():
            # (slots, kv_heads, head_dim), as the backend takes them; it knows how its blocks are laid out.
            key, value = (
                t[index, 0, self._heads, load.start :].transpose(0, 1).contiguous()
                for t in (prefix.keys, prefix.values)
            )
            layer.impl.do_kv_cache_update(layer, key, value, layer.kv_cache, where)

    def get_block_ids_with_load_errors(self) -> set[int]:
        """The blocks of requests that could not be loaded; told once."""
        failed, self._failed = self._failed, set()
        return failed

    def wait_for_layer_load(self, layer_name: str) -> None:
        """All is loaded before the first layer runs."""

    def save_kv_layer(self, layer_name: str, kv_layer: Any, attn_metadata: Any, **kwargs: Any) -> None:
        """Nothing is saved: a folder writes sessions, not vLLM."""

    def wait_for_save(self) -> None:
        """Nothing is saved."""

    def shutdown(self) -> None:
        """Close the store."""
        if self._reader is not None:
            self._reader.store.close()


def _reader(extra: dict[str, Any], model: Any, *, device: Any) -> Reader:
    config = model.hf_text_config
    key = os.environ.get("BEACON_STORE_KEY")
    encrypt = os.environ.get("BEACON_STORE_ENCRYPT", "").lower() in ("1", "true", "yes", "on")
    opened = cache(partial(open_store, extra["store"], key=key.encode() if key else None, encrypt=encrypt))
    return Reader(
        store=opened(),
        place=lambda namespace: opened(namespace=namespace),
        rope=Rope(rotary_of(config)),
        model=checkpoint_fingerprint(model.model, config, revision=model.revision),
        vocabulary=int(config.vocab_size),
        shape=slot_shape(config),
        dtype=own_dtype(model.dtype),
        device=torch.device(device),
        salt=str(extra.get("salt") or "").encode(),
    )


def _layers(vllm_config: Any) -> dict[int, Any]:
    """The attention layers of this worker by their number in the model."""
    named = vllm_config.compilation_config.static_forward_context
    return {extract_layer_index(name): layer for name, layer in named.items() if hasattr(layer, "impl")}
