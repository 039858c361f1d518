"""A real vLLM in a process of its own, which can be killed and started again."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
from vllm_beacon import VLLMServer

from beacon_memory import BeaconMemory, BeaconModel
from beacon_memory.errors import ModelError

ROOT = Path(__file__).parents[3]
PYTHON = os.environ.get("BEACON_VLLM_PYTHON", "")  # of the environment that vLLM is installed in
SALT = "test"


def write_model(folder: Path) -> None:
    """SmolLM2 as a folder that vLLM reads."""
    plain = BeaconModel.from_pretrained("smollm2", adapter=None)
    plain.detach().save_pretrained(folder / "model")
    plain.tokenizer.save_pretrained(folder / "model")


class RunningVLLM:
    """vLLM over a store, with the model in `folder`/model; its log is in `folder`/vllm.log."""

    def __init__(self, folder: Path, store: str, *, positions: int, options: Sequence[str]) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        transfer = {
            "kv_connector": "BeaconConnector",
            "kv_connector_module_path": "vllm_beacon.connector",
            "kv_role": "kv_both",
            "kv_connector_extra_config": {"store": store, "salt": SALT},
        }
        self.command = [PYTHON, "-m", "vllm.entrypoints.openai.api_server"]
        self.command += ["--model", str(folder / "model"), "--port", str(port), "--dtype", "float32"]
        self.command += ["--max-model-len", str(positions), "--enforce-eager", *options]
        self.command += ["--kv-transfer-config", json.dumps(transfer)]
        self.url, self.log, self._folder = f"http://127.0.0.1:{port}", folder / "vllm.log", folder
        self.start()

    def start(self) -> None:
        """Start it, at the same address; it answers only after a minute or more."""
        packages = os.pathsep.join([str(ROOT), str(ROOT / "integrations" / "vllm")])
        environment = {"PYTHONPATH": packages, "VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1"}
        with self.log.open("a") as log:
            self._process = subprocess.Popen(
                self.command,
                env=os.environ | environment,
                stdout=log,
                stderr=log,
                start_new_session=True,
                cwd=self._folder,
            )

    def server(self, memory: BeaconMemory, *, fold: bool = True) -> VLLMServer:
        """A client of it, once it answers."""
        end = time.monotonic() + 900
        while True:
            try:
                return VLLMServer(memory, self.url, salt=SALT, fold=fold)
            except ModelError:
                if self._process.poll() is not None or time.monotonic() > end:
                    pytest.fail(f"vLLM did not start: {self.log.read_text()[-3000:]}")
                try:
                    self._process.wait(2)
                except subprocess.TimeoutExpired:
                    continue

    def stop(self, number: signal.Signals = signal.SIGTERM) -> None:
        """End it and all of its processes."""
        os.killpg(self._process.pid, number)
        self._process.wait(60)


@contextmanager
def running_vllm(
    folder: Path, store: str, *, positions: int = 4096, options: Sequence[str] = ()
) -> Iterator[RunningVLLM]:
    """vLLM, while inside."""
    running = RunningVLLM(folder, store, positions=positions, options=options)
    try:
        yield running
    finally:
        running.stop()
