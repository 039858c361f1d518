"""The server as a process: what it listens on, when it may, and how it ends."""

from __future__ import annotations

import socket
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import uvicorn

from beacon_memory.errors import ConfigError
from beacon_memory.server.app import make_app
from beacon_memory.server.keys import Keys
from beacon_memory.server.limits import Limits
from beacon_memory.server.tenants import MakeElsewhere
from beacon_memory.server.visit import is_loopback
from beacon_memory.serving.engine import BeaconEngine
from beacon_memory.stores import StateStore

if TYPE_CHECKING:
    from opentelemetry.trace import Tracer


def serve(
    engine: BeaconEngine,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    name: str | None = None,
    keys: str | Path | None = None,
    place: Callable[[str], StateStore] | None = None,
    limits: Limits | None = None,
    tracer: Tracer | None = None,
    elsewhere: MakeElsewhere | None = None,
    say: Callable[[str], None] = print,
) -> None:
    """Serve until SIGINT or SIGTERM; then answers that have begun are finished, for a while, and the store is closed.

    `port` 0 takes a free one, which `say` is told. Without a file of `keys` everyone who reaches the server may read
    everything, so it listens on this machine alone. Raises ConfigError where it cannot listen, and what opening the
    model and the store raises. `elsewhere` is as for `make_app`.
    """
    limits = limits or Limits()
    found = None if keys is None else Keys(keys)
    if found is None and not is_loopback(host):
        raise ConfigError(
            f"without API keys the server listens on this machine alone, not on {host}: make keys with "
            f"`beacon-memory keys add NAMESPACE` and give their file by --keys"
        )
    if found is not None:
        found.all()  # a file that cannot be read is told before a model is loaded
    with closing(listening_on(host, port)) as listening:
        how: dict[str, Any] = {"place": place, "limits": limits, "tracer": tracer, "elsewhere": elsewhere}
        app = make_app(engine, name=name, keys=found, **how)
        config = uvicorn.Config(
            app,
            http="h11",
            ws="none",
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=int(limits.shutdown_seconds) or 1,
        )
        shown = f"[{host}]" if ":" in host else host
        say(f"serving {app.state.served.name} on http://{shown}:{listening.getsockname()[1]}")
        if found is None:
            say("without API keys: it answers this machine alone (docs/server.md)")
        uvicorn.Server(config).run(sockets=[listening])


def listening_on(host: str, port: int) -> socket.socket:
    """A socket that listens; its connections send each piece at once. Raises ConfigError."""
    if not 0 <= port < 1 << 16:
        raise ConfigError(f"cannot listen on port {port}: a port is 0 to 65535")
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        listening = socket.create_server((host, port), family=family, backlog=2048)
    except OSError as exc:
        raise ConfigError(f"cannot listen on {host}, port {port}: {exc}") from exc
    # asyncio does this for sockets of its own alone. Without it a stream's second piece waits for the client to
    # acknowledge the first, which takes it 40 ms.
    listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listening
