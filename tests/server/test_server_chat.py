"""Chat completions with OpenAI's own client: whole, in pieces, with tools, in a given form, and remembered."""

from __future__ import annotations

import asyncio
import json
import uuid
from typing import Any
from urllib.parse import quote

import httpx
import pytest
from openai import AsyncOpenAI, BadRequestError, NotFoundError, OpenAI
from pydantic import BaseModel

MODEL = "scripted"
HELLO = "Hello there, how do you do?"
WEATHER: Any = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather of a place",
        "parameters": {"type": "object", "properties": {"place": {"type": "string"}}, "required": ["place"]},
    },
}


def user(text: str) -> Any:
    return {"role": "user", "content": text}


def said(http: httpx.Client, session: str) -> list[str]:
    return [message["content"] for message in http.get(f"/v1/sessions/{session}/messages").json()["data"]]


@pytest.fixture
def session() -> str:
    return f"s-{uuid.uuid4()}"


def test_the_model_is_listed_under_its_name(client: OpenAI) -> None:
    assert [model.id for model in client.models.list()] == [MODEL]
    assert client.models.retrieve(MODEL).owned_by == "beacon-memory"
    with pytest.raises(NotFoundError, match="not served here"):
        client.models.retrieve("gpt-5")
    with pytest.raises(NotFoundError, match="not served here"):
        client.chat.completions.create(model="gpt-5", messages=[user("Hi")])


def test_an_answer_without_a_session_leaves_nothing(client: OpenAI, http: httpx.Client) -> None:
    before = http.get("/v1/sessions").json()["data"]
    answer = client.chat.completions.create(model=MODEL, messages=[user("Hi")])
    assert (answer.choices[0].message.content, answer.choices[0].finish_reason) == (HELLO, "stop")
    assert answer.usage is not None
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    assert http.get("/v1/sessions").json()["data"] == before


@pytest.mark.parametrize(
    "how",
    [
        lambda id: {"extra_headers": {"X-Session-Id": id}},
        lambda id: {"extra_body": {"session_id": id}},
        lambda id: {"metadata": {"session": id}},
        lambda id: {"metadata": {"session_id": id}},
        lambda id: {"user": id},
        lambda id: {"extra_headers": {"X-Session-Id": id}, "metadata": {"session": "other"}, "user": "another"},
    ],
    ids=["header", "field", "metadata", "metadata session_id", "user", "header first"],
)
def test_a_session_is_named_and_remembers(client: OpenAI, http: httpx.Client, session: str, how: Any) -> None:
    told = client.chat.completions.with_raw_response.create(
        model=MODEL, messages=[user("My dog is called Rex.")], **how(session)
    )
    assert told.headers["X-Session-Id"] == session
    answer = client.chat.completions.create(model=MODEL, messages=[user("What is my dog called?")], **how(session))
    assert answer.choices[0].message.content == "Rex!"
    assert said(http, session) == ["My dog is called Rex.", "Rex!", "What is my dog called?", "Rex!"]


@pytest.mark.parametrize("name", [" ada ", "  ", "ada/Müller", "日本\n", "100% ada", "a%2Fb"])
def test_a_session_of_any_name_is_named_by_the_header_that_a_response_gave(
    client: OpenAI, http: httpx.Client, session: str, name: str
) -> None:
    """A name with a space at its end was written, and then the connection broke; other letters named another session
    when they were sent back.
    """
    name = f"{name}{session}{name}"
    told = http.post("/v1/chat/completions", json={"model": MODEL, "messages": [user("Hi")], "user": name})
    header = {"X-Session-Id": told.headers["X-Session-Id"]}
    client.chat.completions.create(model=MODEL, messages=[user("Hello")], extra_headers=header)
    assert said(http, quote(name, safe="")) == ["Hi", HELLO, "Hello", HELLO]


@pytest.mark.parametrize("sent", ["utf-8", "latin-1"])
def test_a_header_may_name_a_session_in_bare_letters(http: httpx.Client, session: str, sent: str) -> None:
    asked = {"model": MODEL, "messages": [user("Hi")]}
    http.post("/v1/chat/completions", json=asked, headers={"X-Session-Id": f"{session} Müller".encode(sent)})
    assert said(http, f"{session} Müller") == ["Hi", HELLO]


def test_the_whole_list_and_what_is_new_are_the_same_to_a_session(
    client: OpenAI, http: httpx.Client, session: str
) -> None:
    talk = [{"role": "system", "content": "Be brief."}, user("My dog is called Rex.")]
    for question in ("What is my dog called?", "And again?"):
        answer = client.chat.completions.create(model=MODEL, messages=talk, metadata={"session": session})
        talk += [{"role": "assistant", "content": answer.choices[0].message.content}, user(question)]
    client.chat.completions.create(model=MODEL, messages=[user("Only this is new.")], metadata={"session": session})
    assert said(http, session) == [
        "My dog is called Rex.",
        "Rex!",
        "What is my dog called?",
        "Rex!",
        "Only this is new.",
        "Rex!",
    ]


def test_what_memory_held_is_told_as_cached(client: OpenAI, session: str) -> None:
    long = "The lighthouse at the cape was painted white. " * 40
    for turn in range(2):
        answer = client.chat.completions.create(
            model=MODEL, messages=[user(long if not turn else "Hi")], metadata={"session": session}
        )
        assert answer.usage is not None
        assert answer.usage.prompt_tokens_details is not None
        cached = answer.usage.prompt_tokens_details.cached_tokens or 0
        assert (cached > 300) == bool(turn)
        assert cached <= answer.usage.prompt_tokens


def test_a_stream_says_what_the_whole_answer_says(client: OpenAI, http: httpx.Client, session: str) -> None:
    stream = client.chat.completions.create(
        model=MODEL,
        messages=[user("Hi")],
        stream=True,
        stream_options={"include_usage": True},
        metadata={"session": session},
    )
    chunks = list(stream)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == HELLO
    assert chunks[0].choices[0].delta.role == "assistant"
    assert len(chunks) > 5
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-1] == "stop"
    assert chunks[-1].usage is not None
    assert all(chunk.usage is None for chunk in chunks[:-1])
    assert len({chunk.id for chunk in chunks}) == 1
    assert said(http, session) == ["Hi", HELLO]


@pytest.mark.parametrize("stream", [False, True])
def test_tools_are_called_and_their_results_read(
    client: OpenAI, http: httpx.Client, session: str, stream: bool
) -> None:
    how: dict[str, Any] = {"model": MODEL, "tools": [WEATHER], "metadata": {"session": session}}
    talk: list[Any] = [user("What is the weather in 'Lyon'?")]
    if stream:
        with client.chat.completions.stream(messages=talk, **how) as events:
            choice = events.get_final_completion().choices[0]
    else:
        choice = client.chat.completions.create(messages=talk, **how).choices[0]
    assert choice.finish_reason == "tool_calls"
    assert choice.message.tool_calls is not None
    (call,) = choice.message.tool_calls
    assert call.type == "function"
    assert (call.function.name, json.loads(call.function.arguments)) == ("weather", {"place": "Lyon"})
    talk += [
        {"role": "assistant", "content": None, "tool_calls": [call.model_dump(exclude={"index", "parsed_arguments"})]},
        {"role": "tool", "tool_call_id": call.id, "content": "7 degrees"},
    ]
    answer = client.chat.completions.create(messages=talk, **how)
    assert answer.choices[0].message.content == "It was 7."
    roles = [message["role"] for message in http.get(f"/v1/sessions/{session}/messages").json()["data"]]
    assert roles == ["user", "assistant", "tool", "assistant"]


def test_a_tool_can_be_asked_for_and_forbidden(client: OpenAI) -> None:
    how: dict[str, Any] = {"model": MODEL, "messages": [user("Hi")], "tools": [WEATHER]}
    named = {"type": "function", "function": {"name": "weather"}}
    for choice in ("required", named):
        assert client.chat.completions.create(**how, tool_choice=choice).choices[0].finish_reason == "tool_calls"
    assert client.chat.completions.create(**how, tool_choice="none").choices[0].message.content == HELLO
    with pytest.raises(BadRequestError, match="not a bound tool"):
        client.chat.completions.create(**how, tool_choice={"type": "function", "function": {"name": "no"}})


class City(BaseModel):
    name: str
    people: int


def test_an_answer_has_the_form_that_is_asked_for(client: OpenAI) -> None:
    asked = [user("How many live in 'Lyon'? 522250.")]
    parsed = client.chat.completions.parse(model=MODEL, messages=asked, response_format=City)
    assert parsed.choices[0].message.parsed == City(name="Lyon", people=522250)
    free = client.chat.completions.create(model=MODEL, messages=asked, response_format={"type": "json_object"})
    assert isinstance(json.loads(free.choices[0].message.content or ""), dict)
    with client.chat.completions.stream(model=MODEL, messages=asked, response_format=City) as events:
        assert events.get_final_completion().choices[0].message.parsed == City(name="Lyon", people=522250)


async def test_the_asynchronous_client_gets_what_many_ask_at_once(url: str) -> None:
    async with AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=60) as client:

        async def ask(n: int) -> str:
            if n % 2:
                answer = await client.chat.completions.create(model=MODEL, messages=[user("Hi")])
                return answer.choices[0].message.content or ""
            stream = await client.chat.completions.create(model=MODEL, messages=[user("Hi")], stream=True)
            return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

        assert await asyncio.gather(*map(ask, range(8))) == [HELLO] * 8


def test_sampling_is_taken_as_openai_names_it(client: OpenAI) -> None:
    short = client.chat.completions.create(model=MODEL, messages=[user("Hi")], max_tokens=3)
    assert short.choices[0].finish_reason == "length"
    assert short.usage is not None
    assert short.usage.completion_tokens == 3
    newer = client.chat.completions.create(model=MODEL, messages=[user("Hi")], max_completion_tokens=3)
    assert newer.choices[0].message.content == short.choices[0].message.content
    stopped = client.chat.completions.create(
        model=MODEL, messages=[user("Hi")], stop=[", how"], temperature=0.5, seed=1
    )
    assert stopped.choices[0].message.content == "Hello there"


def test_an_edited_past_becomes_a_branch(client: OpenAI, http: httpx.Client, session: str) -> None:
    talk = [user("I live in Lyon."), {"role": "assistant", "content": HELLO}]
    talk += [user("And you?"), {"role": "assistant", "content": HELLO}]  # behind one exchange it may be a greeting
    for question in ("And you?", "Do you like it?"):
        client.chat.completions.create(model=MODEL, messages=[*talk, user(question)], metadata={"session": session})
    assert said(http, session)[-2:] == ["Do you like it?", HELLO]
    (branch,) = http.get(f"/v1/sessions/{session}/branches").json()["data"]
    assert [message["content"] for message in branch["messages"]][-2:] == ["And you?", HELLO]


def test_documents_stand_in_front_by_their_context(client: OpenAI, http: httpx.Client) -> None:
    name = f"c-{uuid.uuid4()}"
    http.put(f"/v1/contexts/{name}/documents/dog", json={"text": "The dog is called Rex."}).raise_for_status()
    answer = client.chat.completions.create(
        model=MODEL, messages=[user("What is the dog called?")], extra_body={"context_id": name}
    )
    assert answer.choices[0].message.content == "Rex!"
    with pytest.raises(BadRequestError, match="no context"):
        client.chat.completions.create(model=MODEL, messages=[user("Hi")], extra_body={"context_id": "nowhere"})
