"""What goes wrong between a client and its server: each is one of our errors, and says what to do."""

from __future__ import annotations

import json
import socket
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from puppets import answer, chunks, met, puppet, refusal, said, wise

from beacon_memory import errors
from beacon_memory.client.engine import RemoteEngine
from beacon_memory.errors import (
    AnswerCut,
    BeaconError,
    ConfigError,
    EngineBusy,
    InputError,
    KeyRefused,
    ServerError,
    ServerUnavailable,
    SessionNotFound,
)
from beacon_memory.server.errors import body_of
from beacon_memory.server.keys import Keys
from beacon_memory.server.limits import Limits
from beacon_memory.state.info import Document
from beacon_memory.stores import open_store
from beacon_memory.testing import beacon_server, scripted_engine

BUSY = refusal(429, "64 requests wait", "rate_limit_exceeded", "Retry-After: 0", beacon_error="EngineBusy")


def asking(url: str, **how: Any) -> RemoteEngine:
    return RemoteEngine(url, **{"retries": 0, **how})


@pytest.mark.parametrize(
    "url",
    ["", "localhost:8000", "ftp://localhost", "http://", "http://localhost:99999", "http://a b:1", "http://[::1", 7],
)
def test_what_is_no_address_is_refused_at_once(url: Any) -> None:
    with pytest.raises(ConfigError, match="http://localhost:8000"):
        RemoteEngine(url)


def test_an_address_may_end_as_openais_does() -> None:
    assert {RemoteEngine(f"http://host:1{end}").url for end in ("", "/", "/v1", "/v1/")} == {"http://host:1"}


@pytest.mark.parametrize(
    ("how", "match"),
    [
        ({"timeout": 0}, "timeout"),
        ({"timeout": "1"}, "timeout"),
        ({"retries": -1}, "max_retries"),
        ({"retries": 1.5}, "max_retries"),
        ({"api_key": "sk-\n"}, "API key"),
        ({"api_key": "schlüssel"}, "API key"),
    ],
)
def test_what_is_no_setting_is_refused(how: dict[str, Any], match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        RemoteEngine("http://localhost:8000", **how)


def test_a_key_in_the_address_is_refused() -> None:
    with pytest.raises(ConfigError, match="api_key="):
        RemoteEngine("http://me:secret@localhost:8000")


def test_where_no_one_listens_the_error_says_how_to_start_a_server() -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with (
        closing(asking(f"http://127.0.0.1:{port}", retries=1)) as engine,
        pytest.raises(ServerUnavailable, match="beacon-memory serve"),
    ):
        engine.session("ada").messages()


@pytest.mark.parametrize(
    ("response", "match"),
    [
        (answer(b"<html>Welcome to nginx!</html>"), "check|address"),
        (answer(b"<html>Not found</html>", 404), "address"),
        (answer(b"", 302, "Location: http://elsewhere"), "address"),
        (answer([1, 2]), "address"),
        (answer({"object": "list", "data": []}), "no beacon-memory server"),
        (answer({"object": "list", "data": [{"id": "gpt-9", "owned_by": "openai"}]}), "no beacon-memory server"),
        (answer({"object": "list", "data": [{"id": "tiny", "owned_by": "beacon-memory"}]}), "older than this client"),
        (met(interface=2, version="9.0"), r"is beacon-memory 9\.0, of interface 2"),
        (met(slots=None), "upgrade it"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_what_is_no_server_of_ours_or_of_another_version_is_told_so(response: bytes, match: str) -> None:
    with puppet(response) as (url, _), closing(asking(url)) as engine:
        with pytest.raises(ServerError, match=match) as told:
            engine.session("ada").messages()
        assert url in str(told.value)


def test_another_model_than_the_one_that_was_named_is_refused() -> None:
    with puppet(met(), met()) as (url, _), closing(asking(url, model="llama")) as engine:
        with pytest.raises(ConfigError, match="answers by 'tiny', not by 'llama'"):
            engine.about()
        assert engine.name == "llama"
    with puppet(met()) as (url, _), closing(asking(url)) as engine:
        assert engine.name is None
        engine.about()
        assert engine.name == "tiny"


def test_without_a_key_and_with_a_wrong_one_the_error_says_where_keys_go(tmp_path: Path) -> None:
    keys = Keys(tmp_path / "keys.json")
    secret = keys.add("acme")
    place = lambda name: open_store("memory://")  # noqa: E731
    with beacon_server(scripted_engine(wise), keys=keys, place=place) as url:
        for wrong in (None, "sk-beacon-wrong"):
            with closing(asking(url, api_key=wrong)) as engine, pytest.raises(KeyRefused, match="BEACON_API_KEY"):
                engine.session("ada").add("Hi")
        with closing(asking(url, api_key=secret)) as engine:
            engine.session("ada").add("Hi")
            assert engine.sessions() == ["ada"]


def test_every_error_of_ours_comes_back_as_itself() -> None:
    ours = [cls for cls in vars(errors).values() if isinstance(cls, type) and issubclass(cls, BeaconError)]
    for cls in ours:
        status, body = body_of(cls("what was wrong"))
        with puppet(met(), answer(body, status)) as (url, _), closing(asking(url)) as engine:
            with pytest.raises(cls, match="what was wrong") as told:
                engine.session("ada").info()
            assert type(told.value) is cls


def test_a_class_that_this_client_does_not_know_goes_by_its_status() -> None:
    for status, cls in ((400, InputError), (409, errors.SessionConflict), (429, EngineBusy), (500, ServerError)):
        response = refusal(status, "later words", beacon_error="Newer")
        with (
            puppet(met(), response) as (url, _),
            closing(asking(url)) as engine,
            pytest.raises(cls, match="later words"),
        ):
            engine.session("ada").info()


def test_a_busy_server_is_asked_again_as_often_as_was_said() -> None:
    told = answer({"object": "list", "before": 0, "data": [], "has_more": False})
    with puppet(met(), BUSY, BUSY, told) as (url, got), closing(asking(url, retries=2)) as engine:
        assert engine.session("ada").newest() == (0, [])
        assert len(got) == 4
    with puppet(met(), BUSY, BUSY) as (url, got), closing(asking(url, retries=1)) as engine:
        with pytest.raises(EngineBusy):
            engine.session("ada").newest()
        assert len(got) == 3


def test_what_may_have_been_done_is_not_done_twice() -> None:
    """A connection that closes unanswered: messages may have been added, so they are not sent again."""
    with puppet(met(), b"", answer({})) as (url, got), closing(asking(url, retries=2)) as engine:
        with pytest.raises(ServerUnavailable, match="went away"):
            engine.session("ada").add("Hi")
        assert len(got) == 2


def test_what_changes_nothing_is_asked_again() -> None:
    told = answer({"object": "list", "before": 0, "data": [], "has_more": False})
    with puppet(met(), b"", told) as (url, _), closing(asking(url, retries=1)) as engine:
        assert engine.session("ada").newest() == (0, [])


def test_a_silent_server_is_given_up() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        url = f"http://127.0.0.1:{listening.getsockname()[1]}"
        with (
            closing(asking(url, timeout=0.2)) as engine,
            pytest.raises(ServerUnavailable, match=r"silent for 0\.2 seconds"),
        ):
            engine.about()


def test_a_server_that_dies_in_the_middle_of_an_answer_is_told_and_what_it_said_was_given() -> None:
    with puppet(met(), chunks("Re", whole=False)) as (url, _), closing(asking(url)) as engine:
        reply = engine.reply(said("Who?"), session_id="ada")
        assert next(reply) == "Re"
        with pytest.raises(AnswerCut, match="ask again"):
            next(reply)


def test_an_answer_that_was_cut_goes_on_where_it_was() -> None:
    responses = (met(), chunks("Re", whole=False), chunks("R", "ex", "!"))
    with puppet(*responses) as (url, got), closing(asking(url, retries=1)) as engine:
        reply = engine.reply(said("Who?"), session_id="ada")
        assert list(reply) == ["Re", "x", "!"]
        assert (reply.said.text, reply.finish, reply.usage.answer) == ("Rex!", "stop", 3)
        keys = [line for request in got for line in request.splitlines() if line.lower().startswith("idempotency-key")]
        assert len(keys) == 2
        assert len(set(keys)) == 1


def test_an_answer_that_began_anew_in_other_words_is_cut() -> None:
    responses = (met(), chunks("Re", whole=False), chunks("Max"))
    with puppet(*responses) as (url, _), closing(asking(url, retries=1)) as engine:
        reply = engine.reply(said("Who?"))
        assert next(reply) == "Re"
        with pytest.raises(AnswerCut, match="another one"):
            list(reply)


def test_an_answer_that_is_shorter_when_it_is_asked_for_again_is_cut() -> None:
    responses = (met(), chunks("Rex", whole=False), chunks("Re"))
    with puppet(*responses) as (url, _), closing(asking(url, retries=1)) as engine:
        reply = engine.reply(said("Who?"))
        assert next(reply) == "Rex"
        with pytest.raises(AnswerCut, match="another one"):
            list(reply)


def test_an_answer_without_what_it_took_is_told() -> None:
    ended = chunks("Rex", whole=False) + b"data: [DONE]\n\n"
    with (
        puppet(met(), ended) as (url, _),
        closing(asking(url)) as engine,
        pytest.raises(ServerError, match="its beacon"),
    ):
        list(engine.reply(said("Who?")))


def test_an_error_within_a_stream_is_that_error() -> None:
    body = {"error": {"message": "no room", "type": "t", "param": None, "code": None}, "beacon_error": "StoreFull"}
    broken = chunks("Re", whole=False) + b"data: " + json.dumps(body).encode() + b"\n\n"
    with (
        puppet(met(), broken) as (url, _),
        closing(asking(url)) as engine,
        pytest.raises(errors.StoreFull, match="no room"),
    ):
        list(engine.reply(said("Who?")))


@pytest.mark.parametrize("event", [b"data: nonsense\n\n", b'data: {"choices": 7}\n\n', b"data: {}\n\n"])
def test_an_event_that_is_none_is_told(event: bytes) -> None:
    with (
        puppet(met(), chunks(whole=False) + event) as (url, _),
        closing(asking(url)) as engine,
        pytest.raises(ServerError, match=url),
    ):
        list(engine.reply(said("Who?")))


def test_an_unknown_session_is_that_also_where_it_is_a_key_error() -> None:
    with beacon_server(scripted_engine(wise)) as url, closing(asking(url)) as engine:
        with pytest.raises(SessionNotFound, match="no session 'nobody'"):
            engine.session("nobody").info()
        with pytest.raises(KeyError):
            engine.session("nobody").messages()


def test_documents_that_are_too_large_together_are_refused_whole_and_put_in_parts() -> None:
    with (
        beacon_server(scripted_engine(wise), limits=Limits(body_bytes=4000)) as url,
        closing(asking(url)) as engine,
    ):
        shelf, many = engine.documents("house"), [Document(f"room {n}", "A window. " * 20) for n in range(20)]
        with pytest.raises(InputError, match=r"4000 bytes .* several requests, .*--body-bytes"):
            shelf.put(many)
        assert engine.contexts() == []
        for first in range(0, 20, 5):
            shelf.put(many[first : first + 5])
        assert [one.key for one in shelf.info()] == [one.key for one in many]
