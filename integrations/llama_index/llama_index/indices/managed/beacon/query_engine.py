"""A query engine over documents that the model has read."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterable, Generator, Iterable
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from llama_index.core.base.base_query_engine import BaseQueryEngine
from llama_index.core.base.llms.types import ChatMessage, ChatResponse
from llama_index.core.base.response.schema import RESPONSE_TYPE, AsyncStreamingResponse, Response, StreamingResponse
from llama_index.core.callbacks.base import CallbackManager
from llama_index.core.callbacks.schema import CBEventType, EventPayload
from llama_index.core.prompts import BasePromptTemplate, PromptTemplate, PromptType
from llama_index.core.prompts.mixin import PromptDictType, PromptMixinType
from llama_index.core.schema import NodeWithScore, QueryBundle
from llama_index.indices.managed.beacon.answers import EMPTY, aempty, awords, empty, metadata_of, reader, told, words
from llama_index.indices.managed.beacon.passages import source_nodes
from llama_index_instrumentation import get_dispatcher

from beacon_memory.config import check_recall

if TYPE_CHECKING:
    from llama_index.indices.managed.beacon.base import BeaconIndex

dispatcher = get_dispatcher(__name__)

# A small model, asked alone, may not look back at a text that stood in front of the talk.
QUESTION = PromptTemplate("According to the text above: {query_str}", prompt_type=PromptType.QUESTION_ANSWER)
READ = "(all that you have read above)"  # what a template's {context_str} becomes: the text itself is in memory


class BeaconQueryEngine(BaseQueryEngine):
    """Answers behind all documents of an index. `source_nodes` are the passages that were read again, the best first,
    with their scores; where none was, all nodes, without a score.

    `metadata` has the nodes' by their ids, and `usage` (tokens) and `beacon` (slots) of the answer; those of a stream
    are there once it is whole.
    """

    def __init__(
        self,
        index: BeaconIndex,
        *,
        llm: Any = None,
        streaming: bool = False,
        text_qa_template: BasePromptTemplate | None = None,
        recall_tokens: int | None = None,
        similarity_cutoff: float | None = None,
        callback_manager: CallbackManager | None = None,
    ) -> None:
        """In `text_qa_template`, {query_str} is the question; {context_str} only points to what was read.

        `recall_tokens` of what the question is about are read again, at most (default: the LLM's). Passages that score
        less than `similarity_cutoff` are no `source_nodes`. Raises ConfigError.
        """
        self._recall = None if recall_tokens is None else check_recall(recall_tokens)
        self._cutoff = similarity_cutoff
        self._index = index
        self._llm = reader(llm, index.llm)
        self._streaming = streaming
        self._text_qa_template = text_qa_template or QUESTION
        super().__init__(callback_manager or self._llm.callback_manager)

    def _get_prompts(self) -> PromptDictType:
        return {"text_qa_template": self._text_qa_template}

    def _update_prompts(self, prompts: PromptDictType) -> None:
        self._text_qa_template = prompts.get("text_qa_template", self._text_qa_template)

    def _get_prompt_modules(self) -> PromptMixinType:
        return {}

    def retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        """All nodes, in the order in which they are read."""
        return self._index.as_retriever().retrieve(query_bundle)

    async def aretrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        """All nodes, in the order in which they are read."""
        return await self._index.as_retriever().aretrieve(query_bundle)

    @dispatcher.span
    def _query(self, query_bundle: QueryBundle) -> RESPONSE_TYPE:
        with self._event(query_bundle) as ended:
            nodes, messages = self._sources(), self._messages(query_bundle)
            response: RESPONSE_TYPE
            if self._streaming:
                about = metadata_of(nodes)
                pieces = self._words(self._llm.stream_chat(messages, **self._how), nodes, about) if nodes else empty()
                response = StreamingResponse(pieces, nodes, about)
            elif nodes:
                response = self._response(self._llm.chat(messages, **self._how), nodes)
            else:
                response = Response(EMPTY)
            ended.append(response)
        return response

    @dispatcher.span
    async def _aquery(self, query_bundle: QueryBundle) -> RESPONSE_TYPE:
        with self._event(query_bundle) as ended:
            nodes, messages = await self._index.engine.run(self._sources), self._messages(query_bundle)
            response: RESPONSE_TYPE
            if self._streaming:
                about = metadata_of(nodes)
                responses = await self._llm.astream_chat(messages, **self._how) if nodes else None
                pieces = aempty() if responses is None else self._awords(responses, nodes, about)
                response = AsyncStreamingResponse(pieces, nodes, about)
            elif nodes:
                response = self._response(await self._llm.achat(messages, **self._how), nodes)
            else:
                response = Response(EMPTY)
            ended.append(response)
        return response

    @property
    def _how(self) -> dict[str, Any]:
        """In front of a question stand the documents, and no talk."""
        recall = {} if self._recall is None else {"recall_tokens": self._recall}
        return {"context_id": self._index.index_id, "session_id": None, **recall}

    def _sources(self) -> list[NodeWithScore]:
        return [NodeWithScore(node=node) for node in self._index.nodes()]

    def _response(self, said: ChatResponse, nodes: list[NodeWithScore]) -> Response:
        about = told(said)
        self._looked(nodes, about)
        return Response(said.message.content, nodes, metadata_of(nodes) | about)

    def _words(
        self, responses: Iterable[ChatResponse], nodes: list[NodeWithScore], about: dict[str, Any]
    ) -> Generator[str, None, None]:
        """The words of a stream; once they are whole, `nodes` are what was read again."""
        yield from words(responses, about)
        self._looked(nodes, about)

    async def _awords(
        self, responses: AsyncIterable[ChatResponse], nodes: list[NodeWithScore], about: dict[str, Any]
    ) -> AsyncGenerator[str, None]:
        async for word in awords(responses, about):
            yield word
        self._looked(nodes, about)

    def _looked(self, nodes: list[NodeWithScore], about: dict[str, Any]) -> None:
        """Make the nodes those of what was read again, and tell their metadata too."""
        nodes[:] = source_nodes(about, [found.node for found in nodes], cutoff=self._cutoff)
        about |= metadata_of(nodes)

    def _messages(self, query: QueryBundle) -> list[ChatMessage]:
        template = self._text_qa_template
        return template.format_messages(llm=self._llm, query_str=query.query_str, context_str=READ)

    @contextmanager
    def _event(self, query: QueryBundle) -> Generator[list[RESPONSE_TYPE], None, None]:
        """A query event around what is done within; the response is appended."""
        ended: list[RESPONSE_TYPE] = []
        payload: dict[str, Any] = {EventPayload.QUERY_STR: query.query_str}
        with self.callback_manager.event(CBEventType.QUERY, payload=payload) as event:
            yield ended
            event.on_end(payload={EventPayload.RESPONSE: ended[-1]})
