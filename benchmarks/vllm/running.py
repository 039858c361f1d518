"""A vLLM with our connector in a process of its own, and what it says of its cache."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

ROOT = Path(__file__).parents[2]
BLOCK = 32  # tokens of a block: the smallest that vLLM takes on a CPU


@dataclass(frozen=True)
class Cache:
    """vLLM's KV cache: how many blocks there are, and how many requests hold now."""

    blocks: int
    held: int

    @classmethod
    def of(cls, metrics: str) -> Cache:
        """What `/metrics` says of it."""
        blocks = int(_found(r'vllm:cache_config_info\{.*?num_gpu_blocks="(\d+)"', metrics))
        return cls(blocks, round(float(_found(r"vllm:kv_cache_usage_perc\{[^}]*\} (\S+)", metrics)) * blocks))


def _found(pattern: str, text: str) -> str:
    if (found := re.search(pattern, text)) is None:
        raise SystemExit(f"vLLM's metrics have no {pattern}: another release than 0.32?")
    return found[1]


class RunningVLLM:
    """Its address, and its cache."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._http = httpx.Client(base_url=url, timeout=60)

    def cache(self) -> Cache:
        """Its cache as it is now."""
        return Cache.of(self._http.get("/metrics").raise_for_status().text)

    def forget(self) -> None:
        """Have it forget every prefix."""
        self._http.post("/reset_prefix_cache").raise_for_status()


@contextmanager
def running_vllm(python: str, folder: Path, store: str, *, gib: int = 1) -> Iterator[RunningVLLM]:
    """vLLM with the model in `folder`/model and so much cache, while inside."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    transfer = {"kv_connector": "BeaconConnector", "kv_connector_module_path": "vllm_beacon.connector"}
    transfer |= {"kv_role": "kv_both", "kv_connector_extra_config": {"store": store}}  # type: ignore[dict-item]
    command = [python, "-m", "vllm.entrypoints.openai.api_server", "--model", str(folder / "model")]
    command += ["--port", str(port), "--dtype", "float32", "--max-model-len", "8192", "--enforce-eager"]
    command += ["--block-size", str(BLOCK), "--kv-transfer-config", json.dumps(transfer)]
    packages = os.pathsep.join([str(ROOT), str(ROOT / "integrations" / "vllm")])
    environ = {"PYTHONPATH": packages, "VLLM_CPU_KVCACHE_SPACE": str(gib), "VLLM_SERVER_DEV_MODE": "1"}
    log = folder / "vllm.log"
    with log.open("w") as file:
        process = subprocess.Popen(
            command, env=os.environ | environ, stdout=file, stderr=file, cwd=folder, start_new_session=True
        )
    try:
        url = f"http://127.0.0.1:{port}"
        while not _answers(url):
            if process.poll() is not None:
                raise SystemExit(f"vLLM did not start: {log.read_text()[-2000:]}")
            time.sleep(2)
        yield RunningVLLM(url)
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(60)


def _answers(url: str) -> bool:
    try:
        return httpx.get(f"{url}/health").is_success
    except httpx.HTTPError:
        return False
