"""An `Idempotency-Key`: two requests with one key and one body are one request, whichever process answers them."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest
from openai import OpenAI
from test_server_refusals import refused
from test_server_responses import WEATHER, said

from beacon_memory.testing import beacon_server, redis_server, scripted_engine

CHAT, RESPONSES, CONVERSATIONS = "/v1/chat/completions", "/v1/responses", "/v1/conversations"
TOOL = {"type": "function", "function": {name: WEATHER[name] for name in ("name", "description", "parameters")}}


@pytest.fixture
def key() -> dict[str, str]:
    return {"Idempotency-Key": str(uuid.uuid4())}


def chat(text: str, session: str = "", **more: Any) -> dict[str, Any]:
    named = {"user": session} if session else {}
    return {"model": "scripted", "messages": [{"role": "user", "content": text}], **named, **more}


def response(text: str, **more: Any) -> dict[str, Any]:
    return {"model": "scripted", "input": text, **more}


def whole(answer: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in answer.items() if name != "beacon"}


ASKED = [
    (CHAT, chat("My dog is called Rex.", "once-words")),
    (CHAT, chat("What is the weather in 'Lyon'?", "once-calls", tools=[TOOL])),
    (CHAT, chat("Hi", "once-cut", max_tokens=3)),
    (RESPONSES, response("My dog is called Rex.")),
    (RESPONSES, response("What is the weather in 'Lyon'?", tools=[WEATHER])),
    (RESPONSES, response("Hi", max_output_tokens=3)),
]


@pytest.mark.parametrize(("path", "body"), ASKED, ids=lambda value: json.dumps(value)[:60])
def test_the_first_answer_is_told_again_and_nothing_is_written_twice(
    http: httpx.Client, key: dict[str, str], path: str, body: dict[str, Any]
) -> None:
    first = http.post(path, json=body, headers=key)
    assert first.status_code == 200
    sessions = http.get("/v1/sessions", params={"limit": 1000}).json()
    session = body.get("user") or first.json()["id"]
    told = said(http, session)
    for _ in range(2):
        again = http.post(path, json=body, headers=key)
        assert whole(again.json()) == whole(first.json())
    assert http.get("/v1/sessions", params={"limit": 1000}).json() == sessions
    assert said(http, session) == told
    other = http.post(path, json=body, headers={"Idempotency-Key": str(uuid.uuid4())})
    assert other.json()["id"] != first.json()["id"]


def test_a_stream_is_told_again_as_a_stream(client: OpenAI, http: httpx.Client, key: dict[str, str]) -> None:
    def spoken() -> tuple[str, str]:
        chunks = list(
            client.chat.completions.create(
                model="scripted",
                messages=[{"role": "user", "content": "Hi"}],
                user="st",
                stream=True,
                extra_headers=key,
            )
        )
        return chunks[0].id, "".join(chunk.choices[0].delta.content or "" for chunk in chunks)

    assert spoken() == spoken()
    assert len(said(http, "st")) == 2
    kinds = []
    for _ in range(2):
        how: dict[str, Any] = {"model": "scripted", "input": "What is the weather in 'Lyon'?", "tools": [WEATHER]}
        with client.responses.stream(**how, extra_headers=key) as events:
            kinds.append(list(dict.fromkeys(event.type for event in events)))
            final = events.get_final_response()
        assert client.responses.retrieve(final.id).id == final.id
    assert kinds[0] == kinds[1]


def test_another_body_under_the_same_key_is_refused(http: httpx.Client, key: dict[str, str]) -> None:
    assert http.post(RESPONSES, json=response("Hi"), headers=key).status_code == 200
    error = refused(http.post(RESPONSES, json=response("Bye"), headers=key), 422)
    assert error["code"] == "idempotency_key_reused"
    assert http.post(CHAT, json=chat("Hi", "other-body"), headers=key).status_code == 200
    assert refused(http.post(CHAT, json=chat("Bye", "other-body"), headers=key), 422)["code"] == error["code"]
    assert len(said(http, "other-body")) == 2
    for bad in ("", "x" * 256):
        refused(http.post(RESPONSES, json=response("Hi"), headers={"Idempotency-Key": bad}), 400)


def test_a_conversation_is_answered_in_once(http: httpx.Client, client: OpenAI, key: dict[str, str]) -> None:
    name = client.conversations.create().id
    body = response("My dog is called Rex.", conversation=name)
    first, again = (http.post(RESPONSES, json=body, headers=key).json() for _ in range(2))
    assert whole(first) == whole(again)
    http.post(RESPONSES, json=response("And?", conversation=name)).raise_for_status()
    assert whole(http.post(RESPONSES, json=body, headers=key).json()) == whole(first)
    assert said(http, name) == ["My dog is called Rex.", "Rex!", "And?", "Rex!"]


def test_an_answer_that_went_to_a_branch_is_still_told_again(http: httpx.Client, key: dict[str, str]) -> None:
    for text in ("I live in Lyon.", "And you?"):
        http.post(CHAT, json=chat(text, "branched")).raise_for_status()
    body = chat("My dog is called Rex.", "branched")
    first = http.post(CHAT, json=body, headers=key).json()
    told = http.get("/v1/sessions/branched/messages").json()["data"]
    talk = [{"role": message["role"], "content": message["content"]} for message in told[:4]]
    edited = {**body, "messages": [*talk, {"role": "user", "content": "No, I live in Nice."}]}
    http.post(CHAT, json=edited).raise_for_status()
    (branch,) = http.get("/v1/sessions/branched/branches").json()["data"]
    assert branch["messages"][-1]["content"] == "Rex!"
    before = said(http, "branched")
    assert before[-2] == "No, I live in Nice."
    assert whole(http.post(CHAT, json=body, headers=key).json()) == whole(first)
    assert said(http, "branched") == before


class Gate:
    """A script that waits until it is let go."""

    def __init__(self) -> None:
        self.inside, self.go = threading.Event(), threading.Event()

    def __call__(self, seen: str) -> str:
        self.inside.set()
        assert self.go.wait(60)
        return "Done."


@pytest.mark.parametrize(
    ("path", "body"), [(CHAT, chat("Hi", "gate")), (RESPONSES, response("Hi"))], ids=["chat", "responses"]
)
@pytest.mark.parametrize("stream", [False, True])
def test_while_the_first_is_answered_the_second_is_refused(
    key: dict[str, str], path: str, body: dict[str, Any], stream: bool
) -> None:
    gate, body = Gate(), {**body, "stream": stream}
    with beacon_server(scripted_engine(gate)) as url, ThreadPoolExecutor(1) as pool:
        first = pool.submit(httpx.post, url + path, json=body, headers=key, timeout=60)
        assert gate.inside.wait(30)
        assert refused(httpx.post(url + path, json=body, headers=key), 409)["code"] == "idempotency_key_in_use"
        gate.go.set()
        assert first.result().status_code == 200
        again = httpx.post(url + path, json=body, headers=key)
        assert again.status_code == 200
        assert "Done." in again.text


def test_a_request_that_failed_is_answered_when_it_is_sent_again(http: httpx.Client, key: dict[str, str]) -> None:
    for path, body in ((CHAT, chat("Hi", "failed", max_tokens=2)), (RESPONSES, response("Hi", max_output_tokens=2))):
        wrong = {**body, "context_id": "nowhere"}
        refused(http.post(path, json=wrong, headers=key), 400)
        assert http.post(path, json=body, headers=key).status_code == 200


@pytest.fixture(params=["redis", "valkey"])
def shared(request: pytest.FixtureRequest) -> Iterator[str]:
    with redis_server(request.param) as url:
        yield url


@pytest.mark.parametrize("kind", ["chat", "responses", "conversation"])
def test_two_servers_that_are_asked_at_once_write_one_answer(shared: str, key: dict[str, str], kind: str) -> None:
    """Both begin before either has written: the one that is second says 409, and then tells the first's answer."""
    with ExitStack() as stack:
        gates = [Gate(), Gate()]
        urls = [stack.enter_context(beacon_server(scripted_engine(gate, shared))) for gate in gates]
        pool = stack.enter_context(ThreadPoolExecutor(2))
        body = chat("Hi", "both") if kind == "chat" else response("Hi")
        name = "both"
        if kind == "conversation":
            name = httpx.post(urls[0] + CONVERSATIONS, json={}).json()["id"]
            body["conversation"] = name
        path = CHAT if kind == "chat" else RESPONSES
        sent = [pool.submit(httpx.post, url + path, json=body, headers=key, timeout=60) for url in urls]
        for gate in gates:
            assert gate.inside.wait(30)
        for gate in gates:
            gate.go.set()
        answers = [one.result() for one in sent]
        assert sorted(answer.status_code for answer in answers) == [200, 409]
        first = next(answer for answer in answers if answer.status_code == 200).json()
        for url in urls:
            assert whole(httpx.post(url + path, json=body, headers=key).json()) == whole(first)
        session = first["id"] if kind == "responses" else name
        assert len(httpx.get(f"{urls[1]}/v1/sessions/{session}/messages").json()["data"]) == 2


DYING = '''
import os, signal, sys
from beacon_memory.stores import open_store
from beacon_memory.testing import beacon_server, scripted_engine

store = open_store(sys.argv[1])
commit = store.commit

class Dies(type(store)):
    """A store whose process is killed behind each commit, before anyone hears of it."""
    def commit(self, *given, **how):
        super().commit(*given, **how)
        os.kill(os.getpid(), signal.SIGKILL)

store.__class__ = Dies
with beacon_server(scripted_engine(lambda seen: "First.", store)) as url:
    print(url, flush=True)
    sys.stdin.read()
'''


@pytest.mark.parametrize("kind", ["chat", "responses"])
@pytest.mark.parametrize("where", ["sqlite", "redis"])
def test_an_answer_that_was_written_and_not_sent_is_told_by_the_next_process(
    tmp_path: Path, key: dict[str, str], kind: str, where: str
) -> None:
    path, body = (CHAT, chat("Hi", "killed")) if kind == "chat" else (RESPONSES, response("Hi"))
    with ExitStack() as stack:
        redis = stack.enter_context(redis_server()) if where == "redis" else ""
        place = redis or f"sqlite:///{tmp_path}/memory.db"
        run = [sys.executable, "-c", DYING, place]
        process = subprocess.Popen(run, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        with process:
            assert process.stdout is not None
            url = process.stdout.readline().strip()
            with pytest.raises(httpx.HTTPError):
                httpx.post(url + path, json=body, headers=key, timeout=60)
            assert process.wait(30) == -signal.SIGKILL
        url = stack.enter_context(beacon_server(scripted_engine(lambda seen: "Second.", place)))
        for _ in range(2):
            answer = httpx.post(url + path, json=body, headers=key)
            assert answer.status_code == 200
            assert "First." in answer.text
        name = "killed" if kind == "chat" else answer.json()["id"]
        told = httpx.get(f"{url}/v1/sessions/{name}/messages").json()["data"]
        assert [message["content"] for message in told] == ["Hi", "First."]


def test_without_a_session_a_key_has_no_effect(http: httpx.Client, key: dict[str, str]) -> None:
    for path, body in ((CHAT, chat("Hi")), (RESPONSES, response("Hi", store=False))):
        first, second = (http.post(path, json=body, headers=key).json() for _ in range(2))
        assert first["id"] != second["id"]


def test_a_key_counts_within_its_tenant_and_its_talk(http: httpx.Client, key: dict[str, str]) -> None:
    for session in ("apart-1", "apart-2"):
        http.post(CHAT, json=chat("Hi", session), headers=key).raise_for_status()
        assert len(said(http, session)) == 2
