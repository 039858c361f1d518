"""Responses with OpenAI's own client: whole and in events, with tools, in a given form, each gone on from at will."""

from __future__ import annotations

import asyncio
import json
import uuid
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from conftest import wise
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from openai import AsyncOpenAI, NotFoundError, OpenAI
from pydantic import BaseModel

from beacon_memory.server.openai.points import response_id, session_of
from beacon_memory.serving.engine import BeaconEngine
from beacon_memory.testing import beacon_server, redis_server, scripted_engine

MODEL = "scripted"
HELLO = "Hello there, how do you do?"
WEATHER: Any = {
    "type": "function",
    "name": "weather",
    "description": "The weather of a place",
    "parameters": {"type": "object", "properties": {"place": {"type": "string"}}, "required": ["place"]},
    "strict": True,
}


def said(http: httpx.Client, session: str) -> list[str]:
    return [message["content"] for message in http.get(f"/v1/sessions/{session}/messages").json()["data"]]


def ask(client: OpenAI, asked: Any, **how: Any) -> Any:
    return client.responses.create(model=MODEL, input=asked, **how)


def test_a_response_is_kept_and_read_again_as_it_was(client: OpenAI) -> None:
    answer = ask(client, "Hi", instructions="Be brief.", metadata={"trip": "Lyon"}, temperature=0.5)
    assert (answer.output_text, answer.status, answer.model) == (HELLO, "completed", MODEL)
    assert answer.usage.total_tokens == answer.usage.input_tokens + answer.usage.output_tokens
    again = client.responses.retrieve(answer.id)
    assert again.to_dict() == {name: value for name, value in answer.to_dict().items() if name != "beacon"}
    assert (again.instructions, again.metadata, again.temperature) == ("Be brief.", {"trip": "Lyon"}, 0.5)
    (item,) = client.responses.input_items.list(answer.id)
    assert (item.type, item.role, item.content[0].text) == ("message", "user", "Hi")


def test_thoughts_are_in_an_answer_as_it_is_made_and_not_in_what_is_kept() -> None:
    with (
        beacon_server(scripted_engine(lambda seen: "<think>\nHm.\n</think>\n\nLyon.")) as url,
        OpenAI(base_url=f"{url}/v1", api_key="none") as client,
    ):
        made = ask(client, "Where?")
        assert made.output_text == "<think>\nHm.\n</think>\n\nLyon."
        assert client.responses.retrieve(made.id).output_text == "Lyon."


def test_a_response_goes_on_from_any_other_and_leaves_it_as_it_was(client: OpenAI, http: httpx.Client) -> None:
    first = ask(client, "My dog is called Rex.")
    names = [ask(client, "What is my dog called?", previous_response_id=first.id) for _ in range(2)]
    assert [answer.output_text for answer in names] == ["Rex!", "Rex!"]
    third = ask(client, "And yours?", previous_response_id=names[0].id)
    assert third.previous_response_id == names[0].id
    told = ["My dog is called Rex.", "Rex!"]
    assert said(http, first.id) == told
    assert said(http, names[1].id) == [*told, "What is my dog called?", "Rex!"]
    assert said(http, third.id) == [*told, "What is my dog called?", "Rex!", "And yours?", "Rex!"]
    assert [item.content[0].text for item in client.responses.input_items.list(third.id)] == ["And yours?"]  # type: ignore[union-attr]


def test_what_memory_held_is_told_as_cached(client: OpenAI) -> None:
    long = ask(client, "The lighthouse at the cape was painted white. " * 40)
    assert long.usage.input_tokens_details.cached_tokens == 0
    later = ask(client, "Hi", previous_response_id=long.id)
    assert later.usage.input_tokens_details.cached_tokens > 300


def test_a_message_that_does_not_fit_raw_is_folded_as_chat_completions_fold_it() -> None:
    """It was refused."""
    asked: Any = [{"role": "user", "content": "The lighthouse at the cape was painted white. " * 50}]
    engine = scripted_engine(wise, max_position_embeddings=1024)
    with beacon_server(engine) as url, OpenAI(base_url=f"{url}/v1", api_key="none") as client:
        told = ask(client, asked, max_output_tokens=16).usage
        chat = client.chat.completions.create(model=MODEL, messages=asked, user="long", max_tokens=16).usage
    assert chat is not None
    assert chat.prompt_tokens == told.input_tokens > 1024
    written = told.input_tokens_details.cache_write_tokens
    assert written > 1024
    assert chat.prompt_tokens_details.cached_tokens == written  # type: ignore[union-attr]


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.integers(-1, 5), min_size=1, max_size=7), st.integers(0, 6))
def test_whatever_grows_from_whatever_a_response_remembers_its_own_past(
    client: OpenAI, http: httpx.Client, grown: list[int], cut: int
) -> None:
    made: list[tuple[str, list[str]]] = []
    for n, of in enumerate(grown):
        parent = made[of] if 0 <= of < len(made) and of != cut else None
        text = f"Fact {n}. " * 30
        answer = ask(client, text, **({"previous_response_id": parent[0]} if parent else {}))
        made.append((answer.id, [*(parent[1] if parent else []), text, HELLO]))
        if n == cut:  # the others stand without it
            client.responses.delete(answer.id)
    for n, (name, past) in enumerate(made):
        if n != cut:
            assert said(http, name) == past
    if cut < len(made):
        assert http.get(f"/v1/sessions/{made[cut][0]}").status_code == 404


def test_many_go_on_from_one_response_at_once(url: str, client: OpenAI, http: httpx.Client) -> None:
    root = ask(client, "My dog is called Rex. " * 20)

    async def grow() -> list[str]:
        async with AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=60) as many:
            asked = (
                many.responses.create(model=MODEL, input=f"Question {n}?", previous_response_id=root.id)
                for n in range(6)
            )
            return [answer.id for answer in await asyncio.gather(*asked)]

    for n, name in enumerate(asyncio.run(grow())):
        assert said(http, name) == ["My dog is called Rex. " * 20, "Rex!", f"Question {n}?", "Rex!"]


def test_what_is_not_stored_reads_the_past_and_leaves_nothing(client: OpenAI, http: httpx.Client) -> None:
    first = ask(client, "My dog is called Rex.")
    before = http.get("/v1/sessions", params={"limit": 1000}).json()
    for how in ({}, {"previous_response_id": first.id}):
        answer = ask(client, "What is my dog called?", store=False, **how)
        assert answer.output_text == ("Rex!" if how else HELLO)
        assert answer.store is False
        with pytest.raises(NotFoundError):
            client.responses.retrieve(answer.id)
        with pytest.raises(NotFoundError):
            ask(client, "Hi", previous_response_id=answer.id)
    assert http.get("/v1/sessions", params={"limit": 1000}).json() == before


def test_instructions_hold_once_and_system_items_for_what_follows() -> None:
    seen: list[str] = []

    def hears(text: str) -> str:
        seen.append(text)
        return "Yes."

    with beacon_server(scripted_engine(hears)) as url, OpenAI(base_url=f"{url}/v1", api_key="none") as client:
        items: Any = [{"role": "developer", "content": "You are a pirate."}, {"role": "user", "content": "Hi"}]
        first = ask(client, items, instructions="Be brief.")
        ask(client, "And now?", previous_response_id=first.id)
        assert ["Be brief." in text for text in seen] == [True, False]
        assert ["You are a pirate." in text for text in seen] == [True, True]
        told = [item.to_dict() for item in client.responses.input_items.list(first.id, order="asc")]
        assert [(item["role"], item["content"][0]["text"]) for item in told] == [  # type: ignore[index]
            ("system", "You are a pirate."),
            ("user", "Hi"),
        ]


ORDER = [
    "response.created",
    "response.in_progress",
    "response.output_item.added",
    "response.content_part.added",
    "response.output_text.delta",
    "response.output_text.done",
    "response.content_part.done",
    "response.output_item.done",
    "response.completed",
]


def test_a_stream_has_the_typed_events_in_their_order(client: OpenAI, http: httpx.Client) -> None:
    events = list(ask(client, "Hi", stream=True))
    assert [event.sequence_number for event in events] == list(range(len(events)))
    kinds = [event.type for event in events]
    assert list(dict.fromkeys(kinds)) == ORDER
    assert kinds.count("response.output_text.delta") > 5
    assert "".join(event.delta for event in events if event.type == "response.output_text.delta") == HELLO
    whole = events[-1].response
    assert (whole.output_text, whole.id) == (HELLO, events[0].response.id)
    assert {event.item_id for event in events if event.type == "response.output_text.delta"} == {whole.output[0].id}
    again = client.responses.retrieve(whole.id).to_dict()
    assert again == {name: value for name, value in whole.to_dict().items() if name != "beacon"}
    assert said(http, whole.id) == ["Hi", HELLO]


def test_a_client_that_leaves_before_the_end_leaves_nothing() -> None:
    with beacon_server(scripted_engine(lambda seen: "la " * 3000)) as url, httpx.Client(base_url=url) as http:
        body = {"model": MODEL, "input": "Sing.", "stream": True, "max_output_tokens": 3000}
        with http.stream("POST", "/v1/responses", json=body) as stream:
            assert next(stream.iter_lines()) == "event: response.created"
        short = {"model": MODEL, "input": "Sing.", "store": False, "max_output_tokens": 2}
        assert http.post("/v1/responses", json=short).status_code == 200  # the place is free
        assert http.get("/v1/sessions").json()["data"] == []


@pytest.mark.parametrize("stream", [False, True])
def test_functions_are_called_and_their_results_read(client: OpenAI, http: httpx.Client, stream: bool) -> None:
    how: dict[str, Any] = {"model": MODEL, "tools": [WEATHER], "input": "What is the weather in 'Lyon'?"}
    if stream:
        with client.responses.stream(**how) as events:
            kinds = [event.type for event in events]
            answer: Any = events.get_final_response()
        assert kinds == [
            *ORDER[:3],
            "response.function_call_arguments.delta",
            "response.function_call_arguments.done",
            *ORDER[-2:],
        ]
    else:
        answer = client.responses.create(**how)
    (call,) = answer.output
    assert (call.type, call.name, json.loads(call.arguments)) == ("function_call", "weather", {"place": "Lyon"})
    again = client.responses.retrieve(answer.id).output[0].to_dict()
    assert again == {name: value for name, value in call.to_dict().items() if name != "parsed_arguments"}
    result = {"type": "function_call_output", "call_id": call.call_id, "output": "7 degrees"}
    told = ask(client, [result], previous_response_id=answer.id, tools=[WEATHER])
    assert told.output_text == "It was 7."
    roles = [message["role"] for message in http.get(f"/v1/sessions/{told.id}/messages").json()["data"]]
    assert roles == ["user", "assistant", "tool", "assistant"]
    # The same, by a client that keeps the items itself.
    items = [{"role": "user", "content": how["input"]}, json.loads(call.model_dump_json(exclude_none=True)), result]
    for item in items:
        item.pop("parsed_arguments", None)
    assert ask(client, items, store=False, tools=[WEATHER]).output_text == "It was 7."


def test_a_function_can_be_asked_for_and_forbidden(client: OpenAI) -> None:
    other = {**WEATHER, "name": "tide"}
    allowed = {"type": "allowed_tools", "mode": "required", "tools": [{"type": "function", "name": "tide"}]}
    named = {"type": "function", "name": "weather"}
    for choice, name in (("required", "weather"), (named, "weather"), (allowed, "tide")):
        answer = ask(client, "Hi", tools=[WEATHER, other], tool_choice=choice)
        assert [item.name for item in answer.output] == [name]
    assert ask(client, "Hi", tools=[WEATHER], tool_choice="none").output_text == HELLO


class City(BaseModel):
    name: str
    people: int


def test_an_answer_has_the_form_that_is_asked_for(client: OpenAI) -> None:
    asked = "How many live in 'Lyon'? 522250."
    answer = client.responses.parse(model=MODEL, input=asked, text_format=City)
    assert answer.output_parsed == City(name="Lyon", people=522250)
    with client.responses.stream(model=MODEL, input=asked, text_format=City) as events:
        assert events.get_final_response().output_parsed == City(name="Lyon", people=522250)
    free = ask(client, asked, text={"format": {"type": "json_object"}})
    assert isinstance(json.loads(free.output_text), dict)


def test_an_answer_that_is_cut_off_is_incomplete(client: OpenAI) -> None:
    answer = ask(client, "Hi", max_output_tokens=3)
    assert (answer.status, answer.incomplete_details.reason) == ("incomplete", "max_output_tokens")
    assert answer.usage.output_tokens == 3
    assert [event.type for event in ask(client, "Hi", max_output_tokens=3, stream=True)][-1] == "response.incomplete"
    assert client.responses.retrieve(answer.id).status == "incomplete"


async def test_the_asynchronous_client_gets_what_many_ask_at_once(url: str) -> None:
    async with AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=60) as client:

        async def asked(n: int) -> str:
            if n % 2:
                return (await client.responses.create(model=MODEL, input="Hi")).output_text
            async with client.responses.stream(model=MODEL, input="Hi") as events:
                return (await events.get_final_response()).output_text

        assert await asyncio.gather(*map(asked, range(6))) == [HELLO] * 6


def test_a_response_is_forgotten_with_its_session(client: OpenAI, http: httpx.Client) -> None:
    first = ask(client, "My dog is called Rex.")
    later = ask(client, "What is my dog called?", previous_response_id=first.id)
    client.responses.delete(first.id)
    for act in (client.responses.retrieve, client.responses.delete, client.responses.input_items.list):
        with pytest.raises(NotFoundError, match="no response"):
            act(first.id)
    assert http.get(f"/v1/sessions/{first.id}").status_code == 404
    assert ask(client, "And?", previous_response_id=later.id).output_text == "Rex!"


def test_input_items_come_page_by_page_in_either_order(client: OpenAI) -> None:
    items: Any = [{"role": "assistant" if n % 2 else "user", "content": f"Word {n}."} for n in range(7)]
    answer = ask(client, items)
    for order in ("asc", "desc"):
        words = [item.content[0].text for item in client.responses.input_items.list(answer.id, limit=2, order=order)]  # type: ignore
        assert words == [f"Word {n}." for n in (range(7) if order == "asc" else range(6, -1, -1))]
    with pytest.raises(NotFoundError, match="no item"):
        client.responses.input_items.list(answer.id, after="msg_1")


def test_a_session_that_went_on_otherwise_is_gone_back_in(client: OpenAI, http: httpx.Client) -> None:
    first = ask(client, "My dog is called Rex. " * 20)
    more = {"messages": [{"role": "user", "content": "My cat is called Tom. " * 20}]}
    assert http.post(f"/v1/sessions/{first.id}/messages", json=more).status_code == 201
    later = ask(client, "What is my dog called?", previous_response_id=first.id)
    assert said(http, later.id) == ["My dog is called Rex. " * 20, "Rex!", "What is my dog called?", "Rex!"]
    assert client.responses.retrieve(first.id).output_text == "Rex!"


@pytest.mark.parametrize("kind", ["redis", "valkey"])
def test_another_server_over_the_same_store_goes_on(kind: str) -> None:
    with redis_server(kind) as where:
        name = None
        for _ in range(3):
            with (
                beacon_server(scripted_engine(wise, where)) as url,
                OpenAI(base_url=f"{url}/v1", api_key="x") as client,
            ):
                more = {} if name is None else {"previous_response_id": name}
                answer = ask(client, "Say it." if name else "My dog is called Rex.", **more)
                name = answer.id
                assert answer.output_text == "Rex!"
                assert client.responses.retrieve(name).output_text == "Rex!"


def rows_read(engine: BeaconEngine, ask_in_turn: Callable[[OpenAI, str], object]) -> list[int]:
    """How many rows an engine's model computes for each of three turns."""
    read, rows = list[int](), list[int]()
    inner = engine.memory.model.lm.get_input_embeddings()
    inner.register_forward_pre_hook(lambda _, given: read.append(given[0].shape[1]))
    with beacon_server(engine) as url, OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
        for text in ("My dog is called Rex. " * 12, "And again?", "And again?"):
            ask_in_turn(client, text)
            rows.append(sum(read))
            read.clear()
    return rows


def test_a_response_that_goes_on_reads_no_more_than_a_session_would() -> None:
    """What a turn left on the device is found by the next one, though it is another session."""
    last: list[str] = []

    def going_on(client: OpenAI, text: str) -> None:
        last.append(ask(client, text, previous_response_id=last[-1] if last else None).id)

    one, other = scripted_engine(wise), scripted_engine(wise)
    in_one_session = other.session("ada")
    assert rows_read(one, going_on) == rows_read(other, lambda _, text: in_one_session.chat(text))


@given(st.text(min_size=1, max_size=40), st.uuids())
def test_a_response_in_a_conversation_names_it(conversation: str, core: uuid.UUID) -> None:
    name = response_id(core.hex, conversation)
    assert session_of(name) == conversation
    assert session_of(f"{name}=") is None
    assert session_of(response_id(core.hex, None)) == f"resp_{core.hex}"
