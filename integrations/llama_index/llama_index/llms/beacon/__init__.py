"""A LlamaIndex LLM that remembers, without a retriever."""

from llama_index.llms.beacon.base import BeaconLLM

__all__ = ["BeaconLLM"]
