"""A memory on a server, for frameworks and the command line: the model, the store and the weights are all there."""

from __future__ import annotations

import uuid
from collections.abc import Hashable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NoReturn

from beacon_memory.client.connection import Connection
from beacon_memory.client.documents import RemoteContext, RemoteDocuments
from beacon_memory.client.reply import RemoteReply, RemoteText, completion_of
from beacon_memory.client.session import PAGE, RemoteSession
from beacon_memory.errors import ConfigError, InputError
from beacon_memory.locks import OnThreads, Worker
from beacon_memory.models.given import given_list
from beacon_memory.state.info import About, Completion
from beacon_memory.talk.messages import Message, read_messages
from beacon_memory.talk.tools import ANSWER, Tool, tools_choice

THREADS = 16  # requests of asynchronous callers at the same time
LONGEST = 256  # tokens of an answer whose length nobody asked for, as where the model is in this process
# How answers are drawn, by our names and by those of the server.
_SAMPLING = {
    "max_new_tokens": "max_tokens",
    "temperature": "temperature",
    "top_p": "top_p",
    "top_k": "top_k",
    "repetition_penalty": "repetition_penalty",
    "stop": "stop",
    "seed": "seed",
}


class RemoteEngine(OnThreads):
    """A server by its address, in the place of a `BeaconEngine`. Nothing is sent before something is asked of it.

    >>> from beacon_memory.testing import beacon_server, scripted_engine
    >>> with beacon_server(scripted_engine(lambda seen: "Rex!" if "called Rex" in seen else "Who?")) as url:
    ...     engine = RemoteEngine(url)
    ...     engine.session("ada").add("My dog is called Rex.")
    ...     "".join(engine.reply([{"role": "user", "content": "What is he called?"}], session_id="ada"))
    'Rex!'
    """

    keeps_sessions = True

    def __init__(
        self,
        base_url: str,
        *,
        api_key: str | None = None,
        model: str | None = None,
        timeout: float | None = None,
        retries: int | None = None,
    ) -> None:
        """As `Connection` takes them. Raises ConfigError."""
        how: dict[str, Any] = {"api_key": api_key, "timeout": timeout, "retries": retries}
        self._connection = Connection(base_url, model=model, **how)
        self._how = how
        self._worker = Worker("beacon-client", threads=THREADS)
        self.place: Hashable = None  # the names under which a framework's settings gave it

    @property
    def url(self) -> str:
        """The server's address."""
        return self._connection.url

    @property
    def name(self) -> str | None:
        """The model's name: the one that was given, else the server's; None before it was asked."""
        known = self._connection.known
        return self._connection.model or (None if known is None else known.name)

    @property
    def worker(self) -> ThreadPoolExecutor:
        """The threads on which asynchronous work is done."""
        return self._worker

    @property
    def positions(self) -> int | None:
        """The model's number of positions; None before the server was asked."""
        return None if (known := self._connection.known) is None else known.positions

    def about(self) -> About:
        """What the server says of its model. Raises ServerError, and ConfigError where it is another model."""
        return self._connection.about()

    def window(self, ratio: int | None = None) -> int:
        """The tokens that memory holds at a ratio before old ones get coarser. Raises ServerError."""
        found = self.about()
        return found.slots * (ratio or found.ratio)

    def session(self, session_id: str, *, ratio: int | None = None, budget: int | None = None) -> RemoteSession:
        """A session of the server. Raises InputError."""
        return RemoteSession(self._connection, session_id, ratio=ratio, budget=budget)

    def sessions(self) -> list[str]:
        """The ids of all sessions, sorted."""
        return self._names("/v1/sessions")

    def contexts(self) -> list[str]:
        """The names under which documents are kept, sorted."""
        return self._names("/v1/contexts")

    def documents(self, name: str, *, ratio: int | None = None, budget: int | None = None) -> RemoteDocuments:
        """The documents that are kept under a name. Raises InputError."""
        return RemoteDocuments(self._connection, name, ratio=ratio, budget=budget)

    def context(self, name: str, *, ratio: int | None = None) -> RemoteContext:
        """The documents of a name, asked as a session. Raises InputError."""
        return self.documents(name, ratio=ratio).context()

    def reply(
        self,
        messages: Sequence[Message],
        *,
        session_id: str | None = None,
        ratio: int | None = None,
        budget: int | None = None,
        context_id: str | Sequence[str] | None = None,
        texts: Sequence[str] = (),
        shelf: Any = None,
        system: str | None = None,
        tools: Sequence[Tool] = (),
        choice: str | Mapping[str, Any] | bool | None = None,
        many: bool | None = None,
        schema: Mapping[str, Any] | None = None,
        history: str = "auto",
        keep: int | None = None,
        behind: int | None = None,
        close: int = 0,
        recall_tokens: int | None = None,
        **sampling: Any,
    ) -> RemoteReply:
        """An answer to messages, not begun, as `BeaconEngine.reply` gives it. Raises InputError, ConfigError; when it
        is read, what is raised on the server, and ServerError.
        """
        answer = f"{ANSWER}{uuid.uuid4()}"  # also says on the server which request this is, when it is sent again
        asked = read_messages(messages)
        if not asked and session_id is None:
            raise InputError("there is no message to answer")
        front = [{"role": "system", "content": system}] if system else []
        names = [str(tool.get("function", {}).get("name")) for tool in tools]
        body = {
            **self._asked(context_id, texts, ratio=ratio, recall_tokens=recall_tokens, sampling=sampling),
            "messages": [*front, *asked],
            "answer_id": answer,
            "session_id": None if session_id is None else self.session(session_id).id,
            "budget": budget,
            "tools": list(tools) or None,
            "tool_choice": tools_choice(choice, names),
            "parallel_tool_calls": many,
            "response_format": schema
            and {"type": "json_schema", "json_schema": {"name": "answer", "schema": dict(schema)}},
            "history": history,
            "keep": keep,
            "behind": behind,
            "close": close or None,
        }
        calling = bool(tools) and choice != "none"
        return RemoteReply(self._connection, _said(body), id=answer, session_id=session_id, calling=calling)

    def text(self, prompt: str, *, formatted: bool = False, **how: Any) -> RemoteText:
        """The answer to a text that is read without a chat template, not begun, as `BeaconEngine.text` gives it."""
        return RemoteText(self._connection, self._completion(prompt, formatted=formatted, **how))

    def texts(self, prompts: Sequence[str], **how: Any) -> list[Completion]:
        """The answers to several texts, in one batch, as `BeaconEngine.texts` gives them. Raises InputError,
        ConfigError, ServerError.
        """
        many = given_list(prompts, "prompts")
        if not many:
            return []
        told = self._connection.asked("/v1/completions", self._completion(many, **how))
        each = zip(told["choices"], told["beacon"], strict=True)
        return [completion_of(one["text"], one["finish_reason"], about["usage"], about) for one, about in each]

    def encode(self, text: str) -> list[int]:
        """The ids of a text. Raises ServerError."""
        return list(self._connection.asked("/v1/tokenize", {"prompt": text})["tokens"])

    def count(self, messages: Sequence[Message], *, system: str | None = None, tools: Sequence[Tool] = ()) -> int:
        """The tokens of messages as the model reads them, tools and the ask for an answer counted. Raises
        InputError, ServerError.
        """
        front = [{"role": "system", "content": system}] if system else []
        body = {"messages": [*front, *read_messages(messages)], "tools": list(tools)}
        return int(self._connection.asked("/v1/tokenize", body)["count"])

    def import_session(self, path: str | Path, *, name: str | None = None) -> str:
        """The id of a session, read from a file that `export` wrote. Raises InputError, SessionExists."""
        params = {} if name is None else {"id": name}
        return str(self._connection.upload("/v1/sessions/import", Path(path), params=params)["id"])

    def shares(self, other: Any) -> bool:
        """Whether both ask the same server, as the same one."""
        return isinstance(other, RemoteEngine) and self._who == other._who

    @property
    def _who(self) -> tuple[str, str | None]:
        return self.url, self._how["api_key"]

    def with_model(self, model: str) -> RemoteEngine:
        """The same server, which must then answer by this model."""
        return RemoteEngine(self.url, model=model, **self._how)

    def with_store(self, store: Any, **about: Any) -> NoReturn:
        """Refused. Raises ConfigError."""
        raise ConfigError(f"{self.url} keeps its sessions itself: leave the store out, or the server")

    def over(self, other: Any) -> NoReturn:
        """Refused. Raises ConfigError."""
        raise ConfigError(f"{self.url} keeps its sessions itself: its model cannot read those of another engine")

    def close(self) -> None:
        """Close the connections; the next request opens them again."""
        self._connection.close()

    def __deepcopy__(self, memo: dict[int, Any]) -> RemoteEngine:
        """Itself: copies of what holds an engine share its connections."""
        return self

    def _names(self, path: str) -> list[str]:
        found = list[str]()
        page: dict[str, Any] = {"has_more": True, "last_id": None}
        while page["has_more"]:
            after = {} if page["last_id"] is None else {"after": page["last_id"]}
            page = self._connection.json("GET", path, params={"limit": PAGE, **after})
            found += [one["id"] for one in page["data"]]
        return found

    def _completion(
        self,
        prompt: str | list[str],
        *,
        formatted: bool = False,
        context_id: str | Sequence[str] | None = None,
        texts: Sequence[str] = (),
        ratio: int | None = None,
        recall_tokens: int | None = None,
        **sampling: Any,
    ) -> dict[str, Any]:
        asked = self._asked(context_id, texts, ratio=ratio, recall_tokens=recall_tokens, sampling=sampling)
        return _said({**asked, "prompt": prompt, "formatted": formatted or None})

    @staticmethod
    def _asked(
        context_id: str | Sequence[str] | None,
        texts: Sequence[str],
        *,
        ratio: int | None,
        recall_tokens: int | None,
        sampling: Mapping[str, Any],
    ) -> dict[str, Any]:
        """What answers of both kinds are asked with. Raises ConfigError for an option that there is not."""
        if unknown := sorted(set(sampling) - set(_SAMPLING)):
            raise ConfigError(f"unknown option {', '.join(unknown)}: an answer takes {', '.join(_SAMPLING)}")
        drawn = {_SAMPLING[name]: value for name, value in sampling.items()}
        named = context_id if context_id is None or isinstance(context_id, str) else given_list(context_id, "ids")
        about = {"context_id": named, "texts": list(texts) or None, "ratio": ratio, "recall_tokens": recall_tokens}
        return {"max_tokens": LONGEST, **drawn, **about}


def _said(body: Mapping[str, Any]) -> dict[str, Any]:
    """What is asked for, without what is not."""
    return {name: value for name, value in body.items() if value is not None}
