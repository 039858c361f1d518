"""A response as OpenAI's clients read it, whole or as typed events."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from typing import Any

from beacon_memory.server.openai.chat import broken_calls, sent
from beacon_memory.server.openai.items import answer_items, call_item, said_item, text_part
from beacon_memory.server.openai.wanted import closed
from beacon_memory.sessions.reply import Reply
from beacon_memory.talk.tools import NamedCall, as_json

Told = str | Reply  # pieces of an answer, and behind them the whole of it


def finished(told: dict[str, Any], reply: Reply, *, text: str | None = None) -> dict[str, Any]:
    """A response with its answer, in these words or in the reply's own."""
    items = answer_items(core_of_response(told["id"]), text_of(reply) if text is None else text, reply.calls)
    beacon = reply.physical if told["store"] else {**reply.physical, "session_id": None}
    return {**closed(told, finish=reply.finish, usage=reply.usage), "output": items, "beacon": beacon}


def text_of(reply: Reply) -> str:
    """What an answer says, as a session keeps it."""
    return (reply.said.text + broken_calls(reply)).strip()


def events(told: dict[str, Any], first: Told, answer: AsyncIterator[Told]) -> AsyncIterator[bytes]:
    """The answer as server-sent events, typed and numbered. One that fails ends in `response.failed`."""
    script = _Script(told)

    def end(reply: Reply) -> Iterator[bytes]:
        return script.end(text_of(reply), reply.calls, lambda text: finished(told, reply, text=text))

    return sent(first, answer, script.begin(), say=script.say, end=end, fail=lambda body: script.fail(body["error"]))


def again(response: dict[str, Any]) -> Iterator[bytes]:
    """The events of a response that was answered before."""
    told = {**response, "status": "in_progress", "output": [], "usage": None, "completed_at": None}
    script = _Script({**told, "incomplete_details": None})
    said = [item["content"][0]["text"] for item in response["output"] if item["type"] == "message"]
    calls = [
        NamedCall(item["call_id"], item["name"], json.loads(item["arguments"]))
        for item in response["output"]
        if item["type"] == "function_call"
    ]
    yield from script.begin()
    yield from script.end("".join(said), calls, lambda text: response)


def core_of_response(response: str) -> str:
    """What the ids of a response's items have in common."""
    return response[5:37]


class _Script:
    """The events of one response, in order."""

    def __init__(self, told: dict[str, Any]) -> None:
        self._told, self._core = told, core_of_response(told["id"])
        self._number = 0
        self._said = ""  # of the answer, as it was sent
        self._held = ""  # white space that may be the answer's end, which is not sent
        self._open = False

    def begin(self) -> Iterator[bytes]:
        for kind in ("created", "in_progress"):
            yield self._event(f"response.{kind}", response=self._told)

    def say(self, piece: str) -> Iterator[bytes]:
        text = self._held + piece
        text = text if self._said else text.lstrip()
        body = text.rstrip()
        self._held = text[len(body) :]
        if body:
            yield from self._opened()
            self._said += body
            yield self._event("response.output_text.delta", **self._part(), delta=body, logprobs=[])

    def end(self, whole: str, calls: Sequence[NamedCall], response: Callable[[str], dict[str, Any]]) -> Iterator[bytes]:
        if whole.startswith(self._said):
            self._held = ""
            yield from self.say(whole[len(self._said) :])
        if not calls:
            yield from self._opened()
        if self._open:
            text, part = self._said, text_part(self._said)
            yield self._event("response.output_text.done", **self._part(), text=text, logprobs=[])
            yield self._event("response.content_part.done", **self._part(), part=part)
            item = said_item(self._core, text, role="assistant", kind="output_text")
            yield self._event("response.output_item.done", output_index=0, item=item)
        for n, call in enumerate(calls):
            place, item = n + self._open, call_item(self._core, n, call)
            begun = call_item(self._core, n, call, status="in_progress")
            about: dict[str, Any] = {"output_index": place, "item_id": item["id"]}
            arguments = as_json(call.arguments)
            yield self._event("response.output_item.added", output_index=place, item=begun)
            yield self._event("response.function_call_arguments.delta", **about, delta=arguments)
            yield self._event("response.function_call_arguments.done", **about, arguments=arguments, name=call.name)
            yield self._event("response.output_item.done", output_index=place, item=item)
        ended = response(self._said)
        yield self._event(f"response.{ended['status']}", response=ended)

    def fail(self, error: dict[str, Any]) -> bytes:
        told = {"code": "server_error", "message": error["message"]}
        return self._event("response.failed", response={**self._told, "status": "failed", "error": told})

    def _opened(self) -> Iterator[bytes]:
        if self._open:
            return
        self._open = True
        item = said_item(self._core, None, role="assistant", kind="output_text", status="in_progress")
        yield self._event("response.output_item.added", output_index=0, item=item)
        yield self._event("response.content_part.added", **self._part(), part=text_part(""))

    def _part(self) -> dict[str, Any]:
        return {"item_id": f"msg_{self._core}", "output_index": 0, "content_index": 0}

    def _event(self, kind: str, **more: Any) -> bytes:
        body = {"type": kind, "sequence_number": self._number, **more}
        self._number += 1
        told = json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace")
        return b"event: " + kind.encode() + b"\ndata: " + told + b"\n\n"
