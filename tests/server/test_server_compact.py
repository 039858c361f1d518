"""Conversations that are folded into one item, with OpenAI's own client: all that was said is known behind it."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from conftest import MODEL
from openai import APIStatusError, NotFoundError, OpenAI

from beacon_memory.server.keys import Keys
from beacon_memory.stores import open_store
from beacon_memory.testing import beacon_server, scripted_engine

REX = {"role": "user", "content": "My dog is called Rex."}
WHO = {"role": "user", "content": "What is my dog called?"}
HELLO = {"role": "assistant", "content": "Hello."}
LONG = {"role": "user", "content": "The lighthouse at the cape was painted white. " * 40}
CALL = {"type": "function_call", "call_id": "c1", "name": "weather", "arguments": '{"place": "Lyon"}'}
RESULT = {"type": "function_call_output", "call_id": "c1", "output": "Rain."}


def compact(client: OpenAI, items: Any = None, **how: Any) -> Any:
    return client.responses.compact(model=MODEL, input=items, **how)


def ask(client: OpenAI, items: Any, **how: Any) -> Any:
    return client.responses.create(model=MODEL, input=items, **how)


def passed(found: Any) -> list[Any]:
    """The output as a client sends it on."""
    return [item.to_dict() for item in found.output]


def said(http: httpx.Client, session: str) -> list[str]:
    return [message["content"] for message in http.get(f"/v1/sessions/{session}/messages").json()["data"]]


def test_what_was_said_becomes_one_item_that_can_be_gone_on_from(client: OpenAI, http: httpx.Client) -> None:
    folded = compact(client, [LONG, HELLO, REX, HELLO])
    assert (folded.object, [item.type for item in folded.output]) == ("response.compaction", ["compaction"])
    assert folded.output[0].id == folded.id.replace("resp_", "cmp_")
    assert folded.usage.input_tokens == folded.usage.input_tokens_details.cache_write_tokens > 300
    assert http.get(f"/v1/sessions/{folded.id}").json()["tail"] == 0

    answer = ask(client, [*passed(folded), WHO])
    assert answer.output_text == "Rex!"
    assert answer.usage.input_tokens_details.cached_tokens == folded.usage.input_tokens
    whole = [m["content"] for m in (LONG, HELLO, REX, HELLO)]
    assert said(http, folded.id) == whole
    assert said(http, answer.id) == [*whole, WHO["content"], "Rex!"]
    given = [item.to_dict() for item in client.responses.input_items.list(answer.id, order="asc")]
    assert [given[0], given[1]["content"][0]["text"]] == [*passed(folded), WHO["content"]]  # type: ignore[index]


def test_a_response_is_folded_with_what_it_went_on_from(client: OpenAI, http: httpx.Client) -> None:
    first = ask(client, REX["content"])
    ask(client, "Another end of it.", previous_response_id=first.id)
    bare = compact(client, previous_response_id=first.id)
    more = compact(client, [{"role": "user", "content": "He is afraid of thunder."}], previous_response_id=first.id)
    assert said(http, bare.id) == [REX["content"], "Rex!"]
    assert said(http, more.id) == [REX["content"], "Rex!", "He is afraid of thunder."]
    client.responses.delete(first.id)
    for how in ({"items": passed(bare)}, {"items": [], "previous_response_id": more.id}):
        items = [*how.pop("items"), WHO]
        assert ask(client, items, **how).output_text == "Rex!"


def test_a_conversation_is_folded_up_to_one_of_its_responses(client: OpenAI, http: httpx.Client) -> None:
    talk = client.conversations.create()
    first = ask(client, REX["content"], conversation=talk.id)
    ask(client, "Hello", conversation=talk.id)
    folded = compact(client, previous_response_id=first.id)
    assert said(http, folded.id) == [REX["content"], "Rex!"]
    assert len(said(http, talk.id)) == 4


def test_what_a_compaction_holds_is_not_read_again_and_what_is_new_in_front_of_it_is(
    client: OpenAI, http: httpx.Client
) -> None:
    rules = {"role": "system", "content": "Be brief."}
    folded = compact(client, [rules, REX, HELLO, CALL, RESULT])
    new = {"role": "user", "content": "Today is Monday."}
    answer = ask(client, [rules, REX, HELLO, CALL, RESULT, new, *passed(folded), WHO])
    call = 'Hello.\n<tool_call>\n{"name": "weather", "arguments": {"place": "Lyon"}}\n</tool_call>'
    assert said(http, answer.id) == [REX["content"], call, "Rain.", "Today is Monday.", WHO["content"], "Rex!"]
    again = compact(client, [*passed(folded), new])
    items = [*passed(folded), *passed(again), WHO]
    assert said(http, ask(client, items).id)[-4:] == ["Rain.", "Today is Monday.", WHO["content"], "Rex!"]
    system = [item.to_dict().get("role") for item in client.conversations.items.list(answer.id, order="asc")]
    assert (system[0], system.count("system")) == ("system", 1)


def test_calls_of_what_was_folded_can_be_answered_behind_it(client: OpenAI, http: httpx.Client) -> None:
    folded = compact(client, [REX, CALL])
    assert said(http, ask(client, [*passed(folded), RESULT]).id)[2] == "Rain."


def test_long_talks_are_folded_with_all_their_pages(client: OpenAI, http: httpx.Client) -> None:
    talk = [{"role": "user", "content": f"Fact {n}."} for n in range(63)]
    first = ask(client, [REX, *talk])
    folded = compact(client, previous_response_id=first.id)
    assert said(http, folded.id) == [REX["content"], *(m["content"] for m in talk), "Rex!"]
    assert client.responses.retrieve(folded.id).output[0].type == "compaction"
    assert ask(client, [*passed(folded), WHO]).output_text == "Rex!"


def test_a_compaction_is_told_again_and_forgotten(client: OpenAI, http: httpx.Client) -> None:
    folded = compact(client, [REX, HELLO], instructions="Be brief.", prompt_cache_key="x", service_tier="default")
    again = client.responses.retrieve(folded.id)
    assert again.to_dict() == folded.to_dict()
    told = [item.to_dict()["role"] for item in client.responses.input_items.list(folded.id, order="asc")]
    assert told == ["user", "assistant"]
    client.responses.delete(folded.id)
    with pytest.raises(NotFoundError):
        ask(client, [*passed(folded), WHO])
    assert http.get(f"/v1/sessions/{folded.id}").status_code == 404


def test_behind_a_compaction_is_answered_in_events_and_without_a_trace(client: OpenAI, http: httpx.Client) -> None:
    items = [*passed(compact(client, [REX])), WHO]
    before = http.get("/v1/sessions", params={"limit": 1000}).json()
    assert ask(client, items, store=False).output_text == "Rex!"
    assert http.get("/v1/sessions", params={"limit": 1000}).json() == before
    with client.responses.stream(model=MODEL, input=items) as stream:
        assert stream.get_final_response().output_text == "Rex!"


GONE = {"type": "compaction", "encrypted_content": "resp_" + "0" * 32}


@pytest.mark.parametrize(
    ("path", "body", "status", "param"),
    [
        ("", {"input": [GONE, WHO]}, 404, "input"),
        ("", {"input": [{**GONE, "encrypted_content": "gAAAA"}, WHO]}, 404, "input"),
        ("", {"input": [REX, {**GONE, "encrypted_content": 7}, WHO]}, 400, "input[1]"),
        ("", {"input": [GONE, WHO], "previous_response_id": "resp_1"}, 400, "previous_response_id"),
        ("", {"input": [GONE, WHO], "conversation": "ada"}, 400, "conversation"),
        ("", {"input": [REX, GONE, {"role": "robot"}]}, 400, "input[2]"),
        ("/compact", {"input": [GONE, WHO]}, 404, "input"),
        ("/compact", {"previous_response_id": "resp_1"}, 404, "previous_response_id"),
        ("/compact", {}, 400, "input"),
        ("/compact", {"input": []}, 400, "input"),
        ("/compact", {"input": [RESULT]}, 400, "input"),
        ("/compact", {"input": "Hi", "ratio": 3}, 400, "ratio"),
        ("/compact", {"input": "Hi", "conversation": "ada"}, 400, "conversation"),
    ],
)
def test_what_cannot_be_folded_or_gone_on_from_is_refused(
    http: httpx.Client, path: str, body: dict[str, Any], status: int, param: str | None
) -> None:
    before = http.get("/v1/sessions", params={"limit": 1000}).json()
    answer = http.post(f"/v1/responses{path}", json={"model": MODEL, **body})
    assert (answer.status_code, answer.json()["error"]["param"]) == (status, param), answer.text
    assert http.get("/v1/sessions", params={"limit": 1000}).json() == before


def test_only_what_was_said_last_has_to_be_new(client: OpenAI) -> None:
    with pytest.raises(APIStatusError) as told:
        ask(client, [REX, *passed(compact(client, [REX]))])
    assert (told.value.status_code, told.value.param) == (400, "input")


def test_anothers_compaction_is_not_there(tmp_path: Path) -> None:
    """The same as one that never was."""
    keys = Keys(tmp_path / "keys.json")
    acme, globex = keys.add("acme"), keys.add("globex")

    def remembers(seen: str) -> str:
        return " ".join(sorted(set(re.findall(r"secret-[a-z]+", seen)))) or "nothing"

    def opened(namespace: str) -> Any:
        return open_store("memory://", namespace=namespace)

    with (
        beacon_server(scripted_engine(remembers), keys=keys, place=opened) as url,
        OpenAI(base_url=f"{url}/v1", api_key=acme, max_retries=0) as one,
        OpenAI(base_url=f"{url}/v1", api_key=globex, max_retries=0) as other,
    ):
        folded = compact(one, "This is secret-acme.")
        assert ask(one, [*passed(folded), WHO]).output_text == "secret-acme"
        theirs: list[Callable[[Any], Any]] = [
            lambda item: ask(other, [item, WHO]),
            lambda item: compact(other, [item]),
            lambda item: other.responses.retrieve(item["encrypted_content"]),
        ]
        for act in theirs:
            told = []
            for item in (passed(folded)[0], GONE):
                with pytest.raises(NotFoundError) as error:
                    act(item)
                told.append(str(error.value).replace(item["encrypted_content"], "it"))
            assert told[0] == told[1]
        assert ask(other, "What do you know?").output_text == "nothing"
