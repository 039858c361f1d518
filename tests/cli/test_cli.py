"""The command: answers on stdout, talk on stderr, exit code 2 for what cannot work."""

from __future__ import annotations

import json
import sqlite3
import subprocess
import sys

import pytest

from beacon_memory.testing import redis_server, tiny_checkpoint


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tiny_checkpoint(tmp_path_factory.mktemp("model"), max_position_embeddings=4096))


@pytest.fixture
def run(checkpoint, command, tmp_path, monkeypatch):
    """Run the command in this process; gives its exit code, stdout and stderr."""
    monkeypatch.setenv("BEACON_MODEL", checkpoint)
    monkeypatch.setenv("BEACON_STORE", f"sqlite:///{tmp_path}/memory.db")
    monkeypatch.chdir(tmp_path)
    return command


def test_a_session_is_written_asked_forked_exported_and_forgotten(run, tmp_path):
    (tmp_path / "lease.txt").write_text("The lease ends in May. " * 120)
    assert run("add", "alice", "lease.txt")[0] == 0
    assert run("add", "alice", "--role", "user", "I live in Lyon.")[0] == 0
    code, out, _ = run("show", "alice", "--json")
    info = json.loads(out)
    assert code == 0
    assert (info["messages"], info["documents"]) == (2, 1)
    code, out, err = run("ask", "alice", "Where do I live?", "--max-tokens", "4")
    assert (code, err) == (0, "")
    assert out.endswith("\n")
    assert run("fork", "alice", "bob")[0] == 0
    assert run("export", "alice", "alice.beacon")[0] == 0
    assert run("forget", "alice")[0] == 0
    assert run("sessions") == (0, "bob\n", "")
    assert run("import", "alice.beacon", "--as", "carol")[0] == 0
    assert run("sessions", "--json")[1] == '["bob", "carol"]\n'
    code, out, _ = run("show", "carol", "--transcript")
    assert out.startswith("document: lease.txt\nuser: I live in Lyon.\n")


def test_a_model_is_loaded_where_it_is_said(run, monkeypatch):
    monkeypatch.setenv("BEACON_DEVICE", "cpu")
    assert run("add", "alice", "--role", "user", "I live in Lyon.")[0] == 0
    for device, words in (("tpu-9", "tpu-9"), ("cuda:99", "cuda:99")):
        monkeypatch.setenv("BEACON_DEVICE", device)
        code, _, err = run("ask", "alice", "Where do I live?")
        assert code == 2
        assert f"BEACON_DEVICE: this machine has no '{words}'" in err


def test_messages_are_searched_and_one_is_deleted(run):
    for text in ("I live in Lyon.", "My dog is Rex.", "It rains in LYON."):
        assert run("add", "alice", "--role", "user", text)[0] == 0
    assert run("messages", "alice", "-q", "lyon")[1] == "0 user: I live in Lyon.\n2 user: It rains in LYON.\n"
    assert json.loads(run("messages", "alice", "--json")[1])[1] == {
        "place": 1,
        "role": "user",
        "content": "My dog is Rex.",
    }
    assert run("delete", "alice", "1")[0] == 0
    assert run("messages", "alice")[1] == "0 user: I live in Lyon.\n1 user: It rains in LYON.\n"
    assert run("add", "alice", "7 doors are green.")[0] == 0
    assert run("delete", "alice", "²")[0] == 2
    code, _, err = run("delete", "alice", "nobody")
    assert (code, err.count("\n")) == (2, 1)


def test_documents_are_listed_and_deleted_by_their_names_too(run):
    """`messages` and `delete` took every name for a session's."""
    assert run("add", "context:house", "The lease ends in May.", "The rent is 900 euros.")[0] == 0
    assert run("messages", "context:house", "-q", "RENT")[1] == "1 document: The rent is 900 euros.\n"
    assert run("delete", "context:house", "The lease ends in May.")[0] == 0
    assert run("messages", "context:house")[1] == "0 document: The rent is 900 euros.\n"


def test_documents_are_kept_in_step_with_a_folder(run, tmp_path):
    book = tmp_path / "book"
    (book / "deep").mkdir(parents=True)
    for name in ("a.txt", "b.txt", "deep/c.txt"):
        (book / name).write_text(f"This is {name}.")
    (book / "logo.png").write_bytes(b"\x89PNG\0\0")
    code, out, err = run("sync", "house", "book")
    assert (code, out) == (0, "")
    assert err.endswith("context:house: 3 documents; 3 new, 0 changed, 0 gone\n")
    assert "logo.png is binary" in err
    assert run("sync", "house", "book", "--strict")[0] == 2
    (book / "logo.png").unlink()
    (book / "a.txt").write_text("Now it is another.")
    (book / "b.txt").unlink()
    (book / "d.txt").write_text("This is new.")
    assert run("sync", "house", "book", "--keep")[2] == "context:house: 4 documents; 1 new, 1 changed, 0 gone\n"
    assert run("sync", "context:house", "book")[2] == "context:house: 3 documents; 0 new, 0 changed, 1 gone\n"
    assert run("sync", "house", "book")[2] == "context:house: 3 documents; 0 new, 0 changed, 0 gone\n"
    listed = run("messages", "context:house")[1]
    for path in book.rglob("*.txt"):
        path.unlink()
    assert run("sync", "house", "book")[0] == run("sync", "house", "nowhere")[0] == 2
    assert run("messages", "context:house")[1] == listed  # an empty folder, or none, takes nothing out


def test_a_file_or_standard_input_that_holds_a_files_name_is_text(run, tmp_path):
    """What had been read was once taken for a path again."""
    (tmp_path / "secret.txt").write_text("The key is under the mat.")
    (tmp_path / "list.txt").write_text("secret.txt")
    assert run("add", "alice", "list.txt")[0] == 0
    assert run("add", "bob", "-", stdin="secret.txt")[0] == 0
    for session in ("alice", "bob"):
        info = json.loads(run("show", session, "--json")[1])
        assert info["tokens"] < 12, "the name, not the secret"


def test_a_store_is_swept_and_a_session_repaired(run, tmp_path):
    (tmp_path / "lease.txt").write_text("The lease ends in May. " * 120)
    assert run("add", "alice", "lease.txt", "--slot-dtype", "int8")[0] == 0
    assert run("gc") == (0, "", "0 blobs removed\n")
    assert run("repair", "alice") == (0, "", "session alice: nothing to repair\n")
    with sqlite3.connect(tmp_path / "memory.db") as db:
        db.execute("DELETE FROM blobs WHERE length(bytes) = (SELECT max(length(bytes)) FROM blobs)")
    db.close()
    assert run("ask", "alice", "When?")[0] == 2
    code, _, err = run("repair", "alice")
    assert code == 0
    assert err.endswith("folded again\n")
    assert run("ask", "alice", "When?", "--max-tokens", "2")[0] == 0
    assert run("repair", "nobody")[0] == 2


def test_a_key_in_the_environment_signs_a_redis_store(run, monkeypatch):
    with redis_server("valkey") as url:
        monkeypatch.setenv("BEACON_STORE_KEY", "a key of this deployment")
        assert run("add", "alice", "--role", "user", "I live in Lyon.", "--store", url)[0] == 0
        assert run("show", "alice", "--store", url)[0] == 0
        assert run("gc", "--store", f"{url}?ttl=60")[0] == 0
        for key in ("another key of nobody", ""):
            monkeypatch.setenv("BEACON_STORE_KEY", key)
            code, _, err = run("show", "alice", "--store", url)
            assert code == 2
            assert "key" in err


def test_sessions_are_moved_to_another_model(run, monkeypatch, tmp_path):
    for name in ("alice", "bob"):
        assert run("add", name, "--role", "user", "I live in Lyon.")[0] == 0
    monkeypatch.setenv("BEACON_MODEL", str(tiny_checkpoint(tmp_path / "new", seed=5, max_position_embeddings=4096)))
    code, out, err = run("show", "alice", "--transcript")
    assert (code, out) == (2, "user: I live in Lyon.\n")  # the words, and why there is no more
    assert "refold" in err
    assert run("messages", "alice")[1] == "0 user: I live in Lyon.\n"
    for wrong in ((), ("alice", "--all"), ("alice", "nobody")):
        assert run("refold", *wrong)[0] == 2
    assert run("ask", "alice", "Where?")[0] == 2
    code, out, err = run("refold", "alice")
    assert (code, out) == (0, "")
    assert "tokens read again" in err
    assert run("ask", "alice", "Where?", "--max-tokens", "2")[0] == 0
    assert run("ask", "bob", "Where?", "--max-tokens", "2")[0] == 2
    code, _, err = run("refold", "--all", "--from", str(tmp_path / "new"))
    assert code == 0
    assert "alice: nothing to do" in err
    assert run("ask", "bob", "Where?", "--max-tokens", "2")[0] == 0


def test_an_empty_variable_is_unset(run, monkeypatch, tmp_path):
    for name in ("BEACON_STORE", "BEACON_STORE_KEY", "BEACON_STORE_OLD_KEY", "BEACON_STORE_ENCRYPT"):
        monkeypatch.setenv(name, "")
    assert run("add", "alice", "--role", "user", "I live in Lyon.")[0] == 0
    assert (tmp_path / "beacon-memory.db").exists()
    assert run("sessions")[1] == "alice\n"


@pytest.mark.parametrize(
    ("said", "encrypted"), [("1", True), ("true", True), ("YES", True), ("0", False), ("off", False)]
)
def test_a_switch_in_the_environment_says_yes_or_no(run, monkeypatch, tmp_path, said, encrypted):
    """All but "1" was no: BEACON_STORE_ENCRYPT=true wrote plain text."""
    monkeypatch.setenv("BEACON_STORE_KEY", "a key of this deployment")
    monkeypatch.setenv("BEACON_STORE_ENCRYPT", said)
    assert run("add", "alice", "--role", "user", "I live in Lyon.")[0] == 0
    assert (b"I live in Lyon." not in b"".join(path.read_bytes() for path in tmp_path.glob("memory.db*"))) == encrypted


def test_a_switch_that_says_neither_is_refused(run, monkeypatch):
    monkeypatch.setenv("BEACON_STORE_ENCRYPT", "perhaps")
    code, _, err = run("sessions")
    assert code == 2
    assert "BEACON_STORE_ENCRYPT" in err


def test_a_chat_is_remembered_when_it_comes_back(run):
    code, _, err = run("chat", "alice", "--max-tokens", "3", stdin="I live in Lyon.\nAnd I like green.\n\n")
    assert code == 0
    assert "0 messages remembered" in err
    said = [line for line in run("show", "alice", "--transcript")[1].splitlines() if line.startswith("user: ")]
    assert said == ["user: I live in Lyon.", "user: And I like green."]
    again = run("chat", "alice", stdin="")[2]
    assert "0 messages remembered" not in again
    assert "messages remembered" in again


def test_standard_input_is_a_text_too(run):
    assert run("add", "alice", "-", stdin="The lease ends in May.")[0] == 0
    assert run("ask", "alice", "-", "--max-tokens", "2", stdin="When does it end?")[0] == 0


def test_bad_input_is_one_line_and_exit_2_and_writes_nothing(run, tmp_path):
    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "binary.txt").write_bytes(b"\0\1")
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9")
    (tmp_path / "good.txt").write_text("good " * 50)
    bad = [
        ("add", "alice", "empty.txt"),
        ("add", "alice", "good.txt", "binary.txt"),
        ("add", "alice", "latin.txt"),
        ("add", "alice", "nowhere.txt"),
        ("add", "alice", "good.txt", "--ratio", "3"),
        ("add", "alice", "good.txt", "--anchors", "best"),
        ("add", "alice", "--role", "robot", "hi"),
        ("add", "", "good.txt"),
        ("add", "alice", "good.txt", "--model", "./no-model"),
        ("add", "alice", "good.txt", "--adapter", "./no-adapter"),
        ("add", "alice", "good.txt", "--store", "ftp://x"),
        ("add", "alice", "good.txt", "--store", "redis://127.0.0.1:1"),
        ("add", "alice", "good.txt", "--store", "sqlite:////no/such/folder/m.db"),
        ("ask", "nobody", "Who?"),
        ("show", "nobody"),
        ("fork", "nobody", "bob"),
        ("forget", "nobody"),
        ("export", "nobody", "file"),
        ("import", "nowhere.beacon"),
        ("import", "good.txt"),
        ("chat", "alice", "--max-tokens", "0", "--ratio", "7"),
    ]
    for args in bad:
        code, out, err = run(*args)
        assert (code, out) == (2, ""), args
        assert err.startswith("beacon-memory: "), args
        assert err.count("\n") == 1, (args, err)
    assert run("add", "alice", "-", stdin=b"\xff\xfe")[0] == 2
    assert run("sessions") == (0, "", "")


def test_anchors_are_fitted_and_used(run, tmp_path):
    (tmp_path / "book.txt").write_text("The door is green and the lease ends in May. " * 100)
    assert run("fit-anchors", "book.txt", "--out", "adapter", "--tokens", "800")[0] == 0
    assert run("add", "alice", "book.txt", "--adapter", "adapter")[0] == 0
    assert run("ask", "alice", "When?", "--adapter", "adapter", "--max-tokens", "2")[0] == 0
    code, out, err = run("ask", "alice", "When?", "--adapter", "none")
    assert (code, out) == (2, "")
    assert "another adapter" in err


def test_an_adapter_is_trained_resumed_and_used(run, tmp_path):
    (tmp_path / "book.txt").write_text("The door is green and the lease ends in May. " * 100)
    (tmp_path / "talk.jsonl").write_text(
        '{"turns": [{"speaker": "a", "content": "Hi!"}, {"speaker": "b", "content": "Ho."}]}\n'
    )
    how = (
        "--anchors",
        "last",
        "--windows",
        "16,640",
        "--tail",
        "8",
        "--rank",
        "4",
        "--save-every",
        "2",
        "--out",
        "adapter",
    )
    code, out, err = run("train", "book.txt", "talk.jsonl", *how, "--steps", "3")
    assert (code, out) == (0, "")
    assert "1 texts, 1 dialogues" in err
    assert run("train", "book.txt", "talk.jsonl", *how, "--steps", "3")[0] == 2
    assert run("train", "book.txt", "talk.jsonl", *how, "--steps", "4", "--resume")[0] == 0
    assert (tmp_path / "adapter" / "losses.jsonl").read_text().count("\n") == 4
    # Whatever windows it was trained on, a talk is folded in those it was folded in.
    assert json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())["config"]["window"] == 512
    assert run("add", "alice", "book.txt", "--adapter", "adapter")[0] == 0


def test_what_cannot_be_trained_on_is_one_line_and_exit_2(run, tmp_path):
    (tmp_path / "book.txt").write_text("The door is green and the lease ends in May. " * 100)
    (tmp_path / "empty.txt").write_text(" ")
    (tmp_path / "bad.jsonl").write_text('{"messages": [{"role": "user", "content": "Hi"}]}\n{bad\n')
    bad = [
        ("nowhere.txt",),
        ("empty.txt",),
        ("bad.jsonl",),
        ("book.txt", "--windows", "7"),
        ("book.txt", "--windows", "many"),
        ("book.txt", "--question", "1"),
        ("book.txt", "--layout", "interleave", "--anchors", "surprise"),
        ("book.txt", "--schedule", "sideways"),
        ("book.txt", "--steps", "0"),
    ]
    for args in bad:
        code, out, err = run("train", *args, "--out", "adapter")
        assert (code, out) == (2, ""), (args, err)
        assert err.splitlines()[-1].startswith("beacon-memory: "), args
    assert "line 2" in run("train", "bad.jsonl", "--out", "adapter")[2]
    assert not (tmp_path / "adapter").exists()


def test_misuse_is_exit_2(run):
    for args in (("add",), ("fly", "alice"), ("ask", "alice"), ("add", "alice", "x", "--ratio", "four")):
        assert run(*args)[0] == 2


def test_help_imports_no_torch():
    script = "import sys; sys.argv = ['beacon-memory', '--help']\nfrom beacon_memory import cli\n"
    script += (
        "try:\n cli.main()\nexcept SystemExit: pass\nassert not {'torch', 'transformers', 'redis'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", script], check=True, capture_output=True)


def test_importing_the_package_imports_no_torch():
    script = "import sys, beacon_memory; beacon_memory.BeaconConfig; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", script], check=True)


def test_the_exported_names_are_these():
    import beacon_memory

    assert sorted(beacon_memory.__all__) == [
        "BeaconConfig",
        "BeaconError",
        "BeaconMemory",
        "BeaconModel",
        "BeaconState",
        "Document",
        "Documents",
        "Segment",
        "Session",
        "SessionInfo",
        "__version__",
    ]
    assert all(getattr(beacon_memory, name) for name in beacon_memory.__all__)
