"""API keys: each opens one namespace, and no request can name anything of another."""

from __future__ import annotations

import json
import re
import stat
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import httpx
import openai
import pytest
from openai import OpenAI

from beacon_memory.errors import ConfigError, InputError, StoreUnavailable
from beacon_memory.server.keys import Keys
from beacon_memory.server.run import serve
from beacon_memory.stores import StateStore, open_store
from beacon_memory.testing import beacon_server, redis_server, scripted_engine

CHAT = "/v1/chat/completions"


def remembers(seen: str) -> str:
    return " ".join(sorted(set(re.findall(r"secret-[a-z-]+", seen)))) or "nothing"


@pytest.fixture
def keys(tmp_path: Path) -> Keys:
    return Keys(tmp_path / "keys.json")


@pytest.fixture(params=["memory", "sqlite", "redis"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Callable[[str], StateStore]]:
    if request.param == "redis":
        with redis_server() as url:
            yield lambda namespace: open_store(url, namespace=namespace)
        return
    url = "memory://" if request.param == "memory" else f"sqlite:///{tmp_path}/memory.db"
    yield lambda namespace: open_store(url, namespace=namespace)


def client_of(url: str, key: str) -> httpx.Client:
    return httpx.Client(base_url=url, headers={"Authorization": f"Bearer {key}"}, timeout=30)


def test_a_key_is_told_once_and_kept_as_a_hash(keys: Keys) -> None:
    secret = keys.add("acme")
    assert secret not in keys.path.read_text()
    assert stat.S_IMODE(keys.path.stat().st_mode) == 0o600
    assert keys.namespace(secret) == "acme"
    for other in (secret[:-1], secret + "x", "", keys.all()[0].hash, "\ud800"):
        assert keys.namespace(other) is None


def test_keys_are_added_and_revoked_while_others_read_them(keys: Keys) -> None:
    reader = Keys(keys.path)
    first = keys.add("acme")
    assert reader.namespace(first) == "acme"
    second = keys.add("acme")
    keys.revoke(reader.all()[0].id)
    assert (reader.namespace(first), reader.namespace(second)) == (None, "acme")
    with pytest.raises(InputError, match="no key"):
        keys.revoke("nothing")


def test_many_writers_lose_no_key(keys: Keys) -> None:
    with ThreadPoolExecutor(4) as pool:
        secrets = list(pool.map(lambda n: Keys(keys.path).add(f"n{n}"), range(12)))
    assert [keys.namespace(secret) for secret in secrets] == [f"n{n}" for n in range(12)]


@pytest.mark.parametrize("name", ["", "Acme", "a/b", "..", "a.b", "-a", "a" * 64, "a\n", "é"])
def test_a_namespace_is_a_plain_name(keys: Keys, name: str) -> None:
    with pytest.raises(InputError, match="namespace"):
        keys.add(name)
    assert not keys.path.exists()


@pytest.mark.parametrize(
    "body", ["", "[]", "{}", '{"version": 2, "keys": []}', '{"version": 1, "keys": [{"id": "x"}]}', "\x00"]
)
def test_a_file_that_is_no_file_of_keys_opens_nothing(keys: Keys, body: str) -> None:
    keys.path.write_text(body)
    with pytest.raises(StoreUnavailable, match="cannot be used"):
        keys.namespace("sk-beacon-x")
    with pytest.raises(StoreUnavailable, match="cannot be used"):
        keys.add("acme")
    assert keys.path.read_text() == body


def test_without_a_key_nothing_is_told(keys: Keys) -> None:
    keys.add("acme")
    with beacon_server(scripted_engine(remembers), keys=keys, place=_new) as url:
        for path in ("/v1/models", "/v1/sessions", "/v1/contexts", "/v1/sessions/x/export"):
            for header in ({}, {"Authorization": "Basic abc"}, {"Authorization": "Bearer sk-beacon-wrong"}):
                answer = httpx.get(url + path, headers=header)
                assert (answer.status_code, answer.headers["WWW-Authenticate"]) == (401, "Bearer")
        assert httpx.get(f"{url}/health").status_code == httpx.get(f"{url}/ready").status_code == 200
        client = OpenAI(base_url=f"{url}/v1", api_key="wrong", max_retries=0)
        with client, pytest.raises(openai.AuthenticationError):
            client.models.list()


def test_tenants_never_meet(keys: Keys, place: Callable[[str], StateStore]) -> None:
    acme, globex, also = keys.add("acme"), keys.add("globex"), keys.add("acme")
    with ExitStack() as stack:
        url = stack.enter_context(beacon_server(scripted_engine(remembers), keys=keys, place=place))
        one, other, again = (stack.enter_context(client_of(url, key)) for key in (acme, globex, also))

        def ask(http: httpx.Client, text: str) -> str:
            said = {"model": "scripted", "messages": [{"role": "user", "content": text}], "user": "ada"}
            answer = http.post(CHAT, json=said | {"context_id": "house"}).json()
            return str(answer["choices"][0]["message"]["content"])

        for http, word in ((one, "acme"), (other, "globex")):
            text = f"The door is secret-door-{word}. " * 9
            http.put("/v1/contexts/house/documents/door", json={"text": text}).raise_for_status()
        assert ask(one, "I am secret-acme. " * 20) == "secret-acme secret-door-acme"
        assert ask(other, "I am secret-globex.") == "secret-door-globex secret-globex"
        assert ask(again, "And?") == "secret-acme secret-door-acme"

        one.post("/v1/sessions/own/messages", json={"messages": [{"role": "user", "content": "Hi"}]})
        assert [entry["id"] for entry in other.get("/v1/sessions").json()["data"]] == ["ada"]
        theirs = [
            other.get("/v1/sessions/own"),
            other.get("/v1/sessions/own/messages"),
            other.get("/v1/sessions/own/export"),
            other.delete("/v1/sessions/own"),
            other.post("/v1/sessions/own/fork", json={"id": "mine"}),
        ]
        unknown = other.get("/v1/sessions/none")
        for answer in theirs:
            assert answer.status_code == unknown.status_code == 404
            assert answer.json() == json.loads(unknown.text.replace("none", "own"))
        assert one.get("/v1/sessions/own").json()["messages"] == 1


def test_what_one_tenant_has_folded_is_not_found_by_another(keys: Keys) -> None:
    """A text that is folded already would show in `cached_tokens`: who asks would learn that another has read it."""
    acme, globex = keys.add("acme"), keys.add("globex")
    long = "The lighthouse at the cape was painted white. " * 40
    with beacon_server(scripted_engine(remembers), keys=keys, place=_new) as url:
        cached = []
        for key in (acme, acme, globex):
            with client_of(url, key) as http:
                body = {"model": "scripted", "messages": [{"role": "user", "content": long}], "user": f"s{len(cached)}"}
                cached.append(http.post(CHAT, json=body).json()["usage"]["prompt_tokens_details"]["cached_tokens"])
        assert cached[0] == cached[2] == 0
        assert cached[1] > 300


def _new(namespace: str) -> StateStore:
    return open_store("memory://", namespace=namespace)


def test_a_revoked_key_is_refused_at_once(keys: Keys) -> None:
    secret = keys.add("acme")
    with beacon_server(scripted_engine(remembers), keys=keys, place=_new) as url, client_of(url, secret) as http:
        assert http.get("/v1/sessions").status_code == 200
        keys.revoke(keys.all()[0].id)
        assert http.get("/v1/sessions").status_code == 401


def test_keys_that_cannot_be_read_let_nobody_in(keys: Keys) -> None:
    secret = keys.add("acme")
    with beacon_server(scripted_engine(remembers), keys=keys, place=_new) as url, client_of(url, secret) as http:
        keys.path.write_text("{")
        assert http.get("/v1/sessions").status_code == http.get("/ready").status_code == 503


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "example.com", ""])
def test_without_keys_a_server_listens_on_this_machine_alone(host: str) -> None:
    with pytest.raises(ConfigError, match="this machine alone"):
        serve(scripted_engine(remembers), host=host, port=0)
    assert not [thread for thread in threading.enumerate() if thread.name == "beacon-server"]
