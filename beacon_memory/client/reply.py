"""Answers of a server, as they come: what `sessions.reply` gives in this process."""

from __future__ import annotations

import json
from collections.abc import Generator, Iterator, Mapping
from contextlib import closing
from typing import Any, Self

from beacon_memory.client.connection import Connection
from beacon_memory.errors import AnswerCut, ServerError
from beacon_memory.state.info import Completion, Usage
from beacon_memory.state.source import Source
from beacon_memory.talk.tools import CALL_OPEN, Call, NamedCall, Said, read_said

CALL = CALL_OPEN.strip()


class _Streamed(Iterator[str]):
    """An answer in pieces. Closing it tells the server that nobody listens any more.

    A server that goes away in the middle is asked again, a bounded number of times. What it says then goes on with what
    was handed out already, or the answer is cut.
    """

    def __init__(self, connection: Connection, path: str, body: Mapping[str, Any], *, key: str | None = None) -> None:
        self._connection, self._path, self._body, self._key = connection, path, body, key
        self._last: dict[str, Any] = {}  # what events tell beside words, once the answer is whole
        self._text = ""
        self._pieces = self._read()

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> str:
        return next(self._pieces)

    def close(self) -> None:
        """End the answer where it is."""
        self._pieces.close()

    def _read(self) -> Generator[str, None, None]:
        given = ""
        for tries in range(self._connection.retries + 1):
            with closing(self._attempt()) as attempt:
                try:
                    for text in attempt:
                        if not (text.startswith(given) or given.startswith(text)):
                            break
                        if piece := text[len(given) :]:
                            given = text
                            yield piece
                    else:
                        if len(self._shown()) == len(given):
                            return
                except AnswerCut:
                    if tries == self._connection.retries:
                        raise
                    continue
            raise AnswerCut(
                f"{self._connection.url} went away before the answer was whole, and gave another one when it was asked "
                f"again: ask anew"
            )

    def _attempt(self) -> Generator[str, None, None]:
        """All that is certain of the answer's text, longer with each piece."""
        self._text, self._last = "", {}
        body = {**self._body, "stream": True, "stream_options": {"include_usage": True}}
        with closing(self._connection.events(self._path, body, key=self._key)) as events:
            for event in events:
                try:
                    self._text += self._seen(event) or ""
                except (KeyError, TypeError, IndexError, AttributeError, ValueError) as exc:
                    raise self._odd(f"an event that cannot be read ({exc!r:.80})") from exc
                yield self._shown()
        if missing := {"finish", "beacon", "usage"} - self._last.keys():
            raise self._odd(f"an answer without its {min(missing)}")

    def _odd(self, what: str) -> ServerError:
        return ServerError(f"{self._connection.url} sent {what}: is it of another version?")

    def _seen(self, event: dict[str, Any]) -> str | None:
        """The words of an event; what else it tells is kept."""
        if event.get("usage"):
            self._last["usage"] = event["usage"]
        if not event["choices"]:
            return None
        choice = event["choices"][0]
        if choice.get("finish_reason"):
            self._last |= {"finish": choice["finish_reason"], "beacon": event["beacon"]}
        return self._words(choice)

    def _words(self, choice: dict[str, Any]) -> str | None:
        """The words of a choice; calls that it tells are kept."""
        raise NotImplementedError

    def _shown(self) -> str:
        return self._text


class RemoteReply(_Streamed):
    """An answer that may call tools, of a server: its words as they come, then its calls."""

    def __init__(
        self, connection: Connection, body: Mapping[str, Any], *, id: str, session_id: str | None, calling: bool
    ) -> None:
        self.id = id
        self._session_id, self._calling = session_id, calling
        super().__init__(connection, "/v1/chat/completions", body, key=None if session_id is None else id)

    @property
    def said(self) -> Said:
        """What was said, once it is whole."""
        if not self._calling:
            return Said(self._text)
        found, calls = read_said(self._text), tuple(Call(call.name, call.arguments) for call in self.calls)
        return Said(found.text.strip() if calls else found.text, calls, found.broken)

    @property
    def calls(self) -> list[NamedCall]:
        """The tools that are called, in order."""
        return [
            NamedCall(call["id"], call["function"]["name"], json.loads(call["function"]["arguments"]))
            for call in self._last.get("calls", ())
        ]

    @property
    def finish(self) -> str:
        """Why it ended: "stop", "length" or "tool_calls"."""
        return str(self._last["finish"])

    @property
    def usage(self) -> Usage:
        """What it took."""
        usage, cost = self._last["usage"], self._last["beacon"]
        details = usage.get("prompt_tokens_details") or {}
        return Usage(
            tokens=usage["prompt_tokens"],
            read=details.get("cached_tokens", 0),
            folded=details.get("cache_write_tokens", 0),
            answer=usage["completion_tokens"],
            slots=cost["beacon_tokens"],
            prefill=cost["raw_tokens"],
            ratio=cost["ratio"],
        )

    @property
    def sources(self) -> tuple[Source, ...]:
        """The passages that were read again for it, the best first."""
        return tuple(Source(**source) for source in self._last["beacon"].get("sources", ()))

    @property
    def physical(self) -> dict[str, Any]:
        """What it took beside logical tokens, in the words in which frameworks are told of it."""
        return dict(self._last["beacon"])

    def _words(self, choice: dict[str, Any]) -> str | None:
        self._last.setdefault("calls", []).extend(choice["delta"].get("tool_calls") or ())
        content: str | None = choice["delta"].get("content")
        return content

    def _shown(self) -> str:
        return self._text.partition(CALL)[0] if self._calling else self._text


class RemoteText(_Streamed):
    """The answer of a server to a text that is read without a chat template."""

    def __init__(self, connection: Connection, body: Mapping[str, Any]) -> None:
        super().__init__(connection, "/v1/completions", body)

    @property
    def completion(self) -> Completion:
        """The whole answer, once it has been read."""
        return completion_of(self._text, self._last["finish"], self._last["usage"], self._last["beacon"])

    def _words(self, choice: dict[str, Any]) -> str | None:
        return str(choice["text"])


def completion_of(text: str, finish: str, usage: Mapping[str, Any], about: Mapping[str, Any]) -> Completion:
    """An answer to a text, as a server tells it."""
    sources = tuple(about.get("sources", ()))
    return Completion(text, finish, usage["prompt_tokens"], usage["completion_tokens"], sources)
