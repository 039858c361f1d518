"""A LlamaIndex LLM that remembers, without a retriever."""

from beacon_memory.errors import MissingExtra

try:
    from llama_index.llms.beacon.base import BeaconLLM
except ModuleNotFoundError as exc:
    if not str(exc.name).startswith("llama_index.core"):
        raise
    raise MissingExtra("LlamaIndex is not installed: pip install 'beacon-memory[llama-index]'") from exc

__all__ = ["BeaconLLM"]
