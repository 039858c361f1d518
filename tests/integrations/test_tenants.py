"""Tenants never meet: one process, one model's weights, the same ids everywhere, and each has a store of its own."""

from __future__ import annotations

import copy
import pickle
import re
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, example, given, settings
from hypothesis import strategies as st
from langchain.agents import create_agent
from langchain_beacon import BeaconChatMessageHistory, BeaconMemoryMiddleware, ChatBeacon
from langchain_core.runnables import ConfigurableField, Runnable, RunnableLambda
from langgraph.checkpoint.memory import InMemorySaver
from llama_index.core import Document
from llama_index.core.llms import ChatMessage
from llama_index.indices.managed.beacon import BeaconIndex
from llama_index.llms.beacon import BeaconLLM
from llama_index.memory.beacon import BeaconMemory
from remembering import cfg

from beacon_memory.errors import ConfigError, InputError
from beacon_memory.serving.engine import BeaconEngine
from beacon_memory.stores.memory import MemoryStore

# Not shrunk: a case is short as it is, and takes seconds.
ENDS = settings(
    deadline=None,
    phases=(Phase.explicit, Phase.generate),
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)

# How a tenant's model is made of the model of the tenant before. Each may carry the other's store along by mistake.


def engine_given(before: ChatBeacon, place: Any, shared: BeaconEngine) -> Runnable:
    return ChatBeacon(engine=shared.with_store(place), max_tokens=60)


def store_beside_engine(before: ChatBeacon, place: Any, shared: BeaconEngine) -> Runnable:
    return ChatBeacon(engine=before.engine, store=place, max_tokens=60)


def copied_by_name(before: ChatBeacon, place: Any, shared: BeaconEngine) -> Runnable:
    return before.model_copy(update={"store": place})


def copied_with_engine(before: ChatBeacon, place: Any, shared: BeaconEngine) -> Runnable:
    return before.model_copy(update={"engine": shared.with_store(place)})


def name_assigned(before: ChatBeacon, place: Any, shared: BeaconEngine) -> Runnable:
    llm = copy.deepcopy(before)
    llm.store = place
    return llm


def engine_assigned(before: ChatBeacon, place: Any, shared: BeaconEngine) -> Runnable:
    llm = copy.copy(before)
    llm.engine = shared.with_store(place)
    return llm


def configured(before: ChatBeacon, place: Any, shared: BeaconEngine) -> Runnable:
    model = before.model_copy(update={"store": place})
    return model.configurable_fields(temperature=ConfigurableField("heat")).with_config(configurable={"heat": 0.0})


def fallen_back(before: ChatBeacon, place: Any, shared: BeaconEngine) -> Runnable:
    def fail(_: Any) -> str:
        raise InputError("no answer")

    return RunnableLambda(fail).with_fallbacks([engine_given(before, place, shared)])


def bound(before: ChatBeacon, place: Any, shared: BeaconEngine) -> Runnable:
    return before.model_copy(update={"store": place}).bind(top_k=50).with_retry()


WAYS: dict[str, Callable[[ChatBeacon, Any, BeaconEngine], Runnable]] = {
    f.__name__: f
    for f in (
        engine_given,
        store_beside_engine,
        copied_by_name,
        copied_with_engine,
        name_assigned,
        engine_assigned,
        configured,
        fallen_back,
        bound,
    )
}


def model_of(runnable: Any) -> ChatBeacon:
    """The model within a runnable."""
    while not isinstance(runnable, ChatBeacon):
        runnable = (
            runnable.fallbacks[0]
            if hasattr(runnable, "fallbacks")
            else getattr(runnable, "bound", None) or runnable.default
        )
    return runnable


NAMES = ("ada", "house", "context:house", "branch:1", "t1", "context:ada", "context:")


class Tenant:
    """One tenant's models, and what should be known in each of its sessions."""

    def __init__(self, number: int, runnable: Runnable, middleware: BeaconMemoryMiddleware) -> None:
        self.number, self.runnable = number, runnable
        self.llm = model_of(runnable)
        self.engine = self.llm.opened
        self.llama = BeaconLLM(engine=self.engine, max_new_tokens=60)
        self.agent = create_agent(self.llm, [], middleware=[middleware], checkpointer=InMemorySaver())
        self.said: defaultdict[str, set[int]] = defaultdict(set)
        self.read: defaultdict[str, set[int]] = defaultdict(set)
        self.count = 0

    def fact(self) -> tuple[int, str]:
        """What only this tenant says."""
        self.count += 1
        number = 1000 * (self.number + 1) + self.count
        return number, f"Rex{number} is here."

    # Each gives the session or thread it was said in, what is in front of it, and the answer.

    def invoke(self, name: str) -> tuple[str, set[int], str]:
        number, words = self.fact()
        answer = self.runnable.invoke(words, cfg(session_id=name)).text
        self.said[name].add(number)
        return name, set(), answer

    def stream(self, name: str) -> tuple[str, set[int], str]:
        number, words = self.fact()
        answer = "".join(chunk.text for chunk in self.runnable.stream(words, cfg(session_id=name)))
        self.said[name].add(number)
        return name, set(), answer

    def complete(self, name: str) -> tuple[str, set[int], str]:
        number, words = self.fact()
        answer = self.llama.complete(words, session_id=name).text
        self.said[name].add(number)
        return name, set(), answer

    def remember(self, name: str) -> tuple[str, set[int], str]:
        number, words = self.fact()
        memory = BeaconMemory.from_defaults(session_id=name, llm=self.llama)
        memory.put(ChatMessage(words))
        self.said[name].add(number)
        return name, set(), self.llama.chat(memory.get()).message.content or ""

    def note(self, name: str) -> tuple[str, set[int], str]:
        number, words = self.fact()
        BeaconChatMessageHistory(name, engine=self.engine).add_user_message(words)
        self.said[name].add(number)
        return name, set(), self.runnable.invoke("Who?", cfg(session_id=name)).text

    def agree(self, name: str) -> tuple[str, set[int], str]:
        number, words = self.fact()
        answer = self.agent.invoke({"messages": [("human", words)]}, cfg(thread_id=f"thread-{name}"))["messages"][-1]
        self.said[f"thread-{name}"].add(number)
        return f"thread-{name}", set(), answer.text

    def context(self, name: str) -> tuple[str, set[int], str]:
        number, words = self.fact()
        reader = self.llm.with_context(words, context_id=f"read-{name}")
        self.read[f"read-{name}"] = {number}  # text without a name is known by its place
        return "", self.read[f"read-{name}"], reader.invoke("Who?", session_id=None).text

    def index(self, name: str) -> tuple[str, set[int], str]:
        number, words = self.fact()
        index = BeaconIndex.from_documents([Document(text=words, id_="one")], llm=self.llama, index_id=name)
        self.read[name] = {number}
        return "", {number}, str(index.as_query_engine().query("Who?"))

    def forget(self, name: str) -> tuple[str, set[int], str]:
        self.llm.delete_thread(name)
        self.said.pop(name, None)
        return name, set(), ""


ACTS = ("invoke", "stream", "complete", "remember", "note", "agree", "context", "index", "forget")
PLACES = ("memory://", "object", "sqlite")
STEP = st.tuples(st.integers(0, 2), st.sampled_from(ACTS), st.sampled_from(NAMES))


def check(shared: BeaconEngine, folder: Path, ways: list[tuple[str, str]], steps: list[tuple[int, str, str]]) -> None:
    middleware = BeaconMemoryMiddleware(trigger=("messages", 1), keep=("messages", 1))
    tenants: list[Tenant] = []
    before = ChatBeacon(engine=shared.with_store("memory://"), max_tokens=60)
    for number, (way, kind) in enumerate(ways):
        place = {"object": MemoryStore(), "sqlite": f"sqlite:///{folder}/{number}.db"}.get(kind, "memory://")
        tenants.append(Tenant(number, WAYS[way](before, place, shared), middleware))
        before = tenants[-1].llm
    for who, act, name in steps:
        tenant = tenants[who % len(tenants)]
        try:
            where, front, answer = getattr(tenant, act)(name)
        except InputError:
            assert name.startswith(("context:", "branch:")), (act, name)  # nobody's session is called so
            continue
        if answer:
            known = {int(found) for found in re.findall(r"Rex(\d+)", answer)}
            assert known == tenant.said[where] | front, (tenant.number, act, name)
    for tenant in tenants:
        memory, found = tenant.engine.memory, ""
        for name in memory.store.sessions():
            found += str(memory.messages(memory.load(name)[0]))
        # An agent's newest message is in its graph alone.
        own = set().union(*(said for name, said in tenant.said.items() if not name.startswith("thread-")))
        told = {int(number) for number in re.findall(r"Rex(\d+)", found)}
        assert {number // 1000 for number in told} <= {tenant.number + 1}
        assert own <= told
        tenant.engine.close()


TENANTS = st.lists(st.tuples(st.sampled_from(sorted(WAYS)), st.sampled_from(PLACES)), min_size=2, max_size=3)


ANEW = [("store_beside_engine", "memory://")] * 2  # memory:// beside an engine that has one of its own


@settings(ENDS, max_examples=10)
@given(ways=TENANTS, steps=st.lists(STEP, min_size=3, max_size=8))
@example(ways=ANEW, steps=[(0, "stream", "t1"), (1, "invoke", "t1"), (0, "remember", "ada")])
def test_tenants_never_meet(shared, tmp_path_factory, ways, steps):
    check(shared, tmp_path_factory.mktemp("tenants"), ways, steps)


@pytest.mark.long
@settings(ENDS, max_examples=1000)
@given(ways=TENANTS, steps=st.lists(STEP, min_size=3, max_size=8))
def test_two_thousand_tenants_never_meet(shared, tmp_path_factory, ways, steps):
    check(shared, tmp_path_factory.mktemp("tenants"), ways, steps)


def saying(llm: Any, words: str) -> str:
    return str(llm.invoke(words, session_id="ada").text)


def test_a_store_named_in_a_config_is_the_one_that_is_written(shared, tmp_path):
    """The model was made anew with the name, over the engine of the old one."""
    one, two = (f"sqlite:///{tmp_path}/{name}.db" for name in "ab")
    llm = ChatBeacon(engine=shared, store=one, max_tokens=60)
    named = llm.configurable_fields(store=ConfigurableField("place"))
    here, there = cfg(session_id="ada", place=one), cfg(session_id="ada", place=two)
    assert named.invoke("Rex1 is here.", here).text == "I know Rex1"
    assert named.invoke("Rex2 is here.", there).text == "I know Rex2"
    assert named.invoke("Who?", there).text == "I know Rex2"
    assert named.invoke("Who?", cfg(session_id="ada")).text == "I know Rex1"


def test_a_copy_has_the_same_store_unless_another_is_named(shared):
    llm = ChatBeacon(engine=shared, store="memory://", max_tokens=60)
    saying(llm, "Rex1 is here.")
    for other in (llm.model_copy(), copy.copy(llm), copy.deepcopy(llm), llm.model_copy(update={"top_k": 3}, deep=True)):
        assert other.opened is llm.opened
    configured = llm.configurable_fields(temperature=ConfigurableField("heat"))
    assert configured.invoke("Who?", cfg(session_id="ada", heat=0.0)).text == "I know Rex1"
    for other in (
        llm.model_copy(update={"store": "memory://"}),
        ChatBeacon(engine=shared, store="memory://"),
        ChatBeacon(engine=llm.engine, store="memory://"),
    ):
        assert saying(other, "Who?") == "I know nobody"
    beside = BeaconLLM(engine=llm.engine, store="memory://", max_new_tokens=60)
    assert beside.complete("Who?", session_id="ada").text == "I know nobody"
    assert ChatBeacon(engine=llm.engine, store=llm.store).opened is llm.opened
    llama = BeaconLLM(engine=llm.engine, max_new_tokens=60)
    assert llama.model_copy(update={"budget": 200}).complete("Who?", session_id="ada").text == "I know Rex1"
    llama.store = MemoryStore()
    assert llama.complete("Who?", session_id="ada").text == "I know nobody"


def test_a_connection_is_shared_by_deep_copies(shared):
    """A lock within it could not be copied."""
    for llm in (ChatBeacon(engine=shared, store=MemoryStore()), BeaconLLM(engine=shared, store=MemoryStore())):
        for other in (copy.deepcopy(llm), llm.model_copy(deep=True)):
            assert other.store is llm.store
            assert other.opened is llm.opened


def test_a_pickled_model_is_over_the_store_that_it_names_or_is_refused(shared, tmp_path):
    url = f"sqlite:///{tmp_path}/memory.db"
    again = pickle.loads(pickle.dumps(ChatBeacon(model="not/there", store=url)))
    assert again.store == url
    assert again.opened.keeps_sessions
    with pytest.raises(ConfigError, match="name it by store="):
        pickle.dumps(ChatBeacon(engine=shared.with_store(MemoryStore())))


def test_a_prefix_of_no_place_is_refused(shared):
    """It was not looked at: two tenants told apart by their prefix alone shared the engine's store."""
    for make in (ChatBeacon, BeaconLLM):
        with pytest.raises(ValueError, match="redis_url="):  # LangChain's constructors raise pydantic's
            make(engine=shared.with_store("memory://"), key_prefix="tenant-b")
        llm = make(model="not/there", redis_url="redis://localhost:1", key_prefix="tenant-a")
        assert llm.model_copy(update={"key_prefix": "tenant-b"}).opened is not llm.opened
        assert make(engine=llm.engine, key_prefix="tenant-b").opened.place.key_prefix == "tenant-b"
        with pytest.raises(ConfigError, match="one place"):
            llm.store = "memory://"
        assert llm.store is None


def test_the_store_in_the_environment_is_kept_by_copies(monkeypatch):
    monkeypatch.setenv("BEACON_REDIS_URL", "redis://localhost:1")
    llm = ChatBeacon(model="not/there")
    monkeypatch.setenv("BEACON_REDIS_URL", "redis://localhost:2")
    assert llm.model_copy(update={"key_prefix": "b"}).opened.place.redis_url == "redis://localhost:1"
    assert ChatBeacon(engine=llm.engine).opened is llm.opened


def test_one_middleware_of_two_tenants_writes_into_the_store_of_each(shared):
    middleware = BeaconMemoryMiddleware(trigger=("messages", 1), keep=("messages", 1))
    models = [ChatBeacon(engine=shared.with_store("memory://"), max_tokens=60) for _ in range(2)]
    for n, llm in enumerate(models):
        agent = create_agent(llm, [], middleware=[middleware], checkpointer=InMemorySaver())
        for words in (f"Rex{n} is here.", "Who?"):
            said = agent.invoke({"messages": [("human", words)]}, cfg(thread_id=f"t{n}"))["messages"][-1]
        assert said.text == f"I know Rex{n}"
    assert [llm.opened.memory.sessions() for llm in models] == [["t0"], ["t1"]]
    with pytest.raises(ConfigError, match="several models"):
        middleware.delete_thread("t0")


def test_one_middleware_with_a_store_keeps_it_whichever_model_comes(shared):
    """It was opened anew, and so empty, each time another model of the agent's came."""
    middleware = BeaconMemoryMiddleware(trigger=("messages", 1), keep=("messages", 1), store="memory://")
    models = [ChatBeacon(engine=shared.with_store("memory://"), max_tokens=60) for _ in range(2)]
    agents = [create_agent(m, [], middleware=[middleware], checkpointer=InMemorySaver()) for m in models]
    for n in (0, 1, 0):
        agents[n].invoke({"messages": [("human", "Hi"), ("ai", "Ho"), ("human", "Who?")]}, cfg(thread_id=f"t{n}"))
    assert [llm.opened.memory.sessions() for llm in models] == [[], []]
    assert middleware._threads().opened.memory.sessions() == ["t0", "t1"]
    middleware.delete_thread("t0")
    assert middleware._threads().opened.memory.sessions() == ["t1"]


@pytest.mark.parametrize("name", ["context:house", "context:", "branch:1"])
def test_no_session_of_a_users_has_the_name_of_documents(shared, name):
    """Who was called so read an index, wrote into it, and deleted it."""
    llm = ChatBeacon(engine=shared.with_store("memory://"), max_tokens=60)
    llama = BeaconLLM(engine=llm.engine, max_new_tokens=60)
    index = BeaconIndex.from_documents([Document(text="Rex1 is here.")], llm=llama, index_id="house")
    saying(llm, "Hi")
    for act in (
        lambda: llm.bind(session_id=name).invoke("Who?"),
        lambda: llm.invoke("Who?", cfg(session_id=name)),
        lambda: llama.complete("Who?", session_id=name),
        lambda: BeaconMemory.from_defaults(session_id=name, llm=llama).put(ChatMessage("Hi")),
        lambda: BeaconMemory.from_defaults(session_id=name, llm=llama).reset(),
        lambda: BeaconChatMessageHistory(name, engine=llm.engine).add_user_message("Hi"),
        lambda: BeaconChatMessageHistory(name, engine=llm.engine).clear(),
        lambda: index.as_chat_engine(session_id=name).chat("Who?"),
        lambda: llm.copy_thread("ada", name),
        lambda: llm.copy_thread(name, "bob"),
    ):
        with pytest.raises(InputError):
            act()
    llm.delete_thread(name)  # no thread is called so: there is nothing to forget
    assert str(index.as_query_engine().query("Who?")) == "I know Rex1"
    assert llm.opened.memory.sessions() == ["ada"]
    assert llm.opened.memory.contexts() == ["house"]
