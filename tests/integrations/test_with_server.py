"""Both frameworks' classes with a server's address: what they take, what they refuse, copies, keys, errors."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from langchain_beacon import BeaconChatMessageHistory, ChatBeacon
from langchain_beacon import BeaconLLM as TextBeacon
from langchain_core import exceptions as lc
from llama_index.core import Document
from llama_index.core.base.llms.types import ChatMessage
from llama_index.indices.managed.beacon import BeaconIndex
from llama_index.llms.beacon import BeaconLLM
from llama_index.memory.beacon import BeaconMemory, BeaconMemoryBlock
from pydantic import ValidationError
from remembering import remembers, told

from beacon_memory import errors
from beacon_memory.client.engine import RemoteEngine
from beacon_memory.errors import ConfigError, KeyRefused, ServerUnavailable
from beacon_memory.server.keys import Keys
from beacon_memory.server.limits import Limits
from beacon_memory.serving.engine import BeaconEngine
from beacon_memory.stores import open_store
from beacon_memory.testing import beacon_server, scripted_engine

MADE: list[Callable[..., Any]] = [ChatBeacon, TextBeacon, BeaconLLM]
NOBODY = "http://127.0.0.1:9"


def say(llm: Any, words: str, **how: Any) -> str:
    """The answer of a model of either framework."""
    if isinstance(llm, BeaconLLM):
        return str(llm.complete(words, **how).text)
    said = llm.invoke(words, **how)
    return said if isinstance(said, str) else str(said.text)


@pytest.fixture
def url(shared: BeaconEngine) -> Iterator[str]:
    with beacon_server(shared.with_store("memory://")) as url:
        yield url


@pytest.mark.parametrize("made", MADE)
@pytest.mark.parametrize(
    "local",
    [
        {"store": "memory://"},
        {"redis_url": "redis://localhost"},
        {"ttl": 60},
        {"key_prefix": "other"},
        {"adapter": None},
        {"dtype": "float32"},
        {"device_map": "cpu"},
        {"model_kwargs": {"revision": "main"}},
    ],
    ids=lambda local: next(iter(local)),
)
def test_what_is_the_servers_own_is_refused_beside_its_address(made: Any, local: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"has its own {next(iter(local))}"):
        made(base_url=NOBODY, **local)


@pytest.mark.parametrize("made", MADE)
def test_an_engine_and_an_address_are_one_too_many(made: Any, shared: BeaconEngine) -> None:
    with pytest.raises(ValueError, match="engine or base_url"):
        made(base_url=NOBODY, engine=shared)
    with pytest.raises(ValueError, match="engine or base_url"):
        made(base_url=NOBODY, engine=RemoteEngine(NOBODY))
    with pytest.raises(ValueError, match="http://localhost:8000"):
        made(base_url="localhost")


@pytest.mark.parametrize("made", MADE)
def test_making_one_asks_nothing_and_the_first_answer_names_the_model(made: Any, url: str) -> None:
    made(base_url=NOBODY)
    llm = made(base_url=f"{url}/v1")
    assert llm.opened.name is None
    assert say(llm, "Rex1 is here.") == "I know Rex1"
    assert llm.opened.name == "scripted"
    with pytest.raises(ConfigError, match="answers by 'scripted'"):
        say(made(base_url=url, model="llama"), "Hi")


@pytest.mark.parametrize("made", MADE)
def test_copies_and_pickles_ask_the_same_server(made: Any, url: str) -> None:
    llm = made(base_url=url, session_id="ada", max_tokens=60)
    say(llm, "Rex1 is here.")
    for again in (
        copy.deepcopy(llm),
        llm.model_copy(update={"temperature": 0.0}),
        llm.model_copy(update={"timeout": 60.0}),
        pickle.loads(pickle.dumps(llm)),
    ):
        assert say(again, "Who?") == "I know Rex1"
    assert copy.deepcopy(llm).opened is llm.opened
    elsewhere = llm.model_copy(update={"engine": scripted_engine(remembers)})
    assert (elsewhere.base_url, say(elsewhere, "Who?")) == (None, "I know nobody")


@pytest.mark.parametrize("made", MADE)
def test_the_key_opens_its_namespace_and_is_shown_nowhere(
    made: Any, shared: BeaconEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = Keys(tmp_path / "keys.json")
    acme, other = keys.add("acme"), keys.add("other")
    places = {name: open_store("memory://") for name in ("acme", "other")}
    with beacon_server(shared.with_store("memory://"), keys=keys, place=places.__getitem__) as url:
        monkeypatch.setattr(made, "_environ", {})
        with pytest.raises(KeyRefused, match="BEACON_API_KEY"):
            say(made(base_url=url), "Hi")
        llm = made(base_url=url, api_key=acme, session_id="ada")
        assert say(llm, "Rex1 is here.") == "I know Rex1"
        monkeypatch.setattr(made, "_environ", {"BEACON_API_KEY": other})
        assert say(made(base_url=url, session_id="ada"), "Who?") == "I know nobody"
        assert acme not in repr(llm) + str(llm)


def test_errors_are_langchains_and_ours(shared: BeaconEngine) -> None:
    with pytest.raises(lc.ModelConnectionError, match="beacon-memory serve") as none:
        ChatBeacon(base_url=NOBODY, max_retries=0).invoke("Hi")
    assert isinstance(none.value, ServerUnavailable)
    with beacon_server(shared.with_store("memory://"), limits=Limits(waiting=1)) as url:
        busy = ChatBeacon(base_url=url, max_retries=0)
        stream = busy.stream("Rex1 is here. " * 20)
        next(stream)
        with pytest.raises(lc.ModelRateLimitError) as full:
            busy.invoke("Hi")
        stream.close()
    assert isinstance(full.value, errors.EngineBusy)


def test_a_history_and_memories_are_named_by_the_address_alone(url: str) -> None:
    history = BeaconChatMessageHistory("ada", base_url=url)
    history.add_user_message("Rex1 is here.")
    assert say(ChatBeacon(base_url=url), "Who?", session_id="ada") == "I know Rex1"
    memory = BeaconMemory.from_defaults("bob", base_url=url)
    memory.put(ChatMessage("Rex2 is here."))
    llm = BeaconLLM(base_url=url)
    assert llm.chat([*memory.get(), ChatMessage("Who?")]).message.content == "I know Rex2"
    assert told(llm, "bob") == ["Rex2 is here."]
    assert BeaconMemoryBlock(base_url=url).engine.shares(llm.opened)
    with pytest.raises(ConfigError, match="one place"):
        BeaconMemory.from_defaults("bob", base_url=url, store="memory://")


def test_a_memory_of_another_server_is_refused(url: str, shared: BeaconEngine) -> None:
    with beacon_server(shared.with_store("memory://")) as other:
        memory = BeaconMemory.from_defaults("bob", base_url=other)
        memory.put(ChatMessage("Rex2 is here."))
        for reader in (BeaconLLM(base_url=url), BeaconLLM(engine=shared.with_store("memory://"))):
            with pytest.raises(ConfigError, match="make the memory with llm="):
                reader.chat([*memory.get(), ChatMessage("Who?")])


def test_an_index_of_a_server_is_opened_by_whoever_asks_it(url: str) -> None:
    made = BeaconIndex.from_documents(
        [Document(text="Rex1 is here.", id_="one", metadata={"page": 1})],
        llm=BeaconLLM(base_url=url),
        index_id="house",
    )
    assert made.windows_folded == 1
    again = BeaconIndex(index_id="house", llm=BeaconLLM(base_url=url))
    assert [node.metadata for node in again.nodes()] == [{"page": 1}]
    assert str(again.as_query_engine().query("Who?")) == "I know Rex1"
    assert BeaconIndex.index_ids(BeaconLLM(base_url=url)) == ["house"]
    with pytest.raises(ConfigError, match="keeps its sessions itself"):
        BeaconIndex(index_id="house", llm=BeaconLLM(base_url=url), store="memory://")


@pytest.mark.parametrize("made", [ChatBeacon, TextBeacon])
def test_a_word_that_is_none_is_refused_before_anything_is_sent(made: Any) -> None:
    with pytest.raises(ValidationError, match="base_uri"):
        made(base_uri=NOBODY)
    with pytest.raises(ValueError, match="sesion_id"):
        made(base_url=NOBODY).invoke("Hi", sesion_id="ada")


def test_what_the_server_says_of_its_window_is_told(url: str) -> None:
    llm = BeaconLLM(base_url=url)
    assert llm.metadata.context_window == llm.opened.window() > 10_000
    assert llm.metadata.model_name == "scripted"
    assert len(llm.tokenize("Rex1 is here.")) > 3
