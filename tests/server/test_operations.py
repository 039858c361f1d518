"""What an operator sees: metrics, and logs in which no one's words are."""

from __future__ import annotations

import io
import json
import logging
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from http.client import HTTPConnection
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families
from starlette.testclient import TestClient

from beacon_memory.server.app import make_app
from beacon_memory.server.keys import Keys
from beacon_memory.server.limits import Limits
from beacon_memory.server.operations.logs import JsonLines, write_json
from beacon_memory.server.operations.metrics import Metrics
from beacon_memory.server.operations.timed import TimedStore
from beacon_memory.stores import StateStore, open_store
from beacon_memory.stores.memory import MemoryStore
from beacon_memory.testing import StoreContract, beacon_server, scripted_engine, tiny_checkpoint

ROOT = Path(__file__).parents[2]
SECRET = "quicksilver"


class TestTimedStore(StoreContract):
    """A store that is timed keeps the store's contract."""

    @pytest.fixture
    def store(self) -> Iterator[StateStore]:
        with TimedStore(MemoryStore(), Metrics()) as store:
            yield store


def read(url: str, **options: Any) -> dict[tuple[str, tuple[str, ...]], float]:
    """Every sample by its name and its labels' values."""
    answer = httpx.get(f"{url}/metrics", **options)
    assert answer.status_code == 200, answer.text
    families = text_string_to_metric_families(answer.text)
    return {
        (sample.name, tuple(value for _, value in sorted(sample.labels.items()))): sample.value
        for family in families
        for sample in family.samples
    }


def read_until(url: str, name: str, labels: tuple[str, ...], value: float) -> dict[tuple[str, tuple[str, ...]], float]:
    """The same, once a sample has a value: what is counted may be so after the client has its answer."""
    for _ in range(500):
        if (counted := read(url)).get((name, labels)) == value:
            return counted
    raise AssertionError(f"{name}: {counted.get((name, labels))}, not {value}")


def test_what_is_read_folded_and_answered_is_counted() -> None:
    with beacon_server(scripted_engine(lambda seen: "Hello there!")) as url, httpx.Client(base_url=url) as http:
        before = read(url)
        assert before["beacon_folded_tokens_total", ()] == 0
        said = {"role": "user", "content": f"I like {SECRET}. " * 40}
        http.post(f"/v1/sessions/{SECRET}/messages", json={"messages": [said]}).raise_for_status()
        info = http.get(f"/v1/sessions/{SECRET}").json()
        counted = read(url)
        assert counted["beacon_folded_tokens_total", ()] == info["tokens"] - info["tail"]
        assert counted["beacon_folded_slots_total", ()] == info["slots"]
        assert counted["beacon_folded_bytes_total", ()] > info["slots"]
        asked = {"model": "scripted", "session_id": SECRET, "messages": [{"role": "user", "content": "Hi"}]}
        usage = http.post("/v1/chat/completions", json=asked).json()["usage"]
        with http.stream("POST", "/v1/chat/completions", json={**asked, "stream": True}) as stream:
            stream.read()
        counted = read_until(url, "beacon_requests_total", ("POST", "/v1/chat/completions", "200"), 2)
        assert counted["beacon_answer_tokens_total", ()] == 2 * usage["completion_tokens"]
        assert counted["beacon_prompt_tokens_total", ()] > 2 * usage["prompt_tokens"]
        assert counted["beacon_prompt_tokens_held_total", ()] > usage["prompt_tokens_details"]["cached_tokens"]
        assert counted["beacon_requests_total", ("POST", "/v1/sessions/{session}/messages", "201")] == 1
        assert counted["beacon_first_byte_seconds_count", ("/v1/chat/completions",)] == 2
        assert counted["beacon_store_seconds_count", ("commit",)] == 3
        assert counted["beacon_store_seconds_sum", ("commit",)] > 0
        assert counted["beacon_cache_hits_total", ("segments",)] > 0
        assert counted["beacon_cache_bytes", ("segments",)] > 0
        queue = ("beacon_busy", "beacon_busy_most", "beacon_waiting", "beacon_answers")
        assert [counted[name, ()] for name in queue] == [0, 64, 0, 0]
        assert http.get("/v1/sessions/nobody").status_code == 404
        assert read(url)["beacon_store_errors_total", ("SessionNotFound", "load")] >= 1
        assert SECRET not in http.get("/metrics").text


def test_an_answer_that_an_agent_recalls_is_counted() -> None:
    with beacon_server(scripted_engine(lambda seen: "Hello there!")) as url, httpx.Client(base_url=url) as http:
        said = {"role": "user", "content": "I like tea. " * 40}
        http.post("/v1/sessions/ada/messages", json={"messages": [said]}).raise_for_status()
        before = read(url)
        call = {"name": "recall", "arguments": {"session": "ada", "question": "What do I like?"}}
        request = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": call}
        accept = {"Accept": "application/json, text/event-stream"}
        http.post("/mcp", json=request, headers=accept).raise_for_status()
        counted = read(url)
        assert counted["beacon_answer_tokens_total", ()] > before["beacon_answer_tokens_total", ()]
        folded = counted["beacon_folded_tokens_total", ()]
        assert counted["beacon_prompt_tokens_held_total", ()] - before["beacon_prompt_tokens_held_total", ()] == folded


def test_answers_that_are_made_together_are_counted_by_pass() -> None:
    engine = scripted_engine(lambda seen: "word " * 20)
    asked = {"model": "scripted", "messages": [{"role": "user", "content": "Talk"}]}
    with beacon_server(engine) as url:
        httpx.post(f"{url}/v1/chat/completions", json=asked, timeout=60).raise_for_status()
        alone = read(url)
        passes = alone["beacon_pass_answers_count", ()]
        assert passes >= alone["beacon_answer_tokens_total", ()] > 20
        assert alone["beacon_pass_answers_sum", ()] == alone["beacon_pass_answers_bucket", ("1.0",)] == passes
        model = engine.memory.model
        answers = model.answers([model.encode("Talk")] * 3, max_new_tokens=8)
        counted = read(url)
        assert counted["beacon_pass_answers_bucket", ("2.0",)] == passes
        together = counted["beacon_pass_answers_bucket", ("4.0",)] - passes
        assert together == counted["beacon_pass_answers_count", ()] - passes == max(one.tokens for one in answers)
        assert counted["beacon_pass_answers_sum", ()] == passes + 3 * together
        assert counted["beacon_answers", ()] == 0


def test_requests_that_wait_are_told_by_their_number() -> None:
    inside, go = threading.Semaphore(0), threading.Event()

    def wait(seen: str) -> str:
        if "Wait" in seen:
            inside.release()
            assert go.wait(60)
        return "Done."

    asked = {"model": "scripted", "messages": [{"role": "user", "content": "Wait"}]}
    with beacon_server(scripted_engine(wait), limits=Limits(waiting=20)) as url, ThreadPoolExecutor(20) as threads:
        post = lambda n: httpx.post(f"{url}/v1/chat/completions", json=asked, timeout=60).status_code  # noqa: E731
        try:
            answers = [threads.submit(post, n) for n in range(19)]
            assert inside.acquire(timeout=30)
            counted = read_until(url, "beacon_waiting", (), 3)
            assert counted["beacon_busy", ()] == 19
            assert counted["beacon_busy_most", ()] == 20
            assert not any(answer.done() for answer in answers)
        finally:
            go.set()
        assert {answer.result() for answer in answers} == {200}
        assert read(url)["beacon_waiting", ()] == 0


def test_of_a_store_every_operation_is_handed_on() -> None:
    theirs = {name for name, act in vars(StateStore).items() if not name.startswith("_") and callable(act)}
    assert theirs <= set(vars(TimedStore))


def test_two_servers_over_one_engine_each_count_what_they_do() -> None:
    engine = scripted_engine(lambda seen: "Hello!")
    own = engine.memory.store
    said = {"messages": [{"role": "user", "content": "Hi."}]}
    for _ in range(2):
        app = make_app(engine)
        with TestClient(app, base_url="http://localhost") as http:
            http.post("/v1/sessions/ada/messages", json=said).raise_for_status()
            assert 'beacon_store_seconds_count{operation="commit"} 1.0' in http.get("/metrics").text
    assert engine.memory.store is own


def test_the_page_on_operations_names_every_metric_and_no_other() -> None:
    named = set(re.findall(r"`(beacon_[a-z_]+)`", (ROOT / "docs" / "operations.md").read_text()))
    with beacon_server(scripted_engine(lambda seen: "Hello!")) as url:
        families = list(text_string_to_metric_families(httpx.get(f"{url}/metrics").text))
    told = {family.name + "_total" * (family.type == "counter") for family in families}
    assert {name for name in told if name.startswith("beacon_") and not name.endswith("_created")} == named


def too_large(url: str) -> int:
    """The status of a request that says it will be too large, and is not sent."""
    with closing(HTTPConnection(urlsplit(url).netloc)) as connection:
        connection.putrequest("POST", "/v1/sessions/x/messages")
        connection.putheader("Content-Length", "99999999")
        connection.endheaders()
        return connection.getresponse().status


def test_what_a_client_makes_up_makes_no_new_counts() -> None:
    with beacon_server(scripted_engine(lambda seen: "Hello!")) as url, httpx.Client(base_url=url) as http:
        for n in range(5):
            http.request(f"ODD{n}", f"/{SECRET}/{n}")
            http.get(f"/page/{SECRET}{n}")
        assert too_large(url) == 413
        requests = {labels for name, labels in read(url) if name == "beacon_requests_total"}
        assert requests == {("other", "none", "404"), ("GET", "/page/{name}", "404"), ("POST", "none", "413")}


def test_with_keys_the_metrics_are_for_the_key_of_their_namespace(tmp_path: Path) -> None:
    keys = Keys(tmp_path / "keys.json")
    acme, reader = (keys.add(name) for name in ("acme", "metrics"))
    engine = scripted_engine(lambda seen: "Hello!", None)
    with beacon_server(engine, keys=keys, place=lambda namespace: open_store("memory://")) as url:
        assert httpx.get(f"{url}/metrics").status_code == 401
        headers = {"Authorization": f"Bearer {acme}"}
        said = {"messages": [{"role": "user", "content": "Hi. " * 60}]}
        httpx.post(f"{url}/v1/sessions/a/messages", json=said, headers=headers).raise_for_status()
        assert httpx.get(f"{url}/metrics", headers=headers).status_code == 403
        counted = read(url, headers={"Authorization": f"Bearer {reader}"})
        assert counted["beacon_namespaces", ()] == 1
        assert counted["beacon_folded_tokens_total", ()] > 0


def test_without_keys_the_metrics_are_for_this_machine() -> None:
    with beacon_server(scripted_engine(lambda seen: "Hello!")) as url:
        assert httpx.get(f"{url}/metrics", headers={"Host": "evil.example"}).status_code == 403


@given(st.text(min_size=1), st.integers())
def test_a_line_has_numbers_and_nobodys_words(text: str, number: int) -> None:
    said = f"{SECRET}{text}"
    records = [
        logging.LogRecord(
            "beacon_memory.x", logging.ERROR, "x.py", 7, "%s %r: %d of %s", (said, said, number, [said]), None
        ),
        logging.LogRecord("elsewhere", logging.ERROR, "x.py", 7, said, (), None),
        logging.LogRecord("beacon_memory.x", logging.ERROR, "x.py", 7, "%(a)s", ({"a": said},), None),
    ]
    try:
        raise ValueError(said) from KeyError(said)
    except ValueError:
        raised = sys.exc_info()
    records.append(logging.LogRecord("beacon_memory", logging.ERROR, "x.py", 7, "failed", (), raised))
    lines = [JsonLines().format(record) for record in records]
    assert SECRET not in "".join(lines)
    assert json.loads(lines[0])["message"] == f"… …: {number} of …"
    assert json.loads(lines[1])["at"] == "x:7"
    assert json.loads(lines[3])["error"] == "ValueError"


def test_the_log_of_a_server_has_every_request_and_nobodys_words(tmp_path: Path) -> None:
    model = tiny_checkpoint(tmp_path / "tiny", max_position_embeddings=4096)
    command = [sys.executable, "-m", "beacon_memory.cli", "serve", "--port", "0", "--json-logs"]
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(
            [*command, "--model", str(model), "--store", f"sqlite:///{tmp_path}/memory.db"],
            stderr=log,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        try:
            while "serving" not in (written := (tmp_path / "log").read_text()):
                assert process.poll() is None, written
            url = re.findall(r"http://[\d.:]+", written)[0]
            speak(url)
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(30)
    written = (tmp_path / "log").read_text()
    lines = [json.loads(line) for line in written.splitlines()]
    answered = [(one["method"], one["route"], one["status"]) for one in lines if one.get("message") == "answered"]
    assert ("POST", "/v1/chat/completions", 200) in answered
    assert ("GET", "/v1/sessions/{session}", 404) in answered
    assert ("POST", "/mcp", 200) in answered
    assert SECRET not in written


def speak(url: str) -> None:
    """Say the secret wherever it can be said."""
    said = {"role": "user", "content": f"My word is {SECRET}. " * 20}
    mcp = {"Accept": "application/json, text/event-stream"}
    call = {"name": "recall", "arguments": {"session": f"{SECRET}-none", "question": SECRET, "limit": SECRET}}
    body = {"model": "tiny", "session_id": SECRET, "messages": [said], "max_tokens": 4, "user": SECRET}
    with httpx.Client(base_url=url, timeout=60, headers={"X-Session-Id": SECRET, "User-Agent": SECRET}) as http:
        http.post("/v1/chat/completions", json=body).raise_for_status()
        http.post("/v1/chat/completions", json={**body, "stream": True}).raise_for_status()
        schema = {"type": "json_schema", "json_schema": {"schema": {"type": "string", "pattern": f"(?={SECRET})x"}}}
        http.post("/v1/chat/completions", json={**body, "response_format": schema})
        http.post("/v1/chat/completions", json={**body, "tools": SECRET, SECRET: 1})
        http.post("/v1/chat/completions", content=f'{{"{SECRET}')
        http.post(f"/v1/sessions/{SECRET}/documents", json={"name": SECRET, "text": SECRET * 50}).raise_for_status()
        http.get(f"/v1/sessions/{SECRET}/messages", params={"query": SECRET}).raise_for_status()
        http.post(f"/v1/sessions/{SECRET}/search", json={"query": SECRET})
        http.get(f"/v1/sessions/{SECRET}-none")
        http.post("/v1/sessions/import", content=SECRET.encode())
        http.get(f"/{SECRET}")
        request = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": call}
        http.post("/mcp", json=request, headers=mcp).raise_for_status()
        http.delete(f"/v1/sessions/{SECRET}").raise_for_status()


def test_python_warnings_are_told_by_their_place_alone() -> None:
    root, stream = logging.getLogger(), io.StringIO()
    before = root.handlers[:], root.level
    try:
        write_json(stream)
        logging.getLogger("py.warnings").warning("%s", SECRET)
        logging.getLogger("beacon_memory.x").warning("%d left", 3)
    finally:
        root.handlers[:], _ = before
        root.setLevel(before[1])
        logging.captureWarnings(False)
    first, second = map(json.loads, stream.getvalue().splitlines())
    assert "message" not in first
    assert second["message"] == "3 left"
