"""LlamaIndex memories that forget nothing, and keep little."""

from beacon_memory.errors import MissingExtra

try:
    from llama_index.memory.beacon.base import BeaconMemory
    from llama_index.memory.beacon.block import BeaconMemoryBlock, FoldingMemory
    from llama_index.memory.beacon.chat_store import BeaconRedisChatStore
except ModuleNotFoundError as exc:
    if not str(exc.name).startswith("llama_index.core"):
        raise
    raise MissingExtra("LlamaIndex is not installed: pip install 'beacon-memory[llama-index]'") from exc

__all__ = ["BeaconMemory", "BeaconMemoryBlock", "BeaconRedisChatStore", "FoldingMemory"]
