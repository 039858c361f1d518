"""A server as a process of its own, which can be killed and started again where it listened."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Self


class ServerProcess:
    """`beacon-memory serve` with these options, from entering to leaving it; its port stays the same."""

    def __init__(self, *options: str) -> None:
        self._options = options
        self._process: subprocess.Popen[bytes] | None = None
        self.port = 0

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def pid(self) -> int:
        """Its process. Raises RuntimeError when there is none."""
        if self._process is None:
            raise RuntimeError("the server was not started")
        return self._process.pid

    def start(self) -> None:
        """Run it until it listens. Raises RuntimeError when it ends instead."""
        command = [sys.executable, "-m", "beacon_memory.cli", "serve", "--port", str(self.port), *self._options]
        environ = {**os.environ, "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}
        process = subprocess.Popen(command, stderr=subprocess.PIPE, env=environ)
        self._process = process
        assert process.stderr is not None
        said = process.stderr.readline().decode()
        if " on http" not in said:
            raise RuntimeError(f"the server did not start: {said}{process.stderr.read().decode()}")
        self.port = int(said.rpartition(":")[2])

    def kill(self) -> None:
        """End it at once (SIGKILL), whatever it is at."""
        self._end(gently=False)

    def stop(self) -> None:
        """End it as a deployment does (SIGTERM): answers that have begun are finished."""
        self._end(gently=True)

    def _end(self, *, gently: bool) -> None:
        if (process := self._process) is None:
            return
        (process.terminate if gently else process.kill)()
        process.wait(60)
        assert process.stderr is not None
        process.stderr.close()
        self._process = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, at: TracebackType | None) -> None:
        self.stop()


def resident(pid: int) -> int:
    """Bytes of memory that a process holds now."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
