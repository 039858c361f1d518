"""The tools of the Model Context Protocol, asked by its own client: over HTTP and over a process's pipes."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import threading
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import httpx2
import pytest
from mcp import Client, MCPError, StdioServerParameters
from mcp.client.streamable_http import streamable_http_client

from beacon_memory.models.finder import Finder
from beacon_memory.server.keys import Keys
from beacon_memory.stores import open_store
from beacon_memory.testing import beacon_server, redis_server, scripted_engine, tiny_checkpoint

FACT = "My dog is called Rex. " + " ".join(f"In {year} we moved." for year in range(1990, 2020))
MODES = {"HTTP, today's handshake": "auto", "HTTP, the older one": "legacy"}


def wise(seen: str) -> str:
    return "Rex." if "called Rex" in seen else "I do not know."


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    engine = scripted_engine(wise)
    engine.memory.model.finder = Finder(((1, 0), (0, 1)), (2.0, 1.0), 0.0)  # finds something, whatever is asked
    with beacon_server(engine) as url:
        yield url


@asynccontextmanager
async def connected(url: str, *, key: str | None = None, mode: str = "auto") -> AsyncIterator[Client]:
    headers = {} if key is None else {"Authorization": f"Bearer {key}"}
    async with (
        httpx2.AsyncClient(headers=headers, timeout=60) as http,
        Client(streamable_http_client(f"{url}/mcp", http_client=http), mode=mode) as client,
    ):
        yield client


async def call(client: Client, tool: str, **asked: Any) -> dict[str, Any]:
    result = await client.call_tool(tool, asked)
    assert not result.is_error, result.content
    (text,) = result.content
    assert json.loads(text.text) == result.structured_content  # type: ignore[union-attr]
    return dict(result.structured_content)


async def refused(client: Client, tool: str, **asked: Any) -> str:
    result = await client.call_tool(tool, asked)
    assert result.is_error
    return str(result.content[0].text)  # type: ignore[union-attr]


@pytest.mark.parametrize("mode", MODES.values(), ids=MODES)
async def test_an_agent_remembers_recalls_searches_lists_and_forgets(url: str, mode: str) -> None:
    name = f"s-{uuid.uuid4()}/ü"
    async with connected(url, mode=mode) as client:
        assert "long-term memory" in (client.instructions or "")
        told = await call(client, "remember", session=name, text=FACT)
        assert (told["id"], told["messages"]) == (name, 1)
        await call(client, "remember", session=name, text="Noted.", role="assistant")
        await call(client, "remember", session=name, text="The rent is 900 euros. " * 20, document="lease")
        answer = await call(client, "recall", session=name, question="What is my dog called?")
        assert answer["answer"] == "Rex."
        assert {source["session"] for source in answer["sources"]} == {name}
        assert all(source["text"] in FACT + "The rent is 900 euros. " * 20 for source in answer["sources"])
        found = await call(client, "search", session=name, query="dog", limit=2)
        assert 0 < len(found["data"]) <= 2
        listed = await call(client, "list", session=name)
        assert [one["content"] for one in listed["data"]] == [FACT, "Noted.", "lease"]
        assert [one["place"] for one in (await call(client, "list", session=name, after="0", limit=1))["data"]] == [1]
        assert name in [one["id"] for one in (await call(client, "list", query="s-", limit=1000))["data"]]
        assert (await call(client, "forget", session=name, message="lease"))["documents"] == 0
        assert (await call(client, "forget", session=name, message="1"))["messages"] == 1
        assert (await call(client, "forget", session=name))["deleted"]
        assert name not in [one["id"] for one in (await call(client, "list", query="s-", limit=1000))["data"]]


async def test_tools_say_what_they_take_and_what_they_do(url: str) -> None:
    async with connected(url) as client:
        tools = {tool.name: tool for tool in (await client.list_tools()).tools}
    assert list(tools) == ["remember", "recall", "search", "list", "forget"]
    for tool in tools.values():
        assert len(tool.description or "") > 60
        assert "session" in tool.input_schema["properties"]
        assert all("description" in field for field in tool.input_schema["properties"].values())
        assert tool.annotations is not None
    hints = {name: (tool.annotations.read_only_hint, tool.annotations.destructive_hint) for name, tool in tools.items()}  # type: ignore[union-attr]
    assert {name for name, (reads, _) in hints.items() if reads} == {"recall", "search", "list"}
    assert {name for name, (_, destroys) in hints.items() if destroys} == {"forget"}
    assert tools["forget"].input_schema["required"] == ["session"]  # no memory is forgotten by leaving out its name


async def test_what_is_refused_is_told_to_the_agent(url: str) -> None:
    name = f"s-{uuid.uuid4()}"
    async with connected(url) as client:
        assert "no session" in await refused(client, "recall", session=name, question="What is my dog called?")
        assert "text" in await refused(client, "remember", session=name)
        assert "robot" not in await refused(client, "remember", session=name, text="Hi", role="robot")
        assert "context:" in await refused(client, "remember", session="context:x", text="Hi")
        assert "unrecognized" in await refused(client, "list", session=name, nonsense=1)
        assert "last_place" in await refused(client, "list", session=name, after="x")
        await call(client, "remember", session=name, text="Hi")
        assert "no message" in await refused(client, "forget", session=name, message="7")
        assert "there is no tool" in await refused(client, "dance")


async def test_each_key_opens_its_own_namespace(tmp_path: Path) -> None:
    keys = Keys(tmp_path / "keys.json")
    secrets = [keys.add("acme"), keys.add("globex")]
    engine = scripted_engine(wise, None)
    with beacon_server(engine, keys=keys, place=lambda namespace: open_store("memory://")) as url:
        async with connected(url, key=secrets[0]) as acme, connected(url, key=secrets[1]) as globex:
            await call(acme, "remember", session="ada", text=FACT)
            assert (await call(globex, "list"))["data"] == []
            assert "no session" in await refused(globex, "recall", session="ada", question="What is my dog called?")
            keys.revoke(keys.all()[0].id)
            with pytest.raises(MCPError):
                await acme.call_tool("list", {})
        for headers in ({}, {"Authorization": "Bearer sk-beacon-guessed"}, {"Authorization": f"Bearer {secrets[0]}"}):
            answer = httpx.post(f"{url}/mcp", json={"jsonrpc": "2.0", "id": 1, "method": "tools/list"}, headers=headers)
            assert (answer.status_code, answer.json()["error"]["type"]) == (401, "invalid_request_error")


def test_without_keys_a_web_page_of_elsewhere_is_refused(url: str) -> None:
    body = {"jsonrpc": "2.0", "id": 1, "method": "tools/list"}
    for headers in ({"Origin": "https://evil.example"}, {"Host": "evil.example"}):
        assert httpx.post(f"{url}/mcp", json=body, headers=headers).status_code == 403


async def test_an_agent_that_leaves_frees_its_place() -> None:
    begun, gate = threading.Event(), threading.Event()

    def slow(seen: str) -> str:
        begun.set()
        gate.wait(30)
        return "word " * 200

    with beacon_server(scripted_engine(slow)) as url:
        async with connected(url) as client:
            await call(client, "remember", session="ada", text="Hi")
            asking = asyncio.create_task(client.call_tool("recall", {"session": "ada", "question": "Well?"}))
            await asyncio.to_thread(begun.wait, 30)
            assert httpx.get(f"{url}/ready").json()["waiting"] == 1
            asking.cancel()
            await asyncio.gather(asking, return_exceptions=True)
        gate.set()
        async with asyncio.timeout(20):
            while httpx.get(f"{url}/ready").json()["waiting"]:
                await asyncio.to_thread(begun.wait, 0.05)


async def test_any_of_several_servers_answers_the_next_request() -> None:
    with ExitStack() as stack:
        where = stack.enter_context(redis_server())
        one, other = (stack.enter_context(beacon_server(scripted_engine(wise, where))) for _ in range(2))
        async with connected(one) as first, connected(other) as second:
            await call(first, "remember", session="ada", text=FACT)
            assert (await call(second, "recall", session="ada", question="And my dog?"))["answer"] == "Rex."


async def test_a_process_serves_an_agent_over_its_pipes_and_keeps_what_it_remembers(tmp_path: Path) -> None:
    model = tiny_checkpoint(tmp_path / "tiny", max_position_embeddings=4096)
    options = ["--model", str(model), "--store", f"sqlite:///{tmp_path}/memory.db"]
    environ = {name: os.environ[name] for name in ("PYTHONPATH", "OMP_NUM_THREADS") if name in os.environ}
    process = StdioServerParameters(
        command=sys.executable, args=["-m", "beacon_memory.cli", "mcp", *options], env=environ
    )
    async with Client(process) as client:
        await call(client, "remember", text="I live in Lyon.")
        assert await refused(client, "forget", session="nobody")
        listed = await call(client, "list", session="default")
        assert [one["content"] for one in listed["data"]] == ["I live in Lyon."]
        assert isinstance((await call(client, "recall", question="Where do I live?", max_tokens=8))["answer"], str)
    with open_store(f"sqlite:///{tmp_path}/memory.db") as store:
        assert store.sessions() == ["default"]
