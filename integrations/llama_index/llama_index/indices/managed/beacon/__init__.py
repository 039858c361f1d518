"""LlamaIndex's index, query engine and chat engine over documents that the model has read: no retrieval."""

from beacon_memory.errors import MissingExtra

try:
    from llama_index.indices.managed.beacon.base import BeaconIndex
    from llama_index.indices.managed.beacon.chat_engine import BeaconChatEngine
    from llama_index.indices.managed.beacon.query_engine import BeaconQueryEngine
    from llama_index.indices.managed.beacon.retriever import BeaconRetriever
    from llama_index.indices.managed.beacon.synthesizer import BeaconSynthesizer
except ModuleNotFoundError as exc:
    if not str(exc.name).startswith("llama_index.core"):
        raise
    raise MissingExtra("LlamaIndex is not installed: pip install 'beacon-memory[llama-index]'") from exc

__all__ = ["BeaconChatEngine", "BeaconIndex", "BeaconQueryEngine", "BeaconRetriever", "BeaconSynthesizer"]
