"""A chat engine in front of whose talk stand documents that the model has read."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Generator, Sequence
from typing import TYPE_CHECKING, Any

from llama_index.core.base.llms.types import ChatMessage, ChatResponse, MessageRole
from llama_index.core.callbacks import CallbackManager, trace_method
from llama_index.core.chat_engine.types import AgentChatResponse, BaseChatEngine, StreamingAgentChatResponse
from llama_index.core.instrumentation.events.chat_engine import (
    StreamChatDeltaReceivedEvent,
    StreamChatEndEvent,
    StreamChatErrorEvent,
    StreamChatStartEvent,
)
from llama_index.core.memory import BaseMemory
from llama_index.core.schema import BaseNode, NodeWithScore
from llama_index.indices.managed.beacon.answers import metadata_of, reader, told
from llama_index.indices.managed.beacon.passages import source_nodes
from llama_index.llms.beacon.messages import from_plain
from llama_index_instrumentation import get_dispatcher

from beacon_memory.config import check_recall
from beacon_memory.errors import ConfigError, SessionNotFound
from beacon_memory.state.info import DOCUMENT

if TYPE_CHECKING:
    from llama_index.indices.managed.beacon.base import BeaconIndex

dispatcher = get_dispatcher(__name__)


class BeaconChatEngine(BaseChatEngine):
    """A talk behind all documents of an index.

    The talk is kept in `session_id` of the LLM's store, where it is folded and nothing of it is read twice; or in a
    `memory` of LlamaIndex's; or, with neither, in this object alone. A turn that fails, or a stream that is left before
    its end, is not remembered. `source_nodes` are the passages of documents and talk that were read again for the
    answer, the best first, with their scores; where none was, all nodes of the index. A stream's are there at its end.
    """

    def __init__(
        self,
        index: BeaconIndex,
        *,
        llm: Any = None,
        session_id: str | None = None,
        memory: BaseMemory | None = None,
        chat_history: Sequence[ChatMessage] | None = None,
        system_prompt: str | None = None,
        prefix_messages: Sequence[ChatMessage] | None = None,
        recall_tokens: int | None = None,
        callback_manager: CallbackManager | None = None,
    ) -> None:
        """`system_prompt` or `prefix_messages` stand in front of each turn and are not remembered; `chat_history`
        replaces what was said before. `recall_tokens` of what a turn is about are read again, at most (default: the
        LLM's). Raises ConfigError.
        """
        self._recall = None if recall_tokens is None else check_recall(recall_tokens)
        if session_id is not None and memory is not None:
            raise ConfigError("a talk is kept in one place: give session_id or memory")
        if system_prompt is not None and prefix_messages is not None:
            raise ConfigError("give system_prompt or prefix_messages, not both")
        self._index = index
        self._llm = reader(llm, index.llm)
        self._session_id, self._memory = session_id, memory
        self._prefix = list(prefix_messages or ())
        if system_prompt is not None:
            self._prefix = [ChatMessage(role=MessageRole.SYSTEM, content=system_prompt)]
        if session_id is not None and any(message.role != MessageRole.SYSTEM for message in self._prefix):
            raise ConfigError("in a session prefix_messages are system prompts alone: what was said is in the session")
        self._said: list[ChatMessage] = list(chat_history or ())
        # In a session, a talk that is to take the place of the one that is kept: it does with the next turn.
        self._instead = None if session_id is None or chat_history is None else list(chat_history)
        if memory is not None and chat_history is not None:
            memory.set(list(chat_history))
        self.callback_manager = callback_manager or self._llm.callback_manager

    @property
    def chat_history(self) -> list[ChatMessage]:
        """What was said, oldest first."""
        if self._memory is not None:
            return list(self._memory.get_all())
        if self._session_id is None or self._instead is not None:
            return list(self._said)
        try:
            messages = self._llm.opened.session(self._session_id).messages()
        except SessionNotFound:
            return []
        return [from_plain(message) for message in messages if message["role"] != DOCUMENT]

    def reset(self) -> None:
        """Forget what was said, every byte of it; the documents stay."""
        self._said, self._instead = [], None
        if self._memory is not None:
            self._memory.reset()
        if self._session_id is not None:
            try:
                self._llm.opened.session(self._session_id).forget()
            except SessionNotFound:
                return

    @dispatcher.span
    @trace_method("chat")
    def chat(self, message: str, chat_history: list[ChatMessage] | None = None) -> AgentChatResponse:
        """One turn; `chat_history` replaces what was said before it."""
        asked, how = self._begun(message, chat_history)
        response = self._llm.chat(asked, **how)
        self._remember(message, response)
        return _answer(response, self._index.nodes())

    @dispatcher.span
    @trace_method("chat")
    def stream_chat(self, message: str, chat_history: list[ChatMessage] | None = None) -> StreamingAgentChatResponse:
        """The same, in pieces; the turn is remembered once they have all been read."""
        asked, how = self._begun(message, chat_history)
        responses, nodes = self._llm.stream_chat(asked, **how), self._nodes()

        def pieces() -> Generator[ChatResponse, None, None]:
            dispatcher.event(StreamChatStartEvent())
            try:
                for response in responses:
                    if response.delta:
                        dispatcher.event(StreamChatDeltaReceivedEvent(delta=response.delta))
                    yield response
                self._remember(message, response)
                nodes[:] = _looked(response, nodes)
            except Exception as exc:
                dispatcher.event(StreamChatErrorEvent(exception=exc))
                raise
            dispatcher.event(StreamChatEndEvent())

        return StreamingAgentChatResponse(chat_stream=pieces(), source_nodes=nodes, is_writing_to_memory=False)

    @dispatcher.span
    @trace_method("chat")
    async def achat(self, message: str, chat_history: list[ChatMessage] | None = None) -> AgentChatResponse:
        """One turn; `chat_history` replaces what was said before it."""
        asked, how = await self._abegun(message, chat_history)
        response = await self._llm.achat(asked, **how)
        await self._aremember(message, response)
        return _answer(response, await self._index.engine.run(self._index.nodes))

    @dispatcher.span
    @trace_method("chat")
    async def astream_chat(
        self, message: str, chat_history: list[ChatMessage] | None = None
    ) -> StreamingAgentChatResponse:
        """The same, in pieces; the turn is remembered once they have all been read."""
        asked, how = await self._abegun(message, chat_history)
        responses = await self._llm.astream_chat(asked, **how)
        nodes = await self._index.engine.run(self._nodes)

        async def pieces() -> AsyncGenerator[ChatResponse, None]:
            dispatcher.event(StreamChatStartEvent())
            try:
                async for response in responses:
                    if response.delta:
                        dispatcher.event(StreamChatDeltaReceivedEvent(delta=response.delta))
                    yield response
                await self._aremember(message, response)
                nodes[:] = _looked(response, nodes)
            except Exception as exc:
                dispatcher.event(StreamChatErrorEvent(exception=exc))
                raise
            dispatcher.event(StreamChatEndEvent())

        return StreamingAgentChatResponse(
            achat_stream=pieces(),
            source_nodes=nodes,
            is_writing_to_memory=False,
        )

    def _begun(
        self, message: str, chat_history: Sequence[ChatMessage] | None
    ) -> tuple[list[ChatMessage], dict[str, Any]]:
        """The messages of a turn, and where it is read."""
        if self._memory is not None:
            if chat_history is not None:
                self._memory.set(list(chat_history))
            return self._asked(message, self._memory.get(input=message))
        return self._asked(message, self._earlier(chat_history))

    async def _abegun(
        self, message: str, chat_history: Sequence[ChatMessage] | None
    ) -> tuple[list[ChatMessage], dict[str, Any]]:
        if self._memory is not None:
            if chat_history is not None:
                await self._memory.aset(list(chat_history))
            return self._asked(message, await self._memory.aget(input=message))
        return self._asked(message, self._earlier(chat_history))

    def _earlier(self, chat_history: Sequence[ChatMessage] | None) -> list[ChatMessage]:
        """What stands before a turn, of a talk that no memory keeps; what a session keeps need not be sent."""
        if chat_history is not None:
            self._said = list(chat_history)
            self._instead = None if self._session_id is None else self._said
        return self._said if self._session_id is None else (self._instead or [])

    def _asked(self, message: str, earlier: Sequence[ChatMessage]) -> tuple[list[ChatMessage], dict[str, Any]]:
        how: dict[str, Any] = {"context_id": self._index.index_id, "session_id": self._session_id}
        if self._recall is not None:
            how["recall_tokens"] = self._recall
        if self._session_id is not None:
            how["history"] = "append" if self._instead is None else "full"
        return [*self._prefix, *earlier, ChatMessage(role=MessageRole.USER, content=message)], how

    def _remember(self, message: str, response: ChatResponse) -> None:
        """Keep a whole turn; in a session it is kept already."""
        turn = [ChatMessage(role=MessageRole.USER, content=message), response.message]
        if self._memory is not None:
            self._memory.put_messages(turn)
        else:
            self._kept(turn)

    async def _aremember(self, message: str, response: ChatResponse) -> None:
        turn = [ChatMessage(role=MessageRole.USER, content=message), response.message]
        if self._memory is not None:
            await self._memory.aput_messages(turn)
        else:
            self._kept(turn)

    def _kept(self, turn: Sequence[ChatMessage]) -> None:
        self._said = [] if self._session_id is not None else [*self._said, *turn]
        self._instead = None

    def _nodes(self) -> list[NodeWithScore]:
        return [NodeWithScore(node=node) for node in self._index.nodes()]


def _looked(response: ChatResponse, nodes: list[NodeWithScore]) -> list[NodeWithScore]:
    """What was read again for a whole response, of these nodes."""
    return source_nodes(told(response), nodes)


def _answer(response: ChatResponse, every: Sequence[BaseNode]) -> AgentChatResponse:
    about = told(response)
    nodes = source_nodes(about, [NodeWithScore(node=node) for node in every])
    return AgentChatResponse(
        response=response.message.content or "", source_nodes=nodes, metadata=metadata_of(nodes) | about
    )
