"""A server that answers as vLLM with our connector does, without vLLM: the connector's own reader reads the store and
checks the placeholders, and the model's own generation answers behind the slots that it found.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import torch
from vllm_beacon.asked import Asked
from vllm_beacon.reading import Reader
from vllm_beacon.weights import rotary_of

from beacon_memory.errors import BeaconError
from beacon_memory.fold.family import slot_shape
from beacon_memory.fold.prefix import Rope
from beacon_memory.models.model import BeaconModel
from beacon_memory.state.state import BeaconState
from beacon_memory.stores import StateStore


class StandIn:
    """Its address, the requests that it was sent, and how it fails."""

    def __init__(self, model: BeaconModel, store: StateStore, *, positions: int, salt: str) -> None:
        config = model.lm.config
        self.model, self.positions, self.url = model, positions, ""
        self.asked: list[dict[str, Any]] = []
        self.reader = Reader(
            store=store,
            rope=Rope(rotary_of(config)),
            model=model.fingerprint.model,
            vocabulary=config.vocab_size,
            shape=slot_shape(config),
            dtype=torch.float32,
            device=torch.device("cpu"),
            salt=salt.encode(),
        )

    def complete(self, body: dict[str, Any]) -> str:
        """The answer to a request's body. Raises what the connector's worker raises."""
        self.asked.append(body)
        ids, asked = body["prompt"], Asked.of(body["kv_transfer_params"])
        assert asked is not None
        asked.check(len(ids))
        self.reader.read(asked, ids[: asked.slots])
        owned = self.reader._segments(asked, self.reader._entries(asked))
        state = BeaconState(tuple(segment for _, segment in owned))
        how = {name: body[name] for name in ("temperature", "top_p", "top_k", "seed")}
        (text,) = self.model.generate(
            [ids[asked.slots :]], [state], max_new_tokens=body["max_tokens"], stop=body["stop"], **how
        )
        return text


@contextmanager
def stand_in(
    model: BeaconModel, store: StateStore, *, positions: int | None = None, salt: str = ""
) -> Iterator[StandIn]:
    """A server of this machine, while inside; it serves prompts of so many `positions`, else of the model's."""
    served = StandIn(model, store, positions=positions or model.positions, salt=salt)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send(200, {"data": [{"id": "stand-in", "max_model_len": served.positions}]})

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            try:
                self.send(200, {"choices": [{"text": served.complete(body)}]})
            except BeaconError as exc:
                self.send(500, {"error": {"message": str(exc)}})

        def send(self, status: int, value: Any) -> None:
            said = json.dumps(value).encode()
            self.send_response(status)
            self.send_header("content-length", str(len(said)))
            self.end_headers()
            self.wfile.write(said)

        def log_message(self, *about: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            served.url = f"http://127.0.0.1:{server.server_address[1]}"
            yield served
        finally:
            server.shutdown()
            thread.join()
