"""docs/vllm.md, run as its reader would: a conversation survives that vLLM and the process that folds start again, and
our server goes on with it.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from beacon_memory import BeaconMemory

pytestmark = [pytest.mark.vllm, pytest.mark.real_model]

ROOT = Path(__file__).parents[3]
PACKAGES = os.pathsep.join([str(ROOT), str(ROOT / "integrations" / "vllm")])


@contextmanager
def served(command: str, folder: Path, port: int) -> Iterator[None]:
    """While inside, the command runs and its server answers; afterwards it is killed."""
    with (folder / "vllm.log").open("a") as log:
        process = subprocess.Popen(
            ["nice", "-n", "10", "sh", "-c", command],
            env=os.environ | {"PYTHONPATH": PACKAGES},
            stdout=log,
            stderr=log,
            cwd=folder,
            start_new_session=True,
        )
    try:
        end = time.monotonic() + 900
        while not _answers(port):
            assert process.poll() is None, (folder / "vllm.log").read_text()[-3000:]
            assert time.monotonic() < end
            with pytest.raises(subprocess.TimeoutExpired):
                process.wait(2)
        yield
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(60)


def _answers(port: int) -> bool:
    try:
        return httpx.get(f"http://localhost:{port}/health").is_success
    except httpx.HTTPError:
        return False


def test_a_conversation_survives_a_restart_of_both_processes(tmp_path: Path) -> None:
    sys.path.insert(0, str(ROOT / "tests" / "docs"))
    from snippets import blocks

    with socket.socket() as free, socket.socket() as another:
        free.bind(("127.0.0.1", 0))
        another.bind(("127.0.0.1", 0))
        port, ours = free.getsockname()[1], another.getsockname()[1]
    document = (ROOT / "docs" / "vllm.md").read_text().replace("localhost:8000", f"localhost:{port}")
    document = document.replace("localhost:8080", f"localhost:{ours}").replace("--port 8080", f"--port {ours}")
    document = document.replace("--model model", f"--model model --port {port}", 2)
    document = document.replace("vllm-env/bin/python", os.environ["BEACON_VLLM_PYTHON"])
    found = [block for block in blocks(document) if block.why_not and "make test-vllm" in block.why_not]
    write, serve, talk, again, command, ask = (block.text for block in found)
    command = command.replace("beacon-memory", f"{sys.executable} -m beacon_memory.cli", 1)

    def run(code: str) -> str:
        command, environment = [sys.executable, "-c", code], os.environ | {"PYTHONPATH": PACKAGES}
        done = subprocess.run(command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, text=True, check=True)
        return done.stdout

    run(write)
    with served(serve, tmp_path, port):
        run(talk)
    with served(serve, tmp_path, port):
        said = run(again)
        with served(command, tmp_path, ours):
            assert run(ask).strip() != ""
    with BeaconMemory.open("smollm2", store=f"sqlite:///{tmp_path / 'memory.db'}") as memory:
        session = memory.session("ada")
        about = session.info()
        assert (about.documents, about.messages) == (1, 5)
        assert about.slots > 0
        session.rewind(3)  # to where `again` asked
        assert said.strip() == session.ask("Who is the landlord?", recall_tokens=0, max_new_tokens=32).strip() != ""
