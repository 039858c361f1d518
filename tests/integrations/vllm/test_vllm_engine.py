"""Our server with vLLM behind: beside a server that reads the store as the connector does."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from langchain_beacon import ChatBeacon
from llama_index.llms.beacon import BeaconLLM
from openai import APIStatusError, BadRequestError, OpenAI
from stand_in import StandIn, stand_in
from vllm_beacon.asked import Asked
from vllm_beacon.endpoint import Endpoint
from vllm_beacon.engine import VLLMEngine

from beacon_memory import BeaconMemory
from beacon_memory.config import BeaconConfig
from beacon_memory.errors import ConfigError, InputError, ModelError, ModelUnavailable, UnsupportedModel
from beacon_memory.models.finder import finder_by
from beacon_memory.models.model import BeaconModel
from beacon_memory.server.keys import Keys
from beacon_memory.serving.engine import BeaconEngine
from beacon_memory.serving.folding import FoldWorker
from beacon_memory.stores import open_store
from beacon_memory.stores.names import LENT
from beacon_memory.testing import beacon_server, scripted_engine, tiny_model
from beacon_memory.testing.servers import until

LONG = "I live in Lyon, near the river, in a house with a green door. "
NOBODY = "http://127.0.0.1:9"


def knows(seen: str) -> str:
    """What the model says: whether it can see what was said long before."""
    if "weather" in seen.rpartition("user")[2] and "<tools>" in seen and "tool_response" not in seen:
        return '<tool_call>\n{"name": "weather", "arguments": {"city": "Lyon"}}\n</tool_call>'
    return "Rex!" if "called Rex" in seen else "Who?"


class Serving:
    """A server of ours with a stand-in for vLLM behind it."""

    def __init__(self, url: str, vllm: StandIn, memory: BeaconMemory) -> None:
        self.url, self.vllm, self.memory = url, vllm, memory
        self.client = OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=60)

    def say(self, words: str, session: str | None = "ada", **how: Any) -> Any:
        about = {} if session is None else {"extra_headers": {"X-Session-Id": session}}
        asked: list[Any] = [{"role": "user", "content": words}]
        return self.client.chat.completions.create(model="scripted", messages=asked, max_tokens=24, **about, **how)

    @property
    def slots(self) -> list[int]:
        found = [Asked.of(body.get("kv_transfer_params")) for body in self.vllm.asked]
        return [0 if asked is None else asked.slots for asked in found]


@contextmanager
def serving(engine: BeaconEngine, *, fold: bool = False, **how: Any) -> Iterator[Serving]:
    memory = engine.memory
    with ExitStack() as stack:
        vllm = stack.enter_context(stand_in(memory.model, memory.store, salt="salt", **how))
        endpoint = Endpoint(vllm.url)
        stack.callback(endpoint.close)

        def elsewhere(memory: BeaconMemory, namespace: str | None) -> VLLMEngine:
            return VLLMEngine(memory, endpoint, salt="salt", namespace=namespace, fold=fold)

        url = stack.enter_context(beacon_server(engine, elsewhere=elsewhere))
        served = Serving(url, vllm, memory)
        stack.callback(served.client.close)
        yield served


@pytest.fixture
def engine(tmp_path: Path) -> BeaconEngine:
    return scripted_engine(knows, f"sqlite:///{tmp_path}/memory.db")


@pytest.fixture
def served(engine: BeaconEngine) -> Iterator[Serving]:
    with serving(engine) as served:
        yield served


def folded(served: Serving) -> None:
    """What is said is folded, as by a worker of another process."""
    assert FoldWorker(served.memory).run(until_empty=True) > 0


def test_what_is_said_is_remembered_raw_and_folded_off_the_path_of_answers(served: Serving) -> None:
    told = served.say(f"My dog is called Rex. {LONG * 4}")
    assert told.choices[0].message.content == "Rex!"
    session = served.memory.session("ada")
    assert session.info().slots == 0
    folded(served)
    assert session.info().slots > 0
    assert [message["role"] for message in session.messages()] == ["user", "assistant"]
    asked = served.say("What is my dog's name?")
    assert asked.choices[0].message.content == "Rex!"
    assert served.slots == [0, session.info().slots]
    assert asked.usage.prompt_tokens_details.cached_tokens > 0
    assert served.say("What is my dog's name?", session=None).choices[0].message.content == "Who?"


def test_an_answer_comes_in_pieces_and_one_that_is_left_is_not_remembered(served: Serving) -> None:
    pieces = [piece.choices[0].delta.content or "" for piece in served.say("My dog is called Rex.", stream=True)]
    assert "".join(pieces) == "Rex!"
    served.vllm.failing = True
    with pytest.raises(Exception, match="vLLM failed"):
        list(served.say("And now?", stream=True))
    assert served.memory.session("ada").info().messages == 2


def test_tools_and_json_are_held_to_their_form_by_vllm(served: Serving) -> None:
    tool: Any = {
        "type": "function",
        "function": {"name": "weather", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}},
    }
    said = served.client.chat.completions.create(
        model="scripted", messages=[{"role": "user", "content": "How is the weather?"}], tools=[tool], max_tokens=200
    )
    assert said.choices[0].finish_reason == "tool_calls"
    assert said.choices[0].message.tool_calls[0].function.arguments == '{"city": "Lyon"}'  # type: ignore[union-attr,index]
    form: Any = {"type": "json_schema", "json_schema": {"name": "n", "schema": {"type": "integer"}}}
    assert int(served.say("How old?", session=None, response_format=form).choices[0].message.content) is not None
    assert all("%llguidance" in body["structured_outputs"]["grammar"] for body in served.vllm.asked)


def test_what_no_session_in_the_store_names_is_lent_for_one_answer(served: Serving) -> None:
    """Texts of one answer, a list that goes back, and a session that was changed after its prompt was made."""
    said = served.say("Who?", session=None, extra_body={"texts": [f"The dog is called Rex. {LONG * 2}"]})
    assert said.choices[0].message.content == "Rex!"
    assert Asked.of(served.vllm.asked[-1]["kv_transfer_params"]).session.startswith(LENT)  # type: ignore[union-attr]
    served.say(f"My dog is called Rex. {LONG * 8}")
    folded(served)
    changed = served.memory.session("ada")
    served.vllm.before.append(lambda: changed.edit(0, LONG * 8))
    assert served.say("What is my dog's name?").choices[0].message.content == "Rex!"
    assert len(served.vllm.asked) == 4  # the third was refused by the reader
    assert not [name for name in served.memory.store.sessions() if name.startswith(LENT)]


def test_a_prompt_too_long_to_be_read_raw_is_folded_for_its_answer_and_kept(engine: BeaconEngine) -> None:
    with serving(engine, positions=1500) as served:
        said = served.say(f"My dog is called Rex. {LONG * 40}")
        assert said.choices[0].message.content == "Rex!"
        assert served.slots[-1] > 0
        assert served.memory.session("ada").info().slots > 0
        assert httpx.get(f"{served.url}/v1/models").json()["data"][0]["beacon"]["positions"] == 1500
        assert not [name for name in served.memory.store.sessions() if name.startswith(LENT)]


def test_documents_stand_in_front_and_share_their_placeholders(served: Serving) -> None:
    served.memory.context("house").add_text(f"The dog is called Rex. {LONG * 4}", name="house")
    for session in ("ada", "bob"):
        assert served.say("Who?", session, extra_body={"context_id": "house"}).choices[0].message.content == "Rex!"
    first, second = served.vllm.asked
    slots = Asked.of(first["kv_transfer_params"]).slots  # type: ignore[union-attr]
    assert slots > 0
    assert first["prompt"][:slots] == second["prompt"][:slots]


def test_responses_and_bare_completions_are_answered_too(served: Serving) -> None:
    told = served.client.responses.create(model="scripted", input=f"My dog is called Rex. {LONG * 4}")
    folded(served)
    asked = served.client.responses.create(model="scripted", input="My dog's name?", previous_response_id=told.id)
    again = served.client.responses.create(model="scripted", input="And again?", previous_response_id=asked.id)
    assert (asked.output_text, again.output_text) == ("Rex!", "Rex!")
    texts = ["A dog called Rex. Who?", "A cat. Who?"]
    said = served.client.completions.create(model="scripted", prompt=texts, max_tokens=8)
    assert [choice.text for choice in said.choices] == ["Rex!", "Who?"]


def test_langchain_asks_it_by_its_address(served: Serving) -> None:
    llm = ChatBeacon(base_url=served.url, session_id="ada")
    assert llm.invoke(f"My dog is called Rex. {LONG * 4}").text == "Rex!"
    folded(served)
    assert llm.invoke("What is my dog's name?").text == "Rex!"
    assert "".join(str(piece.text) for piece in llm.stream("And its name?")) == "Rex!"


def test_llama_index_asks_it_by_its_address(served: Serving) -> None:
    llm = BeaconLLM(base_url=served.url)
    assert llm.complete("What is the dog's name?").text == "Who?"
    llm = llm.with_context(f"The dog is called Rex. {LONG * 4}", context_id="house")
    assert llm.complete("What is the dog's name?").text == "Rex!"
    assert "".join(piece.delta or "" for piece in llm.stream_complete("Its name?")) == "Rex!"


def test_each_key_has_its_own_store_and_placeholders(tmp_path: Path) -> None:
    keys, store = Keys(tmp_path / "keys.json"), f"sqlite:///{tmp_path}/memory.db"
    secrets = [keys.add("acme"), keys.add("globex")]
    opened = {name: open_store(store, namespace=name) for name in ("acme", "globex")}
    engine = scripted_engine(knows)
    with ExitStack() as stack:
        vllm = stack.enter_context(stand_in(engine.memory.model, open_store(store), place=lambda name: opened[name]))
        endpoint = Endpoint(vllm.url)
        stack.callback(endpoint.close)
        url = stack.enter_context(
            beacon_server(
                engine,
                keys=keys,
                place=lambda name: open_store(store, namespace=name),
                elsewhere=lambda memory, namespace: VLLMEngine(memory, endpoint, namespace=namespace, fold=False),
            )
        )
        for secret in secrets:
            with OpenAI(base_url=f"{url}/v1", api_key=secret, max_retries=0) as client:
                for words in (f"My dog is called Rex. {LONG * 4}", "Who?"):
                    said = client.chat.completions.create(
                        model="scripted", user="ada", max_tokens=8, messages=[{"role": "user", "content": words}]
                    )
                    assert said.choices[0].message.content == "Rex!"
                    for one in opened.values():
                        FoldWorker(BeaconMemory(engine.memory.model, one)).run(until_empty=True)
        for one in opened.values():
            one.close()
    asked = [Asked.of(body.get("kv_transfer_params")) for body in vllm.asked]
    assert [one and (one.namespace, one.session) for one in asked] == [None, ("acme", "ada"), None, ("globex", "ada")]
    slots = asked[1].slots if asked[1] else 0
    assert slots > 0
    assert vllm.asked[1]["prompt"][:slots] != vllm.asked[3]["prompt"][:slots]


def test_a_vllm_that_is_down_is_told_and_nothing_is_remembered(engine: BeaconEngine) -> None:
    with pytest.raises(ModelUnavailable, match="does not answer"):
        Endpoint(NOBODY)
    with pytest.raises(ConfigError, match="named by its URL"):
        Endpoint("localhost:8001")
    with beacon_server(scripted_engine(knows)) as ours, pytest.raises(ModelUnavailable, match="is no vLLM"):
        Endpoint(ours)
    with serving(engine) as served:
        assert httpx.get(f"{served.url}/ready").json()["status"] == "ready"
        served.vllm.stop()
        with pytest.raises(APIStatusError) as failed:
            served.say("My dog is called Rex.")
        assert failed.value.status_code == 503
        assert failed.value.response.json()["error"]["code"] == "model_unavailable"
        assert httpx.get(f"{served.url}/ready").status_code == 503
        assert served.memory.sessions() == []


def test_what_has_no_room_is_refused_before_vllm_is_asked(engine: BeaconEngine) -> None:
    """vLLM was asked all the same, and its refusal had neither the status nor the code that clients look for."""
    with serving(engine, positions=512) as served:
        tool: Any = {"type": "function", "function": {"name": "weather", "description": LONG * 20}}
        for how in ({"max_tokens": 600}, {"tools": [tool]}):
            with pytest.raises(BadRequestError) as failed:
                served.client.chat.completions.create(
                    model="scripted", messages=[{"role": "user", "content": "Hi"}], user="ada", **how
                )
            assert failed.value.code == "context_length_exceeded"
        with pytest.raises(BadRequestError, match="nothing to answer"):
            served.client.completions.create(model="scripted", prompt="")
        assert served.vllm.asked == served.memory.sessions() == []


def test_what_vllm_cannot_do_is_refused(served: Serving) -> None:
    with pytest.raises(BadRequestError, match="without repetition_penalty"):
        served.say("Hi", extra_body={"repetition_penalty": 1.2})
    with pytest.raises(ConfigError, match=r"keep them in SQLite or Redis"), BeaconMemory.open(tiny_model()) as memory:
        VLLMEngine(memory, Endpoint(served.vllm.url))
    assert served.memory.sessions() == []


def test_a_vllm_that_reads_a_folded_window_otherwise_is_refused_at_the_start(
    config: BeaconConfig, model_of: Callable[..., BeaconModel], tmp_path: Path
) -> None:
    with BeaconMemory.open(model_of(config), f"sqlite:///{tmp_path}/memory.db") as memory:
        with stand_in(memory.model, memory.store) as vllm:
            made = VLLMEngine(memory, Endpoint(vllm.url), fold=False)
            made.self_test()
            vllm.bias = 2.0
            with pytest.raises(UnsupportedModel, match="off by"):
                made.self_test()
        with (
            stand_in(memory.model, memory.store, salt="another") as vllm,
            pytest.raises(ModelError, match="vLLM failed"),
        ):
            VLLMEngine(memory, Endpoint(vllm.url), fold=False).self_test()
        assert memory.store.sessions() == []


def test_a_server_folds_in_a_thread_of_its_own_and_sweeps_what_one_that_died_had_lent(
    engine: BeaconEngine, tmp_path: Path
) -> None:
    memory = engine.memory
    memory.session("ada").add("Hello.")
    for name in (f"{LENT}{1000}:old", f"{LENT}{10**11}:new"):
        memory.store.fork("ada", name)
    assert memory.sessions() == ["ada"]
    with pytest.raises(InputError, match="does not begin with 'lent:'"):
        memory.session(f"{LENT}1:mine")
    with serving(engine, fold=True) as served:
        served.say(f"My dog is called Rex. {LONG * 4}")
        until(lambda: memory.session("ada").info().slots, 30)
        assert [name for name in memory.store.sessions() if name.startswith(LENT)] == [f"{LENT}{10**11}:new"]
    assert "beacon-fold" not in [thread.name for thread in threading.enumerate()]


def test_the_command_says_what_goes_with_vllm(command: Callable[..., tuple[int, str, str]]) -> None:
    for options in (["--engine", "vllm"], ["--vllm-url", NOBODY], ["--no-fold"]):
        code, _, err = command("serve", *options)
        assert code != 0
        assert "--vllm-url http://127.0.0.1:8001" in err
    code, _, err = command("serve", "--engine", "vllm", "--vllm-url", NOBODY)
    assert code != 0
    assert f"vLLM at {NOBODY} does not answer" in err


def test_passages_are_read_again_by_words_which_need_no_reading(tmp_path: Path) -> None:
    engine = scripted_engine(knows, f"sqlite:///{tmp_path}/memory.db")
    engine.memory.model.finder = finder_by("words", None)
    with serving(engine) as served:
        served.say(f"My dog is called Rex. {LONG * 8}")
        folded(served)
        said = served.say("How is my dog called?")
        (source, *_) = said.model_extra["beacon"]["sources"]
        assert "called Rex" in source["text"]
