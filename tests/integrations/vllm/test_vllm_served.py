"""`beacon-memory serve --engine vllm` over a real vLLM, and clients that no one here wrote (`make test-vllm`)."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from langchain_beacon import ChatBeacon
from llama_index.llms.beacon import BeaconLLM
from openai import OpenAI
from running import ROOT, SALT, RunningVLLM, running_vllm, write_model
from vllm_beacon.endpoint import Endpoint

from beacon_memory import BeaconMemory
from beacon_memory.serving.engine import BeaconEngine
from beacon_memory.stores import open_store
from beacon_memory.stores.names import LENT
from beacon_memory.testing.servers import until

pytestmark = [pytest.mark.vllm, pytest.mark.real_model]

STORY = (ROOT / "examples" / "kjv_stories.txt").read_text()
QUESTION = "Who is Ruth?"


@pytest.fixture(scope="module")
def memory(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BeaconMemory]:
    """Our own engine over the store of all."""
    folder = tmp_path_factory.mktemp("served")
    write_model(folder)
    with BeaconMemory.open("smollm2", store=f"sqlite:///{folder / 'memory.db'}", recall_tokens=0) as memory:
        memory.session("told").add([{"role": "user", "content": STORY[:3500]}])
        memory.context("story").add_text(STORY[:3500], name="story")
        yield memory


@pytest.fixture(scope="module")
def vllm(memory: BeaconMemory, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningVLLM]:
    folder = Path(memory.store._path).parent  # type: ignore[attr-defined]
    with running_vllm(folder, f"sqlite:///{folder / 'memory.db'}") as running:
        running.server(memory).close()
        yield running


@pytest.fixture(scope="module")
def url(vllm: RunningVLLM, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The command, in a process of its own."""
    command = [sys.executable, "-m", "beacon_memory.cli", "serve", "--port", "0", "--engine", "vllm"]
    command += ["--vllm-url", vllm.url, "--store", f"sqlite:///{vllm.log.parent / 'memory.db'}"]
    packages = os.pathsep.join([str(ROOT), str(ROOT / "integrations" / "vllm")])
    environ = os.environ | {"PYTHONPATH": packages, "BEACON_VLLM_SALT": SALT}
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environ) as process:
        assert process.stderr is not None
        try:
            line = process.stderr.readline()
            assert " on http" in line, line + process.stderr.read()
            yield line.rpartition(" on ")[2].strip()
        finally:
            process.terminate()
            process.wait(120)
    assert not [name for name in _sessions(vllm) if name.startswith(LENT)]


def _sessions(vllm: RunningVLLM) -> list[str]:
    with open_store(f"sqlite:///{vllm.log.parent / 'memory.db'}") as store:
        return store.sessions()


@pytest.fixture(scope="module")
def client(url: str) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
        yield client


def say(client: OpenAI, words: str, session: str | None = None, **how: Any) -> Any:
    asked: list[Any] = [{"role": "user", "content": words}]
    headers = {} if session is None else {"X-Session-Id": session}
    how = {"max_tokens": 12, **how}
    return client.chat.completions.create(model="smollm2", messages=asked, extra_headers=headers, **how)


def test_an_answer_is_word_for_word_that_of_our_own_engine_whole_and_in_pieces(
    client: OpenAI, memory: BeaconMemory
) -> None:
    ours = memory.session("told").ask(QUESTION, max_new_tokens=12).strip()
    for session, stream in (("whole", False), ("pieces", True)):
        memory.session("told").fork(session)
        said = say(client, QUESTION, session, stream=stream)
        text = "".join(p.choices[0].delta.content or "" for p in said) if stream else said.choices[0].message.content
        assert text.strip() == ours
        assert [m["content"] for m in memory.session(session).messages()][1:] == [QUESTION, ours]
    assert memory.session("whole").info().slots > 0


def test_what_is_said_is_folded_by_the_server_once_it_is_answered(client: OpenAI, memory: BeaconMemory) -> None:
    assert say(client, STORY[:3000], "long").choices[0].message.content
    until(lambda: memory.session("long").info().slots, 300)
    ours = memory.session("long").ask(QUESTION, max_new_tokens=12).strip()
    said = say(client, QUESTION, "long")
    assert said.choices[0].message.content.strip() == ours
    assert said.usage.prompt_tokens_details.cached_tokens > 500


def test_both_frameworks_ask_it_by_its_address(url: str, memory: BeaconMemory) -> None:
    memory.session("told").fork("langchain")
    ours = memory.session("told").ask(QUESTION, max_new_tokens=12).strip()
    chat = ChatBeacon(base_url=url, session_id="langchain", max_tokens=12)
    assert str(chat.invoke(QUESTION).text).strip() == ours
    here = BeaconEngine(memory.model, memory.store)
    here.memory.recall_tokens = 0
    how: dict[str, Any] = {"context_id": "story", "max_tokens": 12}
    llm, own = BeaconLLM(base_url=url, **how), BeaconLLM(engine=here, **how)
    said = "".join(piece.delta or "" for piece in llm.stream_complete("The woman is called"))
    assert said == own.complete("The woman is called").text == llm.complete("The woman is called").text != ""


def test_tools_and_json_are_held_to_their_form(client: OpenAI) -> None:
    place = {"type": "object", "properties": {"city": {"enum": ["Lyon", "Oslo"]}}, "required": ["city"]}
    tool: Any = {"type": "function", "function": {"name": "weather", "parameters": place}}
    said = say(client, "How is the weather in Lyon?", tools=[tool], tool_choice="required", max_tokens=64)
    (call,) = said.choices[0].message.tool_calls
    assert call.function.arguments in ('{"city": "Lyon"}', '{"city": "Oslo"}')
    form: Any = {"type": "json_schema", "json_schema": {"name": "age", "schema": {"type": "integer"}}}
    assert say(client, "How old is Ruth?", response_format=form).choices[0].message.content.isdecimal()


def test_a_response_is_gone_on_from_and_nothing_stays_lent(client: OpenAI, vllm: RunningVLLM) -> None:
    told = client.responses.create(model="smollm2", input=STORY[:3000], max_output_tokens=4)
    until(lambda: client.get(f"/sessions/{told.id}", cast_to=httpx.Response).json()["slots"], 300)
    asked = client.responses.create(model="smollm2", input=QUESTION, previous_response_id=told.id, max_output_tokens=8)
    assert asked.output_text.strip()
    assert not [name for name in _sessions(vllm) if name.startswith(LENT)]


def test_vllm_is_asked_whether_it_is_there(url: str, vllm: RunningVLLM) -> None:
    assert httpx.get(f"{url}/ready").is_success
    endpoint = Endpoint(vllm.url)
    endpoint.check()
    assert endpoint.positions == 4096
    endpoint.close()
