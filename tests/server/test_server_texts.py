"""Texts without a chat template, tokens, and what our own clients ask of sessions and documents."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
from openai import BadRequestError, OpenAI

HOW: dict[str, Any] = {"model": "scripted", "max_tokens": 20}
HI = [{"role": "user", "content": "Hi"}]


@pytest.fixture(autouse=True)
def _empty(http: httpx.Client) -> None:
    for name in ("ada", "bob"):
        http.delete(f"/v1/sessions/{name}")
    for name in ("house", "home"):
        http.delete(f"/v1/contexts/{name}")


def test_openais_client_completes_texts_together_and_in_pieces(client: OpenAI) -> None:
    texts = ["It is called Rex, ", "<|im_start|>user\nHe is called Rex.<|im_end|>"]
    whole = client.completions.create(prompt=texts, **HOW)
    assert [(choice.index, choice.text, choice.finish_reason) for choice in whole.choices] == [
        (0, "Rex!", "stop"),
        (1, "Rex!", "stop"),
    ]
    assert whole.usage is not None
    assert whole.usage.total_tokens == whole.usage.prompt_tokens + whole.usage.completion_tokens
    stream = client.completions.create(prompt=texts[0], stream=True, stream_options={"include_usage": True}, **HOW)
    pieces = list(stream)
    assert "".join(choice.text for piece in pieces for choice in piece.choices) == "Rex!"
    assert pieces[-1].usage is not None
    cut = client.completions.create(prompt=texts[0], model="scripted", max_tokens=2)
    assert (cut.choices[0].text, cut.choices[0].finish_reason) == ("Re", "length")


@pytest.mark.parametrize(
    ("asked", "param"),
    [
        ({"prompt": []}, "prompt"),
        ({"prompt": ["a"] * 65}, "prompt"),
        ({"prompt": [[1, 2]]}, "prompt"),
        ({"prompt": 7}, "prompt"),
        ({"prompt": ["a", "b"], "stream": True}, "prompt"),
        ({"n": 2}, "n"),
        ({"echo": True}, "echo"),
        ({"logprobs": 1}, "logprobs"),
        ({"max_tokens": 10**9}, "max_tokens"),
        ({"temperature": -1}, "temperature"),
        ({"suffix": "end"}, "suffix"),
    ],
    ids=str,
)
def test_what_a_completion_cannot_be_is_refused_by_name(client: OpenAI, asked: dict[str, Any], param: str) -> None:
    with pytest.raises(BadRequestError) as told:
        client.completions.create(**{"prompt": "Hi", **HOW, **asked})
    assert told.value.param == param


def test_tokens_are_those_that_an_answer_reads(client: OpenAI, http: httpx.Client) -> None:
    told = http.post("/v1/tokenize", json={"messages": HI}).json()
    answer = client.chat.completions.create(model="scripted", messages=HI, max_tokens=4)  # type: ignore[arg-type]
    assert answer.usage is not None
    assert told["count"] == len(told["tokens"]) <= answer.usage.prompt_tokens  # beside what the template says by itself
    assert 0 < http.post("/v1/tokenize", json={"prompt": "Hi"}).json()["count"] < told["count"]
    for wrong in ({}, {"prompt": "Hi", "messages": HI}, {"prompt": "Hi", "model": "other"}):
        assert http.post("/v1/tokenize", json=wrong).status_code in (400, 404)


def test_the_list_of_models_says_what_serves(http: httpx.Client) -> None:
    about = http.get("/v1/models").json()["data"][0]["beacon"]
    assert about["interface"] == 1
    assert about["positions"] > 0
    assert set(about) == {"version", "interface", "positions", "slots", "ratio", "finder"}


def test_a_conversation_is_replaced_and_its_newest_messages_are_told(http: httpx.Client) -> None:
    talk = [*HI, {"role": "assistant", "content": "Hello."}, {"role": "user", "content": "And?"}]
    assert http.put("/v1/sessions/ada/messages", json={"messages": talk}).json()["messages"] == 3
    assert http.put("/v1/sessions/ada/messages", json={"messages": talk[:2]}).json()["messages"] == 2
    newest = http.get("/v1/sessions/ada/newest").json()
    assert (newest["before"], [one["content"] for one in newest["data"]]) == (0, ["Hi", "Hello."])
    assert http.put("/v1/sessions/ada/messages", json={"messages": [{"role": "wizard"}]}).status_code == 400
    assert http.get("/v1/sessions/bob/newest").status_code == 404
    assert http.get("/v1/sessions/ada").json()["messages"] == 2


def test_documents_are_removed_renamed_and_written_at_a_version(http: httpx.Client) -> None:
    listed = [{"key": key, "text": f"This is about the {key}."} for key in ("door", "lease", "roof")]
    written = http.post("/v1/contexts/house/documents", json={"documents": listed}).json()
    again = {"documents": listed[:1], "expected": str(int(written["version"]) + 1)}
    assert http.post("/v1/contexts/house/documents", json=again).status_code == 409
    kept = {"documents": listed[:1], "delete_missing": True, "keep": ["roof"], "expected": written["version"]}
    assert http.post("/v1/contexts/house/documents", json=kept).json()["changed"] == []
    told = http.get("/v1/contexts/house/documents?texts=true").json()["data"]
    assert [(one["key"], one["text"]) for one in told] == [(one["key"], one["text"]) for one in (listed[0], listed[2])]
    assert http.post("/v1/contexts/house/documents/remove", json={"keys": ["door", "cellar"]}).status_code == 400
    assert http.post("/v1/contexts/house/rename", json={"id": "home"}).json()["id"] == "home"
    assert http.get("/v1/contexts/house").status_code == 404
    assert http.post("/v1/contexts/home/documents/remove", json={"keys": ["door", "roof"]}).status_code == 200
    assert http.get("/v1/contexts/home/documents").json()["data"] == []


def test_an_answer_has_the_id_that_was_asked_for_and_one_behind_a_place_writes_nothing(http: httpx.Client) -> None:
    asked: dict[str, Any] = {"model": "scripted", "messages": HI, "session_id": "ada", "max_tokens": 8}
    assert http.post("/v1/chat/completions", json={**asked, "answer_id": "beacon-1"}).status_code == 200
    there = http.get("/v1/sessions/ada/messages").json()["data"]
    assert there[1]["id"] == "beacon-1"
    for how in ({"behind": 1}, {"keep": 1}):
        assert http.post("/v1/chat/completions", json={**asked, **how}).status_code == 200
    assert len(http.get("/v1/sessions/ada/messages").json()["data"]) == 2
    assert http.post("/v1/chat/completions", json={**asked, "behind": 9}).status_code == 409
    for wrong in ({"answer_id": "mine"}, {"behind": -1}, {"budget": 1}, {"texts": [""]}):
        assert http.post("/v1/chat/completions", json={**asked, **wrong}).status_code == 400


def test_texts_stand_in_front_of_one_answer_alone(http: httpx.Client) -> None:
    asked: dict[str, Any] = {"model": "scripted", "messages": HI, "max_tokens": 8}
    told = http.post("/v1/chat/completions", json={**asked, "texts": ["My dog is called Rex."]}).json()
    assert told["choices"][0]["message"]["content"] == "Rex!"
    assert told["usage"]["prompt_tokens_details"]["cached_tokens"] > 0
    assert http.post("/v1/chat/completions", json=asked).json()["choices"][0]["message"]["content"] != "Rex!"


def test_an_error_names_its_class(http: httpx.Client) -> None:
    assert http.get("/v1/sessions/bob").json()["beacon_error"] == "SessionNotFound"
    assert "beacon_error" not in http.get("/v1/nothing").json()
