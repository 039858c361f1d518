"""A real HTTP server for a test, in this process, on a free port."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn

from beacon_memory.server.app import make_app
from beacon_memory.server.run import listening_on
from beacon_memory.serving.engine import BeaconEngine


@contextmanager
def beacon_server(engine: BeaconEngine, **settings: Any) -> Iterator[str]:
    """The URL of a server of this engine, stopped on the way out. `settings` as `make_app` takes them.

    >>> import httpx
    >>> from beacon_memory.testing import scripted_engine
    >>> with beacon_server(scripted_engine(lambda seen: "Hello!")) as url:
    ...     httpx.get(f"{url}/health").json()
    {'status': 'ok'}
    """
    listening = listening_on("127.0.0.1", 0)
    app = make_app(engine, **settings)
    config = uvicorn.Config(app, http="h11", ws="none", log_config=None, access_log=False, timeout_graceful_shutdown=5)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=lambda: server.run(sockets=[listening]), name="beacon-server")
    thread.start()
    try:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"  # the socket listens already
    finally:
        server.should_exit = True
        thread.join()
        listening.close()
