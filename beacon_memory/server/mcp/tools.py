"""The tools: remember, recall, search, list, forget. Each is a request of memory's own interface, told to an agent."""

from __future__ import annotations

import json
import logging
from collections.abc import Awaitable, Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import Any, Literal

from mcp.server.lowlevel.server import Server
from mcp.types import (
    CallToolRequestParams,
    CallToolResult,
    ListToolsResult,
    PaginatedRequestParams,
    TextContent,
    Tool,
    ToolAnnotations,
)
from pydantic import Field, ValidationError

from beacon_memory.errors import BeaconError
from beacon_memory.server.errors import Refused, body_of, malformed
from beacon_memory.server.rest import messages, sessions
from beacon_memory.server.rest.shapes import Body, sources
from beacon_memory.server.visit import Spoken, Visit
from beacon_memory.sessions.turn import Usage, stream_answer
from beacon_memory.state.source import Source
from beacon_memory.version import __version__

logger = logging.getLogger(__name__)

SESSION = "default"
ABOUT = (
    "A long-term memory. Remember what is worth keeping, and recall before you answer from what was said or read "
    "earlier. Each session is a memory of its own: use one for each person or project, and keep to it."
)


class _Session(Body):
    session: str = Field(SESSION, min_length=1, max_length=512, description="the memory's name; it is made when new")


class Remember(_Session):
    """Keep a text: something that was said, or, with `document`, a text to read under that name."""

    text: str = Field(min_length=1, description="what to keep, whole")
    role: Literal["user", "assistant"] = Field("user", description="who said it; not for a document")
    document: str | None = Field(
        None,
        min_length=1,
        max_length=512,
        description="its name, where it is a document; an older one of it is replaced",
    )


class Recall(_Session):
    """Answer a question from a memory, with the passages that were read again for it as sources. Writes nothing."""

    question: str = Field(min_length=1, description="a question, in a sentence")
    max_tokens: int = Field(256, ge=1, le=4096, description="of the answer, at most")


class Search(_Session):
    """The passages of a memory that a question is about, the best first, word for word. Writes nothing."""

    query: str = Field(min_length=1, description="what the passages are about")
    limit: int = Field(5, ge=1, le=100, description="passages, at most")


class List(Body):
    """The names of all memories; or, of one session, its messages and documents in order, each with its place."""

    session: str | None = Field(None, min_length=1, max_length=512, description="whose messages; none: list the names")
    query: str = Field("", description="only names that begin with this, or messages that contain it")
    after: str | None = Field(None, description="the last_id or last_place of the page before")
    limit: int = Field(100, ge=1, le=1000, description="entries, at most")


class Forget(Body):
    """Forget one message or document of a session, or, without `message`, the whole session. It cannot be undone."""

    session: str = Field(min_length=1, max_length=512, description="the memory's name")
    message: str | None = Field(None, description="a message's id or place, or a document's name, as `list` shows it")


async def _remember(here: Visit, asked: Remember) -> dict[str, Any]:
    if asked.document is not None:
        return await messages.read(asked.session, messages.Read(name=asked.document, text=asked.text), here)
    said = messages.Said(messages=[{"role": asked.role, "content": asked.text}])
    return await messages.add(asked.session, said, here)


async def _recall(here: Visit, asked: Recall) -> dict[str, Any]:
    found: list[Source] = []

    def begin() -> Iterator[str | Spoken]:
        session = here.memory.session(asked.session, create=False)
        longest = min(asked.max_tokens, here.limits.answer_tokens, here.memory.positions // 4)
        prompt, ratio = session.prompt_for(asked.question, answer=longest), session.info().ratio
        found.extend(prompt.sources)
        with closing(stream_answer(here.memory, prompt, max_new_tokens=longest)) as stream:
            yield from stream
        assert stream.answer is not None
        held = sum(len(segment.ids) for segment in prompt.segments)
        took = Usage(prompt.tokens, held, 0, stream.answer.tokens, prompt.slots, len(prompt.ids), ratio)
        yield Spoken(took, stream.answer.finish)

    answer = "".join(piece for piece in await here.all(begin) if isinstance(piece, str))
    return {"session": asked.session, "answer": answer, "sources": sources(found)["data"]}


async def _search(here: Visit, asked: Search) -> dict[str, Any]:
    return await sessions.search(asked.session, sessions.Search(query=asked.query, limit=asked.limit), here)


async def _list(here: Visit, asked: List) -> dict[str, Any]:
    if asked.session is None:
        return await sessions.listed(here, prefix=asked.query, limit=asked.limit, after=asked.after)
    if asked.after is not None and not (asked.after.isascii() and asked.after.isdecimal()):
        raise Refused(400, "after: a session's messages go on behind a place, a number: the last_place of a page")
    after = -1 if asked.after is None else int(asked.after[:20])
    return await messages.messages(asked.session, here, query=asked.query, after=after, limit=asked.limit)


async def _forget(here: Visit, asked: Forget) -> dict[str, Any]:
    if asked.message is None:
        return await sessions.forget(asked.session, here)
    return await messages.delete(asked.session, asked.message, here)


@dataclass(frozen=True)
class _Tool:
    """A tool: what it takes, what it does, and what an agent is told of its effect."""

    asked: type[Body]
    act: Callable[[Visit, Any], Awaitable[dict[str, Any]]]
    reads: bool = False
    destroys: bool = False

    def told(self, name: str) -> Tool:
        schema = self.asked.model_json_schema()
        return Tool(
            name=name,
            description=schema.pop("description"),
            input_schema=schema,
            annotations=ToolAnnotations(
                read_only_hint=self.reads, destructive_hint=self.destroys, open_world_hint=False
            ),
        )


TOOLS = {
    "remember": _Tool(Remember, _remember),
    "recall": _Tool(Recall, _recall, reads=True),
    "search": _Tool(Search, _search, reads=True),
    "list": _Tool(List, _list, reads=True),
    "forget": _Tool(Forget, _forget, destroys=True),
}


def make_tools(visit: Callable[[Any], Awaitable[Visit]]) -> Server[Any]:
    """A server of the tools; `visit` gives whose memory a request is about, from the HTTP request where there is one.

    What a tool refuses is told to the agent as the tool's error, so that it can ask better.
    """

    async def listed(context: Any, params: PaginatedRequestParams | None) -> ListToolsResult:
        return ListToolsResult(tools=[tool.told(name) for name, tool in TOOLS.items()])

    async def called(context: Any, params: CallToolRequestParams) -> CallToolResult:
        try:
            if (tool := TOOLS.get(params.name)) is None:
                raise Refused(404, f"there is no tool {params.name!r:.80}: there are {', '.join(TOOLS)}")
            asked = tool.asked.model_validate(params.arguments or {})
            found = await tool.act(await visit(context.request), asked)
        except ValidationError as exc:
            return _failed(malformed(exc.errors()))
        except (BeaconError, Refused, TimeoutError) as exc:
            return _failed(exc)
        except Exception as exc:
            logger.error("the tool %s failed: %s", params.name, type(exc).__name__)
            return _failed(exc)
        text = TextContent(type="text", text=json.dumps(found, ensure_ascii=False))
        return CallToolResult(content=[text], structured_content=found)

    return Server("beacon-memory", version=__version__, instructions=ABOUT, on_list_tools=listed, on_call_tool=called)


def _failed(exc: Exception) -> CallToolResult:
    text = body_of(exc)[1]["error"]["message"]
    return CallToolResult(content=[TextContent(type="text", text=text)], is_error=True)
