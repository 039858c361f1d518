"""Memory's own interface: sessions, messages, branches, files, documents."""

from __future__ import annotations

import uuid
from typing import Any
from urllib.parse import quote

import httpx
import pytest

from beacon_memory.testing import beacon_server, scripted_engine, sensible

ODD = ["a/b", "100%", "%2F", "a b?c#d", "où", "a\nb", "x" * 512, "import", "ada/messages"]


@pytest.fixture
def session() -> str:
    return f"s-{uuid.uuid4()}"


def add(http: httpx.Client, session: str, *texts: str) -> dict[str, Any]:
    said = [{"role": "assistant" if n % 2 else "user", "content": text} for n, text in enumerate(texts)]
    response = http.post(f"/v1/sessions/{quote(session, safe='')}/messages", json={"messages": said})
    assert response.status_code == 201, response.text
    return dict(response.json())


def texts(http: httpx.Client, session: str, **query: Any) -> list[str]:
    found = http.get(f"/v1/sessions/{quote(session, safe='')}/messages", params=query).json()["data"]
    return [message["content"] for message in found]


def test_sessions_are_listed_by_prefix_page_by_page(http: httpx.Client) -> None:
    prefix = f"p-{uuid.uuid4()}-"
    for n in range(5):
        add(http, f"{prefix}{n}", "Hi")
    seen, after = list[str](), None
    while True:
        page = http.get(
            "/v1/sessions", params={"prefix": prefix, "limit": 2} | ({"after": after} if after else {})
        ).json()
        seen += [one["id"] for one in page["data"]]
        after = page["last_id"]
        if not page["has_more"]:
            break
    assert seen == [f"{prefix}{n}" for n in range(5)]


def test_a_session_tells_what_it_holds(http: httpx.Client, session: str) -> None:
    info = add(http, session, "I live in Lyon. " * 40, "Noted.")
    assert http.get(f"/v1/sessions/{session}").json() == info
    assert (info["id"], info["object"], info["messages"]) == (session, "session", 2)
    assert info["slots"] > 0
    assert int(info["version"]) > 0


@pytest.mark.parametrize("name", ODD)
def test_any_id_can_be_named_percent_encoded(http: httpx.Client, name: str) -> None:
    path = f"/v1/sessions/{quote(name, safe='')}"
    assert http.get(path).status_code == 404
    assert add(http, name, "Hi")["id"] == name
    assert texts(http, name) == ["Hi"]
    assert name in [one["id"] for one in http.get("/v1/sessions", params={"limit": 1000}).json()["data"]]
    assert http.delete(path).json()["deleted"]
    assert http.get(path).status_code == 404


def test_messages_are_found_edited_and_deleted(http: httpx.Client, session: str) -> None:
    add(http, session, "I live in Lyon.", "Nice.", "My dog is Rex.", "Good dog.")
    assert texts(http, session, query="DOG") == ["My dog is Rex.", "Good dog."]
    assert texts(http, session, after=1, limit=1) == ["My dog is Rex."]
    where = f"/v1/sessions/{session}/messages"
    assert http.patch(f"{where}/0", json={"content": "I live in Nice."}).json()["messages"] == 4
    assert http.delete(f"{where}/1").json()["messages"] == 3
    assert texts(http, session) == ["I live in Nice.", "My dog is Rex.", "Good dog."]
    for missing in ("7", "nobody", "-1", "9" * 400):
        assert http.delete(f"{where}/{missing}").json()["error"]["code"] == "message_not_found"


def test_a_message_is_deleted_by_its_id(http: httpx.Client, session: str) -> None:
    said = [{"role": "user", "content": "One.", "id": "m/1"}, {"role": "user", "content": "Two.", "id": "m/2"}]
    http.post(f"/v1/sessions/{session}/messages", json={"messages": said}).raise_for_status()
    http.delete(f"/v1/sessions/{session}/messages/m%2F1").raise_for_status()
    assert texts(http, session) == ["Two."]


def test_bad_messages_add_nothing(http: httpx.Client, session: str) -> None:
    bad = {"messages": [{"role": "user", "content": "Hi"}, {"role": "robot", "content": "Hi"}]}
    assert http.post(f"/v1/sessions/{session}/messages", json=bad).status_code == 400
    assert http.get(f"/v1/sessions/{session}").status_code == 404


def test_a_fork_goes_its_own_way_and_a_rewound_session_forgets(http: httpx.Client, session: str) -> None:
    add(http, session, "One.", "Two.")
    new = f"{session}/fork"
    made = http.post(f"/v1/sessions/{session}/fork", json={"id": new})
    assert (made.status_code, made.json()["id"]) == (201, new)
    assert http.post(f"/v1/sessions/{session}/fork", json={"id": new}).status_code == 409
    assert http.post(f"/v1/sessions/{session}/fork", json={"id": "context:x"}).status_code == 400
    assert http.post(f"/v1/sessions/{session}/rewind", json={"messages": 1}).json()["messages"] == 1
    assert http.post(f"/v1/sessions/{session}/rewind", json={"messages": 5}).status_code == 400
    assert (texts(http, session), texts(http, new)) == (["One."], ["One.", "Two."])


def test_a_branch_is_checked_out(http: httpx.Client, session: str) -> None:
    hello = "Hello there, how do you do?"
    talk = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": hello}]
    first = {"model": "scripted", "messages": [*talk, {"role": "user", "content": "Well?"}], "session_id": session}
    http.post("/v1/chat/completions", json=first).raise_for_status()
    talk += [{"role": "user", "content": "Well?"}, {"role": "assistant", "content": hello}]
    for question in ("And you?", "Who are you?"):
        body = {"model": "scripted", "messages": [*talk, {"role": "user", "content": question}], "session_id": session}
        http.post("/v1/chat/completions", json=body).raise_for_status()
    (branch,) = http.get(f"/v1/sessions/{session}/branches").json()["data"]
    http.post(f"/v1/sessions/{session}/checkout", json={"branch": branch["id"]}).raise_for_status()
    assert texts(http, session) == ["Hi", hello, "Well?", hello, "And you?", hello]
    assert http.post(f"/v1/sessions/{session}/checkout", json={"branch": "77"}).status_code == 400


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("GET", "", None),
        ("GET", "/messages", None),
        ("GET", "/branches", None),
        ("GET", "/export", None),
        ("DELETE", "", None),
        ("DELETE", "/messages/0", None),
        ("PATCH", "/messages/0", {"content": "x"}),
        ("POST", "/fork", {"id": "new"}),
        ("POST", "/rewind", {"messages": 0}),
        ("POST", "/checkout", {"branch": "1"}),
        ("POST", "/search", {"query": "x"}),
    ],
)
def test_a_session_that_is_not_there_is_not_made(
    http: httpx.Client, session: str, method: str, path: str, body: dict[str, Any] | None
) -> None:
    response = http.request(method, f"/v1/sessions/{session}{path}", json=body)
    assert (response.status_code, response.json()["error"]["code"]) == (404, "session_not_found")
    assert http.get(f"/v1/sessions/{session}").status_code == 404


def test_a_session_moves_to_another_server_as_a_file(http: httpx.Client, session: str) -> None:
    add(http, session, "I live in Lyon. " * 20, "Noted.")
    file = http.get(f"/v1/sessions/{session}/export")
    assert file.headers["content-type"] == "application/zip"
    with beacon_server(scripted_engine(sensible)) as url, httpx.Client(base_url=url, timeout=30) as other:
        made = other.post("/v1/sessions/import", content=file.content)
        assert (made.status_code, made.json()["id"]) == (201, session)
        assert other.post("/v1/sessions/import", content=file.content).status_code == 409
        assert other.post("/v1/sessions/import", content=file.content, params={"id": "second"}).status_code == 201
        assert texts(other, "second") == texts(http, session)
        for broken in (file.content[:-50], b"", b"PK", b"x" * 1000):
            assert other.post("/v1/sessions/import", content=broken, params={"id": "third"}).status_code == 400
        assert other.get("/v1/sessions/third").status_code == 404


def test_a_document_is_read_into_a_session_and_deleted_by_its_name(http: httpx.Client, session: str) -> None:
    where = f"/v1/sessions/{session}"
    made = http.post(f"{where}/documents", json={"name": "house.txt", "text": "The door is green. " * 20})
    assert (made.status_code, made.json()["documents"]) == (201, 1)
    assert http.delete(f"{where}/messages/house.txt").json()["documents"] == 0


def test_documents_are_put_listed_replaced_and_deleted(http: httpx.Client) -> None:
    name = f"house/{uuid.uuid4()}"
    where = f"/v1/contexts/{quote(name, safe='')}"
    assert http.get(where).status_code == http.get(f"{where}/documents").status_code == 404
    door = {"key": "door/1", "text": "The door is green.", "metadata": {"page": 7}}
    lease = {"key": "lease", "text": "The lease ends in May."}
    put = http.post(f"{where}/documents", json={"documents": [door, lease]}).json()
    assert put["changed"] == ["door/1", "lease"]
    assert http.post(f"{where}/documents", json={"documents": [door, lease]}).json()["changed"] == []
    assert http.post(f"{where}/documents", json={"documents": [door], "new": True}).status_code == 400
    listed = http.get(f"{where}/documents").json()["data"]
    assert [(one["key"], one["metadata"]) for one in listed] == [("door/1", {"page": 7}), ("lease", {})]
    blue = http.put(f"{where}/documents/door%2F1", json={"text": "The door is blue."}).json()
    assert (blue["changed"], blue["windows"]) == (["door/1"], 1)
    assert http.get(where).json()["documents"] == 2
    assert http.delete(f"{where}/documents/lease").json()["deleted"]
    assert http.delete(f"{where}/documents/lease").json()["error"]["code"] == "document_not_found"
    assert name in [one["id"] for one in http.get("/v1/contexts", params={"prefix": "house/"}).json()["data"]]
    assert name not in [one["id"] for one in http.get("/v1/sessions", params={"limit": 1000}).json()["data"]]
    assert http.delete(where).json()["deleted"]
    assert http.get(where).status_code == 404


def test_what_cannot_be_put_changes_nothing(http: httpx.Client) -> None:
    name = f"c-{uuid.uuid4()}"
    twice = {"documents": [{"key": "a", "text": "One."}, {"key": "a", "text": "Two."}]}
    empty = {"documents": [{"key": "a", "text": "One."}, {"key": "b", "text": " "}]}
    for bad in (twice, empty, {"documents": []}, {"documents": [{"key": "", "text": "One."}]}):
        assert http.post(f"/v1/contexts/{name}/documents", json=bad).status_code == 400
    assert http.get(f"/v1/contexts/{name}").status_code == 404


def test_search_needs_a_finder_and_says_so(http: httpx.Client, session: str) -> None:
    add(http, session, "I live in Lyon. " * 20)
    answer = http.post(f"/v1/sessions/{session}/search", json={"query": "Where do I live?"})
    assert (answer.status_code, "finder" in answer.json()["error"]["message"]) == (400, True)


def test_a_session_is_laid_open_message_by_message(http: httpx.Client, session: str) -> None:
    add(http, session, "I live in Lyon. " * 60, "Noted.")
    read = {"name": "a/lease", "text": "The rent is 900 euros a month. " * 20}
    http.post(f"/v1/sessions/{session}/documents", json=read).raise_for_status()
    where = f"/v1/sessions/{session}"
    page = http.get(f"{where}/contents").json()
    info = http.get(where).json()
    assert [one["document"] for one in page["data"]] == [None, None, "a/lease"]
    first, second, lease = (one["held"] for one in page["data"])
    assert first[0]["ratio"] == info["ratio"]
    assert second[-1]["ratio"] is None
    assert sum(part["tokens"] for part in lease) == page["data"][2]["tokens"]
    later = http.get(f"{where}/contents", params={"after": 0, "limit": 1}).json()
    assert (later["data"], later["has_more"], later["last_place"]) == (page["data"][1:2], True, 1)
    documents = http.get(f"{where}/contents", params={"kind": "document"}).json()
    assert documents["data"] == page["data"][2:]
    assert http.get(f"{where}/documents/a%2Flease").json() == {"object": "document", **read}
    missing = http.get(f"{where}/documents/none")
    assert (missing.status_code, missing.json()["error"]["code"]) == (404, "document_not_found")
    assert http.get("/v1/sessions/nobody/contents").status_code == 404
    assert http.get("/v1/sessions/context:x/contents").status_code == 400


def test_the_documents_of_a_name_are_laid_open(http: httpx.Client, session: str) -> None:
    where, text = f"/v1/contexts/{session}", "The rent is 900 euros a month. " * 20
    http.put(f"{where}/documents/lease", json={"text": text}).raise_for_status()
    (lease,) = http.get(f"{where}/contents").json()["data"]
    assert (lease["document"], lease["tokens"]) == ("lease", sum(part["tokens"] for part in lease["held"]))
    assert http.get(f"{where}/documents/lease").json()["text"] == text
    assert http.get(f"{where}/documents/none").status_code == 404
