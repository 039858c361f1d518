"""Responses that cannot be answered are refused in OpenAI's words, and leave everything as it was."""

from __future__ import annotations

import hashlib
import json
import uuid
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import pytest
from conftest import wise
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from openai import NotFoundError, OpenAI
from test_server_refusals import NAMES, VALUES, WORDS, refused

from beacon_memory.server.keys import Keys
from beacon_memory.server.limits import Limits
from beacon_memory.server.openai.points import response_id
from beacon_memory.stores import open_store
from beacon_memory.testing import beacon_server, scripted_engine

RESPONSES = "/v1/responses"
CALL = {"type": "function_call", "call_id": "c1", "name": "weather", "arguments": "{}"}
IMAGE = {"role": "user", "content": [{"type": "input_image", "image_url": "data:,"}]}
DEEP: Any = {}
for _ in range(80):
    DEEP = {"properties": DEEP}


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"model": None}, "model"),
        ({"model": "gpt-5"}, "model"),
        ({"input": None}, "input"),
        ({"input": 7}, "input"),
        ({"input": ["Hi"]}, "input"),
        ({"input": []}, "input"),
        ({"input": [{"type": "reasoning", "summary": []}]}, "input"),
        ({"input": [{"role": "robot", "content": "Hi"}]}, "input[0]"),
        ({"input": [{"type": "item_reference", "id": "msg_1"}]}, "input[0]"),
        ({"input": [{"type": "web_search_call", "id": "ws_1"}]}, "input[0]"),
        ({"input": [{**CALL, "arguments": 7}]}, "input[0].arguments"),
        ({"input": [{"type": "function_call", "name": "f"}]}, "input[0]"),
        ({"input": [{"type": "function_call_output", "call_id": "c1"}]}, "input[0]"),
        ({"input": [{"type": "function_call_output", "call_id": "c1", "output": "7"}]}, "input"),
        ({"temperature": 3}, "temperature"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"max_output_tokens": 10**9}, "max_output_tokens"),
        ({"truncation": "some"}, "truncation"),
        ({"background": True}, "background"),
        ({"top_logprobs": 3}, "top_logprobs"),
        ({"prompt": {"id": "pmpt_1"}}, "prompt"),
        ({"include": ["message.output_text.logprobs"]}, "include"),
        ({"include": ["everything"]}, "include"),
        ({"metadata": {"a": 1}}, "metadata"),
        ({"metadata": {str(n): "x" for n in range(17)}}, "metadata"),
        ({"metadata": {"a": "x" * 513}}, "metadata"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
        ({"tools": [{"type": "function", "name": "f", "parameters": DEEP}]}, "tools"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tools": [{"type": "function", "name": "f"}], "tool_choice": {"type": "mcp"}}, "tool_choice"),
        ({"tools": [{"type": "function", "name": "f"}], "tool_choice": {"type": "allowed_tools"}}, "tool_choice"),
        ({"stream": "yes"}, "stream"),
        ({"conversation": 7}, "conversation"),
        ({"conversation": {"id": "c", "more": 1}}, "conversation"),
        ({"conversation": "c", "previous_response_id": "r"}, "previous_response_id"),
        ({"previous_response_id": 7}, "previous_response_id"),
        ({"messages": []}, "messages"),
    ],
    ids=lambda value: json.dumps(value)[:50],
)
@pytest.mark.parametrize("stream", [False, True])
def test_a_field_that_cannot_be_used_is_named(
    http: httpx.Client, body: dict[str, Any], param: str, stream: bool
) -> None:
    before = http.get("/v1/sessions", params={"limit": 1000}).json()
    whole = {"model": "scripted", "input": "Hi", "stream": stream, **body}
    whole = {name: value for name, value in whole.items() if value is not None}
    status = 404 if body.get("model") == "gpt-5" else 400
    assert refused(http.post(RESPONSES, json=whole), status)["param"] == param
    assert http.get("/v1/sessions", params={"limit": 1000}).json() == before


@pytest.mark.parametrize(
    "body",
    [
        {"input": [IMAGE]},
        {"input": ""},
        {"input": [{"role": "user", "content": []}]},
        {"input": [{"role": "user", "content": 7}]},
        {"input": [{"role": "assistant", "content": 7}]},
        {"input": [{"role": "assistant", "content": ""}]},
        {"input": [{"role": "system", "content": ""}]},
        {"input": [{**CALL, "arguments": "{"}]},
        {"tools": [{"type": "function"}]},
        {"tools": [{"type": "function", "name": "f", "parameters": {"type": "nothing"}}], "tool_choice": "required"},
        {"tools": [{"type": "function", "name": "f"}], "tool_choice": {"type": "function", "name": "g"}},
        {"text": {"format": {"type": "xml"}}},
        {"text": {"format": {"type": "json_schema", "name": "x"}}},
        {"text": {"format": {"type": "json_schema", "name": "x", "schema": {"type": "nothing"}}}},
        {"ratio": 3},
        {"stop": [""]},
        {"context_id": "nowhere"},
    ],
    ids=lambda body: json.dumps(body)[:50],
)
def test_what_the_memory_refuses_is_a_bad_request_and_leaves_nothing(http: httpx.Client, body: dict[str, Any]) -> None:
    before = http.get("/v1/sessions", params={"limit": 1000}).json()
    refused(http.post(RESPONSES, json={"model": "scripted", "input": "Hi", **body}), 400)
    assert http.get("/v1/sessions", params={"limit": 1000}).json() == before


UNKNOWN = [
    "resp_" + "0" * 32,
    "resp_1",
    "ada",
    "context:house",
    "branch:1",
    "resp_" + "0" * 32 + "-YWRh",
    "%ff",
    "x" * 900,
]


@pytest.mark.parametrize(
    "more", [{}, {"object": "response"}, {"object": "response", "given": [[1]], "told": [7]}], ids=json.dumps
)
def test_what_a_caller_writes_where_a_response_stands_is_none(http: httpx.Client, more: dict[str, Any]) -> None:
    """It was taken for one, and telling it ended in a 500."""
    session = f"s-{uuid.uuid4()}"
    name = response_id("0" * 32, session)
    key = hashlib.sha256(f"chat {session}\0key".encode()).hexdigest()[:32]
    said = {"role": "user", "content": "Hi", "response": {"id": name, **more}, "completion": {"key": key, **more}}
    http.post(f"/v1/sessions/{session}/messages", json={"messages": [said]}).raise_for_status()
    for method, path in (("GET", name), ("GET", f"{name}/input_items"), ("DELETE", name)):
        refused(http.request(method, f"{RESPONSES}/{path}"), 404)
    asked = {"model": "scripted", "messages": [{"role": "user", "content": "Hello"}], "user": session}
    http.post("/v1/chat/completions", json=asked, headers={"Idempotency-Key": "key"}).raise_for_status()
    assert http.get(f"/v1/sessions/{session}/messages").json()["data"][0]["response"] == said["response"]


@pytest.mark.parametrize("name", UNKNOWN)
def test_an_unknown_response_is_not_found(http: httpx.Client, name: str) -> None:
    path = f"{RESPONSES}/{quote(name, safe='')}"
    for method, where in (("GET", path), ("DELETE", path), ("GET", f"{path}/input_items")):
        assert refused(http.request(method, where), 404)["code"] == "response_not_found"
    body = {"model": "scripted", "input": "Hi", "previous_response_id": name}
    error = refused(http.post(RESPONSES, json=body), 404)
    assert (error["code"], error["param"]) == ("previous_response_not_found", "previous_response_id")


def test_an_unknown_conversation_is_not_found(http: httpx.Client) -> None:
    for name in ("conv_1", "context:house", "x" * 600):
        error = refused(http.post(RESPONSES, json={"model": "scripted", "input": "Hi", "conversation": name}), 404)
        assert error["param"] == "conversation"


def test_a_response_of_another_tenant_is_not_found(tmp_path: Path) -> None:
    keys = Keys(tmp_path / "keys.json")
    secrets = [keys.add(name) for name in ("acme", "globex")]
    stores = {name: open_store("memory://") for name in ("acme", "globex")}
    with beacon_server(scripted_engine(wise), keys=keys, place=stores.__getitem__) as url:
        ours, theirs = (OpenAI(base_url=f"{url}/v1", api_key=secret, max_retries=0) for secret in secrets)
        with ours, theirs:
            name = ours.responses.create(model="scripted", input="My dog is called Rex.").id
            for act in (theirs.responses.retrieve, theirs.responses.delete, theirs.responses.input_items.list):
                with pytest.raises(NotFoundError):
                    act(name)
            with pytest.raises(NotFoundError):
                theirs.responses.create(model="scripted", input="Hi", previous_response_id=name)
            assert ours.responses.retrieve(name).output_text == "Rex!"


def test_limits_of_count_and_length() -> None:
    limits = Limits(messages=3, answer_tokens=10)
    with beacon_server(scripted_engine(wise), limits=limits) as url, httpx.Client(base_url=url) as http:
        items = [{"role": "user", "content": "Hi"}] * 4
        assert http.post(RESPONSES, json={"model": "scripted", "input": items[:3]}).status_code == 200
        assert refused(http.post(RESPONSES, json={"model": "scripted", "input": items}), 400)["param"] == "input"
        long = {"model": "scripted", "input": "Hi", "max_output_tokens": 11}
        assert refused(http.post(RESPONSES, json=long), 400)["param"] == "max_output_tokens"


def test_a_prompt_that_is_too_long_says_so(http: httpx.Client) -> None:
    long = {"model": "scripted", "input": "Hi", "instructions": "word " * 20_000, "truncation": "auto"}
    assert refused(http.post(RESPONSES, json=long), 400)["code"] == "context_length_exceeded"


MORE = (
    WORDS
    | st.sampled_from(
        ["input", "conversation", "previous_response_id", "store", "include", "text", "format", "call_id", "output"]
    )
    | st.sampled_from(
        [
            "arguments",
            "function_call",
            "function_call_output",
            "message",
            "instructions",
            "metadata",
            "truncation",
            "items",
        ]
    )
)
ROUTES = [
    ("POST", RESPONSES),
    ("GET", RESPONSES + "/{}"),
    ("DELETE", RESPONSES + "/{}"),
    ("GET", RESPONSES + "/{}/input_items"),
]


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(ROUTES), NAMES, st.dictionaries(MORE, VALUES, max_size=5), st.booleans())
def test_no_body_and_no_name_ends_in_a_500(
    http: httpx.Client, route: tuple[str, str], name: str, body: dict[str, Any], meant: bool
) -> None:
    method, path = route
    if meant and method == "POST":
        body = {"model": "scripted", "input": "Hi", "max_output_tokens": 2, "store": False, **body}
    quoted = quote(name.encode("utf-8", "replace"), safe="")
    response = http.request(
        method, path.format(quoted), content=json.dumps(body), headers={"Content-Type": "application/json"}
    )
    assert response.status_code < 500, (response.status_code, response.text)
    if response.status_code >= 400:
        refused(response, response.status_code)
