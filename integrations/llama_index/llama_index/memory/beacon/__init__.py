"""LlamaIndex memories that forget nothing, and keep little."""

from llama_index.memory.beacon.base import BeaconMemory
from llama_index.memory.beacon.block import BeaconMemoryBlock
from llama_index.memory.beacon.chat_store import BeaconRedisChatStore

__all__ = ["BeaconMemory", "BeaconMemoryBlock", "BeaconRedisChatStore"]
