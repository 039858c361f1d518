"""Conversations with OpenAI's own client: sessions that are made of items, and answered in by responses."""

from __future__ import annotations

import asyncio
import json
import uuid
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import pytest
from conftest import wise
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from openai import AsyncOpenAI, NotFoundError, OpenAI
from test_server_refusals import NAMES, VALUES, refused
from test_server_responses import MODEL, WEATHER, ask, said
from test_server_responses_refusals import IMAGE, MORE

from beacon_memory.server.keys import Keys
from beacon_memory.stores import open_store
from beacon_memory.testing import beacon_server, redis_server, scripted_engine

CONVERSATIONS = "/v1/conversations"


def user(text: str) -> Any:
    return {"role": "user", "content": text}


def words(client: OpenAI, conversation: str) -> list[str]:
    return [item.content[0].text for item in client.conversations.items.list(conversation, order="asc")]  # type: ignore


def test_a_conversation_is_made_told_changed_and_forgotten(client: OpenAI, http: httpx.Client) -> None:
    made = client.conversations.create(items=[user("My dog is called Rex.")], metadata={"trip": "Lyon"})
    assert made.id.startswith("conv_")
    assert client.conversations.retrieve(made.id) == made
    assert said(http, made.id) == ["My dog is called Rex."]
    changed = client.conversations.update(made.id, metadata={"trip": "Nice"})
    assert (changed.metadata, changed.created_at) == ({"trip": "Nice"}, made.created_at)
    assert client.conversations.retrieve(made.id) == changed
    assert client.conversations.delete(made.id).deleted
    assert http.get(f"/v1/sessions/{made.id}").status_code == 404
    for act in (client.conversations.retrieve, client.conversations.delete, client.conversations.items.list):
        with pytest.raises(NotFoundError, match="no conversation"):
            act(made.id)


def test_an_empty_conversation_waits_for_what_is_said(client: OpenAI, http: httpx.Client) -> None:
    made = client.conversations.create()
    assert words(client, made.id) == []
    assert http.get(f"/v1/sessions/{made.id}").json()["messages"] == 0
    assert ask(client, "My dog is called Rex.", conversation=made.id).output_text == "Rex!"
    assert client.conversations.retrieve(made.id) == made


@pytest.mark.parametrize("stream", [False, True])
def test_a_response_in_a_conversation_adds_what_was_said(client: OpenAI, http: httpx.Client, stream: bool) -> None:
    made = client.conversations.create(items=[user("My dog is called Rex.")])
    for how in (made.id, {"id": made.id}):
        answer = ask(client, "What is my dog called?", conversation=how, stream=stream)
        answer = list(answer)[-1].response if stream else answer
        assert (answer.output_text, answer.conversation.id) == ("Rex!", made.id)
    assert words(client, made.id) == ["My dog is called Rex.", *["What is my dog called?", "Rex!"] * 2]
    assert said(http, made.id) == words(client, made.id)
    again = client.responses.retrieve(answer.id).to_dict()
    assert again == {name: value for name, value in answer.to_dict().items() if name != "beacon"}
    assert [item.content[0].text for item in client.responses.input_items.list(answer.id)] == ["What is my dog called?"]  # type: ignore
    newest = client.conversations.items.list(made.id, limit=1).data[0]
    assert newest.to_dict() == answer.output[0].to_dict()
    client.responses.delete(answer.id)
    with pytest.raises(NotFoundError):
        client.responses.retrieve(answer.id)
    assert len(words(client, made.id)) == 5  # what was said stays in the conversation


def test_a_response_of_a_conversation_can_be_gone_on_from_alone(client: OpenAI, http: httpx.Client) -> None:
    made = client.conversations.create()
    first = ask(client, "My dog is called Rex. " * 30, conversation=made.id)
    ask(client, "My cat is called Tom. " * 30, conversation=made.id)
    apart = ask(client, "What is my dog called?", previous_response_id=first.id)
    assert said(http, apart.id) == ["My dog is called Rex. " * 30, "Rex!", "What is my dog called?", "Rex!"]
    assert len(words(client, made.id)) == 4


def test_what_is_not_stored_reads_a_conversation_and_adds_nothing(client: OpenAI) -> None:
    made = client.conversations.create(items=[user("My dog is called Rex.")])
    assert ask(client, "What is my dog called?", conversation=made.id, store=False).output_text == "Rex!"
    assert words(client, made.id) == ["My dog is called Rex."]


def test_items_are_added_found_and_deleted(client: OpenAI, http: httpx.Client) -> None:
    made = client.conversations.create(items=[{"role": "system", "content": "Be brief."}])
    call: Any = {"type": "function_call", "call_id": "c1", "name": "weather", "arguments": '{"place": "Lyon"}'}
    result: Any = {"type": "function_call_output", "call_id": "c1", "output": "7 degrees"}
    added = client.conversations.items.create(
        made.id,
        items=[user("What is it like in Lyon?"), {"role": "assistant", "content": "Let me see."}, call, result],
    )
    kinds = ["message", "message", "function_call", "function_call_output"]
    assert [item.type for item in added.data] == kinds
    listed = client.conversations.items.list(made.id, order="asc").data
    assert [item.type for item in listed] == ["message", *kinds]
    assert listed[1:] == added.data
    for item in listed:
        assert client.conversations.items.retrieve(item.id, conversation_id=made.id) == item
    found: Any = listed[3]
    assert (found.name, json.loads(found.arguments), found.call_id) == ("weather", {"place": "Lyon"}, "c1")
    assert client.conversations.items.delete(listed[3].id, conversation_id=made.id).id == made.id
    assert words(client, made.id) == ["Be brief.", "What is it like in Lyon?"]  # a call goes with its words and result
    client.conversations.items.delete(listed[0].id, conversation_id=made.id)
    assert words(client, made.id) == ["What is it like in Lyon?"]
    with pytest.raises(NotFoundError, match="no item"):
        client.conversations.items.retrieve(listed[0].id, conversation_id=made.id)


def test_an_item_keeps_its_id_while_others_come_and_go(client: OpenAI) -> None:
    """An id was made of a place, where a message had none of its own: who deleted one of two lost the other's."""
    name = f"ada/{uuid.uuid4()}"
    for words_ in ("Hi", "Hello", "Hi"):
        client.chat.completions.create(model=MODEL, messages=[user(words_)], user=name)
    system: Any = [{"role": "developer", "content": text} for text in ("Be brief.", "It is night.", "Be brief.")]
    items = client.conversations.items
    added = [item.id for one in system for item in items.create(name, items=[one]).data]
    listed = [item.id for item in items.list(name, order="asc")]
    assert listed[:3] == added
    assert len(set(listed)) == len(listed) == 9
    for deleted, item in enumerate(reversed(listed), 1):
        items.delete(item, conversation_id=name)
        assert [left.id for left in items.list(name, order="asc")] == listed[: 9 - deleted]


def test_a_system_item_of_a_request_has_the_id_that_it_has_in_its_conversation(client: OpenAI) -> None:
    made = client.conversations.create(items=[{"role": "system", "content": "Be brief."}])
    answer = ask(client, [{"role": "developer", "content": "It is night."}, user("Hi")], conversation=made.id)
    (told, _) = client.responses.input_items.list(answer.id, order="asc").data
    assert client.conversations.items.retrieve(str(told.id), conversation_id=made.id).id == told.id


def test_results_of_calls_made_in_a_conversation_are_read(client: OpenAI) -> None:
    made = client.conversations.create()
    answer = ask(client, "What is the weather in 'Lyon'?", conversation=made.id, tools=[WEATHER])
    result = {"type": "function_call_output", "call_id": answer.output[0].call_id, "output": "7 degrees"}
    assert ask(client, [result], conversation=made.id, tools=[WEATHER]).output_text == "It was 7."


def test_what_system_items_say_goes_with_a_conversation() -> None:
    seen: list[str] = []

    def hears(text: str) -> str:
        seen.append(text)
        return "Yes."

    with beacon_server(scripted_engine(hears)) as url, OpenAI(base_url=f"{url}/v1", api_key="none") as client:
        made = client.conversations.create(items=[{"role": "developer", "content": "You are a pirate."}])
        ask(client, [{"role": "system", "content": "It is night."}, user("Hi")], conversation=made.id)
        ask(client, "And now?", conversation=made.id)
        assert [text.count("You are a pirate.") for text in seen] == [1, 1]
        assert [text.count("It is night.") for text in seen] == [1, 1]
        assert words(client, made.id)[:2] == ["You are a pirate.", "It is night."]


def test_items_come_page_by_page(client: OpenAI) -> None:
    made = client.conversations.create(items=[user(f"Word {n}.") for n in range(70)])
    assert words(client, made.id) == [f"Word {n}." for n in range(70)]
    page = client.conversations.items.list(made.id, limit=3)
    assert [item.content[0].text for item in page.data] == ["Word 69.", "Word 68.", "Word 67."]  # type: ignore
    assert page.has_more


def test_what_is_kept_beside_a_conversation_outlives_what_is_said_in_it(client: OpenAI, http: httpx.Client) -> None:
    made = client.conversations.create(metadata={"trip": "Lyon"})
    path = f"/v1/sessions/{made.id}"
    for n in range(70):
        http.post(f"{path}/messages", json={"messages": [user(f"Word {n}. " * 5)]}).raise_for_status()
    http.post(f"{path}/rewind", json={"messages": 66}).raise_for_status()
    http.delete(f"{path}/messages/3").raise_for_status()
    http.post(f"{path}/documents", json={"name": "door", "text": "The door is green."}).raise_for_status()
    assert client.conversations.retrieve(made.id) == made
    archive = http.get(f"{path}/export").content
    http.post("/v1/sessions/import", params={"id": f"{made.id}-2"}, content=archive).raise_for_status()
    assert client.conversations.retrieve(f"{made.id}-2").metadata == {"trip": "Lyon"}
    assert len(words(client, made.id)) == 65


def test_any_session_is_a_conversation(client: OpenAI, http: httpx.Client) -> None:
    name = f"ada/{uuid.uuid4()}"
    client.chat.completions.create(model=MODEL, messages=[user("My dog is called Rex.")], user=name)
    assert client.conversations.retrieve(name).metadata == {}
    answer = ask(client, "What is my dog called?", conversation=name)
    assert answer.output_text == "Rex!"
    assert client.responses.retrieve(answer.id).output_text == "Rex!"
    first = client.conversations.items.list(name, order="asc").data[0]
    client.conversations.items.delete(first.id, conversation_id=name)
    assert words(client, name) == ["Rex!", "What is my dog called?", "Rex!"]


async def test_many_speak_in_one_conversation_at_two_servers_and_nothing_is_lost() -> None:
    with ExitStack() as stack:
        where = stack.enter_context(redis_server())
        urls = [stack.enter_context(beacon_server(scripted_engine(wise, where))) for _ in range(2)]
        client, other = (AsyncOpenAI(base_url=f"{url}/v1", api_key="x", max_retries=0) for url in urls)
        async with client, other:
            made = await client.conversations.create()
            spoken = (
                one.responses.create(model=MODEL, input=f"Word {n}.", conversation=made.id)
                for n, one in enumerate([client, other] * 4)
            )
            answers = await asyncio.gather(*spoken)
            page = await client.conversations.items.list(made.id, limit=100)
            told = [item.content[0].text for item in page.data]  # type: ignore[union-attr]
            assert sorted(text for text in told if "Word" in text) == [f"Word {n}." for n in range(8)]
            assert len(told) == 16
            for answer in answers:
                assert (await other.responses.retrieve(answer.id)).id == answer.id


@pytest.mark.parametrize("kind", ["redis", "valkey"])
def test_servers_over_one_store_share_a_conversation(kind: str) -> None:
    with redis_server(kind) as where:
        name = ""
        for n in range(3):
            with (
                beacon_server(scripted_engine(wise, where)) as url,
                OpenAI(base_url=f"{url}/v1", api_key="x") as client,
            ):
                name = name or client.conversations.create(metadata={"a": "b"}).id
                ask(client, f"My {n}. dog is called Rex.", conversation=name)
                assert client.conversations.retrieve(name).metadata == {"a": "b"}
                assert len(words(client, name)) == 2 * n + 2


def test_a_conversation_of_another_tenant_is_not_found(tmp_path: Path) -> None:
    keys = Keys(tmp_path / "keys.json")
    secrets = [keys.add(name) for name in ("acme", "globex")]
    stores = {name: open_store("memory://") for name in ("acme", "globex")}
    with beacon_server(scripted_engine(wise), keys=keys, place=stores.__getitem__) as url:
        ours, theirs = (OpenAI(base_url=f"{url}/v1", api_key=secret, max_retries=0) for secret in secrets)
        with ours, theirs:
            name = ours.conversations.create(items=[user("My dog is called Rex.")]).id
            (item,) = ours.conversations.items.list(name)
            for act in (theirs.conversations.retrieve, theirs.conversations.delete, theirs.conversations.items.list):
                with pytest.raises(NotFoundError):
                    act(name)
            with pytest.raises(NotFoundError):
                theirs.conversations.items.retrieve(item.id, conversation_id=name)
            with pytest.raises(NotFoundError):
                ask(theirs, "Hi", conversation=name)
            assert words(ours, name) == ["My dog is called Rex."]


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"items": [IMAGE]}, None),
        ({"items": [{"role": "robot", "content": "Hi"}]}, "items[0]"),
        ({"items": [user("Hi"), {"type": "function_call_output", "call_id": "c9", "output": "7"}]}, "items"),
        ({"items": [user("")]}, None),
        ({"items": "Hi"}, "items"),
        ({"metadata": {"a": 7}}, "metadata"),
        ({"name": "ada"}, "name"),
    ],
    ids=lambda value: json.dumps(value)[:50],
)
def test_what_cannot_be_kept_is_refused_whole(http: httpx.Client, client: OpenAI, body: Any, param: str | None) -> None:
    made = client.conversations.create(items=[user("My dog is called Rex.")])
    before = http.get("/v1/sessions", params={"limit": 1000}).json()
    assert refused(http.post(CONVERSATIONS, json=body), 400)["param"] == param
    if "items" in body:
        assert refused(http.post(f"{CONVERSATIONS}/{made.id}/items", json=body), 400)["param"] == param
    else:
        assert refused(http.post(f"{CONVERSATIONS}/{made.id}", json=body), 400)["param"] in (param, "metadata")
    assert http.get("/v1/sessions", params={"limit": 1000}).json() == before
    assert words(client, made.id) == ["My dog is called Rex."]


@pytest.mark.parametrize("name", ["conv_1", "context:house", "branch:1", "x" * 600, "%ff"])
def test_an_unknown_conversation_is_not_found(http: httpx.Client, name: str) -> None:
    path = f"{CONVERSATIONS}/{quote(name, safe='')}"
    for method, where, body in (
        ("GET", path, None),
        ("DELETE", path, None),
        ("POST", path, {"metadata": {}}),
        ("GET", f"{path}/items", None),
        ("POST", f"{path}/items", {"items": [user("Hi")]}),
        ("GET", f"{path}/items/msg_1", None),
        ("DELETE", f"{path}/items/msg_1", None),
    ):
        assert refused(http.request(method, where, json=body), 404)["code"] == "conversation_not_found"


ROUTES = [
    ("POST", CONVERSATIONS),
    ("GET", CONVERSATIONS + "/{}"),
    ("POST", CONVERSATIONS + "/{}"),
    ("GET", CONVERSATIONS + "/{}/items"),
    ("POST", CONVERSATIONS + "/{}/items"),
    ("GET", CONVERSATIONS + "/{}/items/{}"),
    ("DELETE", CONVERSATIONS + "/{}/items/{}"),
]


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(ROUTES), NAMES, NAMES, st.dictionaries(MORE, VALUES, max_size=5), st.booleans())
def test_no_body_and_no_name_ends_in_a_500(
    http: httpx.Client, route: tuple[str, str], one: str, other: str, body: dict[str, Any], meant: bool
) -> None:
    method, path = route
    if meant:
        body = {"items": [{"type": "message", "role": "user", "content": "Hi", **body}]}
        one = http.post(CONVERSATIONS, json={}).json()["id"]
    names = [quote(name.encode("utf-8", "replace"), safe="") for name in (one, other)]
    content = json.dumps(body)
    response = http.request(method, path.format(*names), content=content, headers={"Content-Type": "application/json"})
    assert response.status_code < 500, (response.status_code, response.text)
    if response.status_code >= 400:
        refused(response, response.status_code)
