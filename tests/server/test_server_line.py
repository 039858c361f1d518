"""The line in front of the model: bounded, left by those who go, and never in the way of a health check."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import urlsplit

import httpx
import pytest
from openai import OpenAI, RateLimitError

from beacon_memory.server.limits import Limits
from beacon_memory.testing import beacon_server, scripted_engine

CHAT = "/v1/chat/completions"


class Gate:
    """A script that waits, in the middle of reading, until it is let go."""

    def __init__(self) -> None:
        self.inside, self.go = threading.Event(), threading.Event()

    def __call__(self, seen: str) -> str:
        if "Wait" in seen.rpartition("<|im_start|>user")[2]:
            self.inside.set()
            assert self.go.wait(60)
        return "word " * 500 if "Talk" in seen else "Done."


@pytest.fixture
def gate() -> Iterator[Gate]:
    gate = Gate()
    yield gate
    gate.go.set()


def body(text: str, **more: object) -> dict[str, object]:
    return {"model": "scripted", "messages": [{"role": "user", "content": text}], **more}


def until(true: Callable[[], bool]) -> None:
    """Ask again until it is so; each time is a request, which takes a moment."""
    ends = time.monotonic() + 30
    while not true():
        assert time.monotonic() < ends


def left_hanging(url: str, sent: dict[str, object], **headers: str) -> socket.socket:
    """A connection on which a request was sent."""
    where, content = urlsplit(url), json.dumps(sent).encode()
    raw = socket.create_connection((where.hostname or "", where.port or 0))
    head = f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    head += "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    raw.sendall(f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + content)
    return raw


def test_health_is_told_while_the_model_works_and_sessions_are_read(gate: Gate) -> None:
    with beacon_server(scripted_engine(gate)) as url, httpx.Client(base_url=url, timeout=30) as http:
        http.post(
            "/v1/sessions/ada/messages", json={"messages": [{"role": "user", "content": "Hi"}]}
        ).raise_for_status()
        with ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(httpx.post, url + CHAT, json=body("Wait"), timeout=60)
            assert gate.inside.wait(30)
            assert http.get("/health").json() == {"status": "ok"}
            assert http.get("/ready").json()["waiting"] == 1
            assert http.get("/v1/sessions/ada").json()["messages"] == 1
            assert not waiting.done()
            gate.go.set()
            assert waiting.result().json()["choices"][0]["message"]["content"] == "Done."


def test_a_full_line_says_when_to_come_back(gate: Gate) -> None:
    engine = scripted_engine(gate)
    with beacon_server(engine, limits=Limits(waiting=2)) as url, httpx.Client(base_url=url, timeout=30) as http:
        with ThreadPoolExecutor(2) as pool:
            answers = [pool.submit(httpx.post, url + CHAT, json=body("Wait"), timeout=60) for _ in range(2)]
            until(lambda: http.get("/ready").json()["waiting"] == 2)
            for stream in (False, True):
                full = http.post(CHAT, json=body("Hi", stream=stream))
                assert (full.status_code, full.headers["Retry-After"]) == (429, "2")
                assert full.json()["error"]["code"] == "rate_limit_exceeded"
            with OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client, pytest.raises(RateLimitError):
                client.chat.completions.create(model="scripted", messages=[{"role": "user", "content": "Hi"}])
            gate.go.set()
            assert [answer.result().status_code for answer in answers] == [200, 200]
        assert http.post(CHAT, json=body("Hi")).status_code == 200


@pytest.mark.parametrize("stream", [False, True])
def test_who_leaves_before_the_answer_frees_the_place_and_leaves_nothing(gate: Gate, stream: bool) -> None:
    engine = scripted_engine(gate)
    with beacon_server(engine) as url, httpx.Client(base_url=url, timeout=30) as http:
        with left_hanging(url, body("Wait", user="ada", stream=stream)):
            assert gate.inside.wait(30)
        until(lambda: http.get("/ready").json()["waiting"] == 0)
        gate.go.set()
        assert http.post(CHAT, json=body("Hi", user="ada")).status_code == 200
        assert [m["content"] for m in http.get("/v1/sessions/ada/messages").json()["data"]] == ["Hi", "Done."]


def test_who_leaves_a_stream_ends_it_and_the_session_is_unchanged(gate: Gate) -> None:
    with beacon_server(scripted_engine(gate)) as url, httpx.Client(base_url=url, timeout=30) as http:
        with http.stream("POST", CHAT, json=body("Talk", user="ada", stream=True, max_tokens=2000)) as response:
            lines = response.iter_lines()
            assert json.loads(next(lines).removeprefix("data: "))["choices"][0]["delta"]["role"] == "assistant"
        until(lambda: http.get("/ready").json()["waiting"] == 0)
        assert http.post(CHAT, json=body("Hi")).status_code == 200
        assert http.get("/v1/sessions/ada").status_code == 404


@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_that_was_whole_when_its_client_left_is_remembered_and_told_again(gate: Gate, stream: bool) -> None:
    key = {"Idempotency-Key": "one"}
    with beacon_server(scripted_engine(gate)) as url, httpx.Client(base_url=url, timeout=30) as http:
        said = body("Hi", user="ada", stream=stream)
        with left_hanging(url, said, **key):  # it reads nothing
            until(lambda: http.get("/v1/sessions/ada").status_code == 200)
        until(lambda: http.get("/ready").json()["waiting"] == 0)
        again = http.post(CHAT, json=said, headers=key)
        assert (again.status_code, "Done." in again.text) == (200, True)
        assert [m["content"] for m in http.get("/v1/sessions/ada/messages").json()["data"]] == ["Hi", "Done."]


@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_that_takes_too_long_is_given_up(gate: Gate, stream: bool) -> None:
    with beacon_server(scripted_engine(gate), limits=Limits(seconds=0.2)) as url:
        late = httpx.post(url + CHAT, json=body("Wait", user="ada", stream=stream), timeout=30)
        assert (late.status_code, late.json()["error"]["code"]) == (504, "timeout")
        gate.go.set()
        assert httpx.get(f"{url}/v1/sessions/ada").status_code == 404


def test_a_server_that_stops_finishes_what_it_answers(gate: Gate) -> None:
    with ThreadPoolExecutor(1) as pool:
        with beacon_server(scripted_engine(gate)) as url:
            answer = pool.submit(httpx.post, url + CHAT, json=body("Wait"), timeout=60)
            assert gate.inside.wait(30)
            threading.Timer(0.3, gate.go.set).start()  # it is told to stop first
        assert answer.result().json()["choices"][0]["message"]["content"] == "Done."
