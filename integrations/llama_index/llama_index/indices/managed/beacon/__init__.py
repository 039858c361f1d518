"""LlamaIndex's index, query engine and chat engine over documents that the model has read: no retrieval."""

from llama_index.indices.managed.beacon.base import BeaconIndex
from llama_index.indices.managed.beacon.chat_engine import BeaconChatEngine
from llama_index.indices.managed.beacon.query_engine import BeaconQueryEngine
from llama_index.indices.managed.beacon.retriever import BeaconRetriever
from llama_index.indices.managed.beacon.synthesizer import BeaconSynthesizer

__all__ = ["BeaconChatEngine", "BeaconIndex", "BeaconQueryEngine", "BeaconRetriever", "BeaconSynthesizer"]
