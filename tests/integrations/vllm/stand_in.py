"""A server that answers as vLLM with our connector does, without vLLM: the connector's own reader reads the store and
checks the placeholders, and the model's own generation answers behind the slots that it found, whole or in pieces.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
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
from beacon_memory.models.running.stream import Stream
from beacon_memory.state.state import BeaconState
from beacon_memory.stores import StateStore
from beacon_memory.talk.structured import Grammar
from beacon_memory.talk.tools import CALL_OPEN


class StandIn:
    """Its address, the requests that it was sent, and how it fails."""

    def __init__(
        self,
        model: BeaconModel,
        store: StateStore,
        *,
        positions: int,
        salt: str,
        place: Callable[[str], StateStore] | None,
    ) -> None:
        config = model.lm.config
        self.model, self.positions, self.url = model, positions, ""
        self.asked: list[dict[str, Any]] = []
        self.before: list[Callable[[], None]] = []  # done once, when the next question has come
        self.failing = False  # whether an answer breaks off after its first piece
        self.bias = 0.0  # of log-probabilities, as of another model
        self.stop: Callable[[], None] = lambda: None  # as if it were killed
        self.reader = Reader(
            store=store,
            rope=Rope(rotary_of(config)),
            model=model.fingerprint.model,
            vocabulary=config.vocab_size,
            shape=slot_shape(config),
            dtype=torch.float32,
            device=torch.device("cpu"),
            salt=salt.encode(),
            place=place,
        )

    def stream(self, body: dict[str, Any]) -> Stream:
        """The answer to a request's body. Raises what the connector's worker raises."""
        self.asked.append(body)
        while self.before:
            self.before.pop()()
        ids, asked, state = body["prompt"], Asked.of(body.get("kv_transfer_params")), BeaconState()
        if asked is not None:
            asked.check(len(ids))
            self.reader.read(asked, ids[: asked.slots])
            owned = self.reader._segments(asked, self.reader._entries(asked))
            state, ids = BeaconState(tuple(segment for _, segment in owned)), ids[asked.slots :]
        how = {name: body[name] for name in ("temperature", "top_p", "top_k", "seed", "stop")}
        if held := body.get("structured_outputs"):
            how["constraint"] = Grammar(held["grammar"], CALL_OPEN.rstrip() if "TEXT |" in held["grammar"] else "")
        return self.model.stream(ids, state, max_new_tokens=body["max_tokens"], **how)

    def complete(self, body: dict[str, Any]) -> dict[str, Any]:
        """The same whole, as a choice."""
        stream = self.stream(body)
        text = "".join(stream)
        assert stream.answer is not None
        choice = {"text": text, "finish_reason": stream.answer.finish}
        if many := body.get("logprobs"):
            asked = Asked.of(body["kv_transfer_params"])
            assert asked is not None
            owned = self.reader._segments(asked, self.reader._entries(asked))
            state = BeaconState(tuple(segment for _, segment in owned))
            said = self.model.logits(body["prompt"][asked.slots :], state)[-1].log_softmax(-1).topk(many)
            top = {
                f"token_id:{i}": p + self.bias for i, p in zip(said.indices.tolist(), said.values.tolist(), strict=True)
            }
            choice["logprobs"] = {"top_logprobs": [top]}
        return choice


@contextmanager
def stand_in(
    model: BeaconModel,
    store: StateStore,
    *,
    positions: int | None = None,
    salt: str = "",
    place: Callable[[str], StateStore] | None = None,
) -> Iterator[StandIn]:
    """A server of this machine, while inside; it serves prompts of so many `positions`, else of the model's."""
    served = StandIn(model, store, positions=positions or model.positions, salt=salt, place=place)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.path == "/health":
                self.send(200, {})
                return
            self.send(200, {"data": [{"id": "stand-in", "max_model_len": served.positions}]})

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            try:
                if not body.get("stream"):
                    self.send(200, {"choices": [served.complete(body)]})
                    return
                stream = served.stream(body)
                first = next(stream, "")
            except BeaconError as exc:
                self.send(500, {"error": {"message": str(exc)}})
                return
            self.send_response(200)
            self.end_headers()
            with suppress(BrokenPipeError, ConnectionResetError), closing(stream):
                self.event({"choices": [{"text": first, "finish_reason": None}]})
                if served.failing:
                    self.event({"error": {"message": "Internal server error", "code": 500}})
                    return
                for piece in stream:
                    self.event({"choices": [{"text": piece, "finish_reason": None}]})
                assert stream.answer is not None
                self.event({"choices": [{"text": "", "finish_reason": stream.answer.finish}]})
                self.event({"choices": [], "usage": {"completion_tokens": stream.answer.tokens}})
                self.wfile.write(b"data: [DONE]\n\n")

        def event(self, value: Any) -> None:
            self.wfile.write(b"data: " + json.dumps(value).encode() + b"\n\n")

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
            served.stop = lambda: (server.shutdown(), server.server_close())  # type: ignore[func-returns-value]
            yield served
        finally:
            server.shutdown()
            thread.join()
