"""The command with `--server`: what it does with a store of this machine, it does with a server's."""

from __future__ import annotations

import json

import pytest

from beacon_memory.server.keys import Keys
from beacon_memory.serving.engine import BeaconEngine
from beacon_memory.stores import open_store
from beacon_memory.testing import beacon_server, scripted_engine, tiny_checkpoint


def knows(seen: str) -> str:
    return "Rex!" if "called Rex" in seen else "Who?"


@pytest.fixture(params=["store", "server"])
def run(request, command, tmp_path, tmp_path_factory, monkeypatch):
    """Run the command over a store of its own, or one of a server; gives its exit code, stdout and stderr."""
    checkpoint = str(tiny_checkpoint(tmp_path_factory.mktemp("model"), max_position_embeddings=4096))
    store = f"sqlite:///{tmp_path}/memory.db"
    monkeypatch.chdir(tmp_path)
    if request.param == "store":
        monkeypatch.setenv("BEACON_MODEL", checkpoint)
        monkeypatch.setenv("BEACON_STORE", store)
        yield command
        return
    with beacon_server(BeaconEngine(checkpoint, store)) as url:
        monkeypatch.setenv("BEACON_SERVER", url)
        yield command


def test_a_session_is_written_asked_forked_exported_and_forgotten(run, tmp_path):
    (tmp_path / "lease.txt").write_text("The lease ends in May. " * 120)
    assert run("add", "alice", "lease.txt")[0] == 0
    assert run("add", "alice", "--role", "user", "I live in Lyon.", "It rains.")[0] == 0
    code, out, _ = run("show", "alice", "--json")
    info = json.loads(out)
    assert (code, info["session"], info["messages"], info["documents"]) == (0, "alice", 3, 1)
    code, out, _ = run("ask", "alice", "Where do I live?", "--max-tokens", "4", "--json")
    assert code == 0
    assert json.loads(out)["sources"] == []
    assert run("chat", "alice", "--max-tokens", "4", stdin="Hello.\n")[0] == 0
    assert json.loads(run("messages", "alice", "--json")[1])[3]["content"] == "Hello."
    assert run("messages", "alice", "-q", "lyon")[1] == "1 user: I live in Lyon.\n"
    assert run("delete", "alice", "2")[0] == 0
    assert run("fork", "alice", "bob")[0] == 0
    assert run("export", "alice", "alice.beacon")[0] == 0
    assert run("forget", "alice")[0] == 0
    assert run("sessions") == (0, "bob\n", "")
    assert run("import", "alice.beacon", "--as", "carol")[0] == 0
    assert run("sessions", "--json")[1] == '["bob", "carol"]\n'
    out = run("show", "carol", "--transcript")[1]
    assert out.startswith("document: lease.txt\nuser: I live in Lyon.\nuser: Hello.\n")


def test_a_folder_is_kept_in_step_and_asked(run, tmp_path):
    (tmp_path / "house").mkdir()
    for name in ("door", "lease"):
        (tmp_path / "house" / name).write_text(f"This is about the {name}. " * 20)
    assert "2 documents; 2 new, 0 changed, 0 gone" in run("sync", "house", "house")[2]
    (tmp_path / "house" / "door").write_text("The door is blue.")
    (tmp_path / "house" / "lease").unlink()
    assert "1 documents; 0 new, 1 changed, 1 gone" in run("sync", "context:house", "house")[2]
    assert run("sessions")[1] == "context:house\n"
    assert run("messages", "context:house")[1].endswith("document: door\n")
    assert run("ask", "context:house", "What colour?", "--max-tokens", "4")[0] == 0
    assert json.loads(run("show", "context:house", "--json")[1])["documents"] == 1
    assert run("forget", "context:house")[0] == 0
    assert run("sessions")[1] == ""


@pytest.mark.parametrize("said", [("ask", "nobody", "Who?"), ("show", "nobody"), ("forget", "nobody")])
def test_a_session_that_is_not_there_is_one_line_and_exit_code_2(run, said):
    code, out, err = run(*said)
    assert (code, out) == (2, "")
    assert "no session 'nobody'" in err
    assert err.count("\n") == 1


def test_a_server_answers_by_its_own_model_and_names_its_passages(command):
    with beacon_server(scripted_engine(knows)) as url:
        assert command("add", "ada", "--role", "user", "My dog is called Rex.", "--server", url)[0] == 0
        assert command("ask", "ada", "Who?", "--server", url, "--sources")[1:] == (
            "Rex!\n",
            "no sources: this model has no finder (beacon-memory fit-finder makes one)\n",
        )
        assert command("search", "ada", "Who?", "--server", url)[0] == 2


@pytest.mark.parametrize(
    "local",
    [("--store", "memory://"), ("--adapter", "none"), ("--anchors", "last"), ("--slot-dtype", "int8")],
    ids=lambda local: local[0],
)
def test_what_is_the_servers_own_is_refused_beside_it(command, local):
    code, _, err = command("add", "ada", "Hi", "--role", "user", "--server", "http://localhost:1", *local)
    assert code == 2
    assert local[0] in err


def test_another_model_than_the_servers_is_refused(command):
    with beacon_server(scripted_engine(knows)) as url:
        code, _, err = command("add", "ada", "Hi there", "--role", "user", "--server", url, "--model", "llama")
    assert code == 2
    assert "answers by 'scripted', not by 'llama'" in err


def test_the_key_comes_from_the_environment(command, tmp_path, monkeypatch):
    keys = Keys(tmp_path / "keys.json")
    secret = keys.add("acme")
    with beacon_server(scripted_engine(knows), keys=keys, place=lambda name: open_store("memory://")) as url:
        code, _, err = command("sessions", "--server", url)
        assert code == 2
        assert "BEACON_API_KEY" in err
        monkeypatch.setenv("BEACON_API_KEY", secret)
        assert command("add", "ada", "--role", "user", "Hi", "--server", url)[0] == 0
        assert command("sessions", "--server", url) == (0, "ada\n", "")


def test_no_server_is_told_in_one_line(command):
    code, out, err = command("sessions", "--server", "http://127.0.0.1:9")
    assert (code, out) == (2, "")
    assert "beacon-memory serve" in err
