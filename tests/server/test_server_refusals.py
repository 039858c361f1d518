"""What cannot be answered is refused in OpenAI's words, and no request whatever ends in a 500."""

from __future__ import annotations

import json
import socket
from typing import Any
from urllib.parse import quote, urlsplit

import httpx
import openai
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from openai import OpenAI

from beacon_memory.server.limits import Limits
from beacon_memory.testing import beacon_server, scripted_engine, sensible

CHAT = "/v1/chat/completions"
HI = [{"role": "user", "content": "Hi"}]


def refused(response: httpx.Response, status: int) -> dict[str, Any]:
    """The error of a response, which has OpenAI's shape."""
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert sorted(error) == ["code", "message", "param", "type"]
    assert error["message"]
    return dict(error)


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"messages": HI}, "model"),
        ({"model": "scripted"}, "messages"),
        ({"model": "scripted", "messages": []}, "messages"),
        ({"model": "scripted", "messages": "Hi"}, "messages"),
        ({"model": "scripted", "messages": ["Hi"]}, "messages.0"),
        ({"model": 7, "messages": HI}, "model"),
        ({"temperature": "hot"}, "temperature"),
        ({"temperature": 3}, "temperature"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 10**9}, "max_tokens"),
        ({"n": 2}, "n"),
        ({"logprobs": True}, "logprobs"),
        ({"presence_penalty": 0.5}, "presence_penalty"),
        ({"logit_bias": {"1": 5}}, "logit_bias"),
        ({"audio": {"voice": "alloy"}}, "audio"),
        ({"functions": [{"name": "f"}]}, "functions"),
        ({"stream": "yes"}, "stream"),
        ({"best_of": 3}, "best_of"),
        ({"history": "sometimes"}, "history"),
        ({"metadata": {"session": 7}}, "metadata"),
        ({"ratio": 3}, "ratio"),
    ],
    ids=lambda value: json.dumps(value)[:40],
)
def test_a_field_that_cannot_be_used_is_named(http: httpx.Client, body: dict[str, Any], param: str) -> None:
    whole = body if "model" in body or "messages" in body else {"model": "scripted", "messages": HI, **body}
    assert refused(http.post(CHAT, json=whole), 400)["param"] == param


@pytest.mark.parametrize(
    "body",
    [
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:,"}}]}]},
        {"messages": [{"role": "user", "content": ""}]},
        {"messages": [{"role": "robot", "content": "Hi"}]},
        {"messages": [{"role": "function", "name": "f", "content": "7"}]},
        {"tools": [{"type": "web_search"}]},
        {"tool_choice": "other"},
        {"response_format": {"type": "xml"}},
        {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "nothing"}}}},
        {"session_id": "context:house"},
        {"session_id": "x" * 513},
        {"ratio": 3, "session_id": "r"},
        {"ratio": 3, "user": None},
        {"stop": [""]},
    ],
    ids=lambda body: json.dumps(body)[:40],
)
def test_what_the_memory_refuses_is_a_bad_request_and_leaves_nothing(http: httpx.Client, body: dict[str, Any]) -> None:
    before = http.get("/v1/sessions").json()
    response = http.post(CHAT, json={"model": "scripted", "messages": HI, "user": "nobody", **body})
    refused(response, 400)
    assert http.get("/v1/sessions").json() == before


@pytest.mark.parametrize("content", [b"{", b"", b"[]", b"nope", b"\xff\xfe", b'{"a": NaN}', b"[" * 100_000])
def test_a_body_that_is_no_json_object_is_refused(http: httpx.Client, content: bytes) -> None:
    refused(http.post(CHAT, content=content, headers={"Content-Type": "application/json"}), 400)


def test_a_body_of_another_type_is_not_read(http: httpx.Client) -> None:
    body = json.dumps({"model": "scripted", "messages": HI})
    for kind in ("text/plain", "application/x-www-form-urlencoded"):
        assert (
            "application/json" in refused(http.post(CHAT, content=body, headers={"Content-Type": kind}), 400)["message"]
        )


def test_unknown_places_and_methods_have_openais_shape(http: httpx.Client) -> None:
    refused(http.get("/v1/nothing"), 404)
    refused(http.get(CHAT), 405)
    refused(http.delete("/v1/models"), 405)


def test_openais_client_raises_its_own_errors(client: OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="recognized"):
        client.chat.completions.create(model="scripted", messages=HI, extra_body={"unheard": 1})  # type: ignore[arg-type]
    with pytest.raises(openai.NotFoundError):
        client.get("/sessions/nobody", cast_to=object)


def test_limits_of_size_and_count() -> None:
    limits = Limits(body_bytes=2000, messages=3, answer_tokens=10)
    with beacon_server(scripted_engine(sensible), limits=limits) as url, httpx.Client(base_url=url) as http:
        assert http.post(CHAT, json={"model": "scripted", "messages": HI * 3, "max_tokens": 10}).status_code == 200
        assert refused(http.post(CHAT, json={"model": "scripted", "messages": HI * 4}), 400)["param"] == "messages"
        refused(http.post(CHAT, json={"model": "scripted", "messages": HI, "max_tokens": 11}), 400)
        big = [{"role": "user", "content": "x" * 3000}]
        refused(http.post(CHAT, json={"model": "scripted", "messages": big}), 413)

        def pieces() -> Any:  # without a Content-Length
            for _ in range(10):
                yield b" " * 500

        refused(http.post(CHAT, content=pieces(), headers={"Content-Type": "application/json"}), 413)


def test_an_answer_whose_length_is_not_asked_for_keeps_to_the_limit() -> None:
    """The limit once counted only where a length was asked for."""
    limits = Limits(answer_tokens=3)
    with beacon_server(scripted_engine(sensible), limits=limits) as url, httpx.Client(base_url=url) as http:
        answer = http.post(CHAT, json={"model": "scripted", "messages": HI}).json()
        assert (answer["usage"]["completion_tokens"], answer["choices"][0]["finish_reason"]) == (3, "length")
        answer = http.post("/v1/responses", json={"model": "scripted", "input": "Hi"}).json()
        assert (answer["usage"]["output_tokens"], answer["status"]) == (3, "incomplete")


def test_without_keys_a_web_page_of_elsewhere_is_refused(http: httpx.Client, url: str) -> None:
    for header in ({"Host": "evil.example"}, {"Origin": "https://evil.example"}, {"Origin": "null"}):
        refused(http.get("/v1/sessions", headers=header), 403)
    assert http.get("/v1/sessions", headers={"Origin": url}).status_code == 200
    assert http.get("/health", headers={"Host": "evil.example"}).status_code == 200


ROUTES = [
    ("POST", CHAT),
    ("POST", "/v1/sessions/{}/messages"),
    ("POST", "/v1/sessions/{}/documents"),
    ("POST", "/v1/sessions/{}/fork"),
    ("POST", "/v1/sessions/{}/rewind"),
    ("POST", "/v1/sessions/{}/checkout"),
    ("POST", "/v1/sessions/{}/search"),
    ("PATCH", "/v1/sessions/{}/messages/{}"),
    ("DELETE", "/v1/sessions/{}/messages/{}"),
    ("GET", "/v1/sessions/{}/messages"),
    ("GET", "/v1/sessions/{}/export"),
    ("DELETE", "/v1/sessions/{}"),
    ("PUT", "/v1/contexts/{}/documents/{}"),
    ("POST", "/v1/contexts/{}/documents"),
    ("DELETE", "/v1/contexts/{}/documents/{}"),
    ("GET", "/v1/contexts/{}/documents"),
    ("POST", "/v1/contexts/{}/search"),
    ("POST", "/v1/sessions/import"),
]
WORDS = st.sampled_from(
    [
        "model",
        "messages",
        "role",
        "content",
        "user",
        "scripted",
        "stream",
        "tools",
        "id",
        "text",
        "key",
        "documents",
        "name",
        "query",
        "branch",
        "metadata",
        "response_format",
        "stop",
        "seed",
        "type",
        "function",
        "max_tokens",
    ]
)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 1 << 70) | st.floats(allow_nan=False) | st.text(max_size=9) | WORDS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS | st.text(max_size=5), inner, max_size=4),
    max_leaves=8,
)
NAMES = st.text(min_size=1, max_size=12).filter(lambda name: name.strip("."))


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(ROUTES), NAMES, NAMES, st.dictionaries(WORDS, VALUES, max_size=5), st.booleans())
def test_no_body_and_no_name_ends_in_a_500(
    http: httpx.Client, route: tuple[str, str], one: str, other: str, body: dict[str, Any], meant: bool
) -> None:
    method, path = route
    if meant:  # often right but for one field
        body = {"model": "scripted", "messages": HI, "max_tokens": 2, **body} if path == CHAT else body
    names = [quote(name.encode("utf-8", "replace"), safe="") for name in (one, other)]
    if "" in names or path.format(*names).endswith("/."):
        return
    content = json.dumps(body)
    response = http.request(method, path.format(*names), content=content, headers={"Content-Type": "application/json"})
    assert response.status_code < 500, (response.status_code, response.text)
    if response.status_code >= 400:
        refused(response, response.status_code)


def test_half_letters_come_back_as_one_mark(http: httpx.Client) -> None:
    path = "/v1/contexts/halves/documents/door"
    body = b'{"text": "The door \\ud83d is green.", "metadata": {"a\\udc00": "\\ud800"}}'
    assert http.put(path, content=body, headers={"Content-Type": "application/json"}).status_code == 200
    (door,) = http.get("/v1/contexts/halves/documents").json()["data"]
    assert door["metadata"] == {"a\ufffd": "\ufffd"}


def test_what_is_no_http_at_all_does_not_stop_the_server(http: httpx.Client, url: str) -> None:
    where = urlsplit(url)
    with socket.create_connection((where.hostname or "", where.port or 0)) as raw:
        raw.sendall(b"\x16\x03\x01nonsense\r\n\r\n")
        assert b"400" in raw.recv(100)
    assert http.get("/health").json() == {"status": "ok"}
