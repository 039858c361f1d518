"""A fleet of vLLM replicas, fold workers and Redis, simulated: where a million sessions saturate it (docs/vllm.md)."""
