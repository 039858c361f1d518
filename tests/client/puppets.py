"""A script for models, and a server that says what a test tells it to."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from beacon_memory.testing import sensible
from beacon_memory.version import __version__

ABOUT = {"version": __version__, "interface": 1, "positions": 100, "slots": 80, "ratio": 4, "finder": False}


def wise(seen: str) -> str:
    """A script with judgement that also knows a dog when it has read of one."""
    if "long story" in seen:
        return "word " * 500
    if "called Rex" in seen and "</tools>" not in seen and "Answer with JSON" not in seen:
        return "Rex!"
    return sensible(seen) if "<|im_start|>" in seen else "Who?"


def answer(body: Any, status: int = 200, *headers: str) -> bytes:
    """A whole response of HTTP, with JSON, or with these bytes."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    lines = [f"HTTP/1.1 {status} Said", "Connection: close", f"Content-Length: {len(content)}", *headers]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + content


def refusal(status: int, message: str, code: str | None = None, *headers: str, **more: Any) -> bytes:
    """An error, as a server of ours says it."""
    return answer({"error": {"message": message, "type": "t", "param": None, "code": code}, **more}, status, *headers)


def met(**about: Any) -> bytes:
    """What a server says of its model."""
    told = {"id": "tiny", "object": "model", "owned_by": "beacon-memory", "beacon": {**ABOUT, **about}}
    return answer({"object": "list", "data": [told]})


def chunks(*texts: str, whole: bool = True) -> bytes:
    """A stream of an answer, to its end or not."""
    events: list[Any] = [{"choices": [{"delta": {"content": text}, "finish_reason": None}]} for text in texts]
    if whole:
        cost = {"session_id": None, "beacon_tokens": 0, "raw_tokens": 9, "ratio": 4, "sources": []}
        events += [{"choices": [{"delta": {}, "finish_reason": "stop"}], "beacon": cost}]
        events += [{"choices": [], "usage": {"prompt_tokens": 9, "completion_tokens": 3}}]
    lines = b"".join(b"data: " + json.dumps(event).encode() + b"\n\n" for event in events)
    head = b"HTTP/1.1 200 Said\r\nConnection: close\r\nContent-Type: text/event-stream\r\n\r\n"
    return head + lines + (b"data: [DONE]\n\n" if whole else b"")


@contextmanager
def puppet(*says: bytes) -> Iterator[tuple[str, list[str]]]:
    """The URL of a server that gives these responses, one a connection, and the requests that it got.

    Empty bytes close the connection unanswered. After the last one nobody listens any more.
    """
    got: list[str] = []
    listening = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        for one in says:
            try:
                connection, _ = listening.accept()
            except OSError:
                return
            with connection:
                got.append(_read(connection))
                connection.sendall(one)
        listening.close()

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}", got
    finally:
        with socket.socket() as waking:  # where not all was asked for
            if listening.fileno() >= 0:
                listening.shutdown(socket.SHUT_RDWR)
            waking.close()
        thread.join()
        listening.close()


def _read(connection: socket.socket) -> str:
    data = b""
    while b"\r\n\r\n" not in data:
        data += connection.recv(65536)
    head, _, body = data.partition(b"\r\n\r\n")
    length = next((int(line[15:]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:")), 0)
    while len(body) < length:
        body += connection.recv(65536)
    return (head + b"\r\n\r\n" + body).decode()


def said(body: Sequence[Any] | str) -> list[dict[str, Any]]:
    """Messages that a user says."""
    return [{"role": "user", "content": text} for text in ([body] if isinstance(body, str) else body)]
