"""The server as a process: the command, a restart in the middle, several over one Redis, how it ends."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from openai import OpenAI

from beacon_memory.server.run import listening_on
from beacon_memory.stores import open_store
from beacon_memory.testing import beacon_server, redis_server, scripted_engine, tiny_checkpoint

COMMAND = [sys.executable, "-m", "beacon_memory.cli"]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoint(tmp_path_factory.mktemp("models") / "tiny", max_position_embeddings=4096)


@contextmanager
def served(*options: str, **environ: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A process that serves, and its URL, which it tells itself."""
    process = subprocess.Popen(
        [*COMMAND, "serve", "--port", "0", *options],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environ},
    )
    assert process.stderr is not None
    try:
        line = next((line for line in process.stderr if " on http" in line), "it never said where")
        assert " on http" in line, line
        yield process, line.rpartition(" on ")[2].strip()
    finally:
        process.terminate()
        process.wait(30)
        process.stderr.close()


def test_a_conversation_goes_on_after_a_restart(checkpoint: Path, tmp_path: Path) -> None:
    options = ("--model", str(checkpoint), "--store", f"sqlite:///{tmp_path}/memory.db")
    talk: list[Any] = [{"role": "user", "content": "The lighthouse at the cape was painted white. " * 40}]
    how: dict[str, Any] = {"model": "tiny", "user": "ada", "max_tokens": 8}
    cached = []
    for _ in range(2):
        with served(*options) as (process, url), OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
            assert process.stderr is not None
            assert "this machine alone" in process.stderr.readline()
            answer = client.chat.completions.create(messages=talk, **how)
            assert answer.usage is not None
            assert answer.usage.prompt_tokens_details is not None
            cached.append(answer.usage.prompt_tokens_details.cached_tokens)
            talk += [{"role": "assistant", "content": answer.choices[0].message.content}]
            talk += [{"role": "user", "content": "And then?"}]
            process.send_signal(signal.SIGTERM)
            assert process.wait(30) in (0, -signal.SIGTERM)
    assert cached[0] == 0
    assert (cached[1] or 0) > 300
    with open_store(f"sqlite:///{tmp_path}/memory.db") as store:
        assert store.sessions() == ["ada"]


def test_keys_are_made_by_the_command_and_open_a_file_each(
    checkpoint: Path, tmp_path: Path, command: Callable[..., tuple[int, str, str]]
) -> None:
    file, store = tmp_path / "keys.json", f"sqlite:///{tmp_path}/memory.db"
    secrets = {name: command("keys", "add", name, "--file", str(file))[1].strip() for name in ("acme", "globex")}
    listed = json.loads(command("keys", "list", "--file", str(file), "--json")[1])
    assert [key["namespace"] for key in listed] == ["acme", "globex"]
    assert "hash" not in listed[0]
    options = ("--model", str(checkpoint), "--name", "mine", "--store", store, "--keys", str(file), "--host", "0.0.0.0")
    with served(*options) as (_, url):
        url = url.replace("0.0.0.0", "127.0.0.1")
        for name, secret in secrets.items():
            said = {"messages": [{"role": "user", "content": f"I am {name}."}]}
            headers = {"Authorization": f"Bearer {secret}"}
            assert httpx.post(f"{url}/v1/sessions/me/messages", json=said, headers=headers).status_code == 201
        assert httpx.get(f"{url}/ready").json()["model"] == "mine"
        assert command("keys", "revoke", listed[0]["id"], "--file", str(file))[0] == 0
        assert (
            httpx.get(f"{url}/v1/sessions", headers={"Authorization": f"Bearer {secrets['acme']}"}).status_code == 401
        )
    assert sorted(path.name for path in tmp_path.glob("*.db")) == ["memory.acme.db", "memory.globex.db"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--host", "0.0.0.0"), "without API keys"),
        (("--keys", "/nowhere/keys.json"), "no file of keys"),
        (("--queue", "0"), "above 0"),
        (("--model", "/nowhere/model"), "/nowhere/model"),
        (("--port", "70000"), "cannot listen"),
        (("--traces", "localhost:4318"), "http://localhost:4318/v1/traces"),
    ],
)
def test_what_cannot_be_served_is_one_line_and_exit_code_2(
    checkpoint: Path, command: Callable[..., tuple[int, str, str]], options: tuple[str, ...], said: str
) -> None:
    given = options if "--model" in options else ("--model", str(checkpoint), *options)
    code, out, err = command("serve", "--store", "memory://", *given)
    assert (code, out) == (2, "")
    assert said in err
    assert "Traceback" not in err


def test_a_server_loads_its_model_where_it_is_said(
    checkpoint: Path, command: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BEACON_DEVICE", "tpu-9")
    for name in ("serve", "mcp"):
        code, _, err = command(name, "--store", "memory://", "--model", str(checkpoint))
        assert code == 2
        assert "this machine has no 'tpu-9'" in err


@pytest.mark.parametrize("kind", ["redis", "valkey"])
def test_two_servers_over_one_redis_serve_the_same_sessions(kind: str) -> None:
    def rex(seen: str) -> str:
        return f"I know {seen.count('called')}."

    with ExitStack() as stack:
        where = stack.enter_context(redis_server(kind))
        one, other = (stack.enter_context(beacon_server(scripted_engine(rex, where))) for _ in range(2))
        answers = []
        for turn in range(6):
            with OpenAI(base_url=f"{(one, other)[turn % 2]}/v1", api_key="none", max_retries=0) as client:
                said: Any = [{"role": "user", "content": f"My {turn}. dog is called Rex. " + "It barks. " * 20}]
                answer = client.chat.completions.create(model="scripted", messages=said, user="ada")
                answers.append(answer.choices[0].message.content)
        assert answers == [f"I know {turn + 1}." for turn in range(6)]
        assert httpx.get(f"{one}/v1/sessions/ada").json() == httpx.get(f"{other}/v1/sessions/ada").json()


def test_each_piece_of_a_stream_is_sent_at_once() -> None:
    """The second one waited 40 ms, until the client had acknowledged the first."""
    with (
        closing(listening_on("127.0.0.1", 0)) as listening,
        socket.create_connection(listening.getsockname()),
        listening.accept()[0] as accepted,
    ):
        assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) == 1
