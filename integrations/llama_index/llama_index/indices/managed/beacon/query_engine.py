"""A query engine over documents that the model has read."""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, AsyncIterable, Generator, Iterable, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from llama_index.core.base.base_query_engine import BaseQueryEngine
from llama_index.core.base.llms.types import ChatMessage, ChatResponse
from llama_index.core.base.response.schema import (
    RESPONSE_TYPE,
    AsyncStreamingResponse,
    PydanticResponse,
    Response,
    StreamingResponse,
)
from llama_index.core.callbacks.base import CallbackManager
from llama_index.core.callbacks.schema import CBEventType, EventPayload
from llama_index.core.postprocessor.types import BaseNodePostprocessor
from llama_index.core.prompts import BasePromptTemplate
from llama_index.core.prompts.mixin import PromptDictType, PromptMixinType
from llama_index.core.schema import MetadataMode, NodeWithScore, QueryBundle
from llama_index.indices.managed.beacon.answers import (
    EMPTY,
    READ,
    aempty,
    awords,
    empty,
    metadata_of,
    question_template,
    readable,
    structured_reader,
    told,
    words,
)
from llama_index.indices.managed.beacon.passages import source_nodes
from llama_index.indices.managed.beacon.synthesizer import BeaconSynthesizer
from llama_index.llms.beacon.structured import form, parsed
from llama_index_instrumentation import get_dispatcher
from pydantic import BaseModel

from beacon_memory.config import check_recall
from beacon_memory.errors import ConfigError

if TYPE_CHECKING:
    from llama_index.indices.managed.beacon.base import BeaconIndex

dispatcher = get_dispatcher(__name__)
logger = logging.getLogger(__name__)


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
        output_cls: type[BaseModel] | None = None,
        node_postprocessors: Sequence[BaseNodePostprocessor] | None = None,
        verbose: bool = False,
        callback_manager: CallbackManager | None = None,
    ) -> None:
        """In `text_qa_template`, {query_str} is the question; {context_str} only points to what was read.

        `recall_tokens` of what the question is about are read again, at most (default: the LLM's). Passages that score
        less than `similarity_cutoff` are no `source_nodes`. With `output_cls`, or a structured LLM, answers are of that
        class: `PydanticResponse`, never streamed. With `node_postprocessors` only the nodes that they leave are read,
        in their order. `verbose` logs what an answer took. Raises ConfigError.
        """
        self._recall = None if recall_tokens is None else check_recall(recall_tokens)
        if not isinstance(similarity_cutoff, float | int | None):
            raise ConfigError(f"similarity_cutoff is a number, not {similarity_cutoff!r:.80}")
        self._cutoff = similarity_cutoff
        self._index = index
        self._llm, self._output_cls = structured_reader(llm, output_cls, streaming=streaming, default=index.llm)
        self._streaming = streaming
        self._text_qa_template = question_template(text_qa_template)
        self._postprocessors = _postprocessors(node_postprocessors)
        self._verbose = verbose
        super().__init__(callback_manager or self._llm.callback_manager)
        for postprocessor in self._postprocessors:
            postprocessor.callback_manager = self.callback_manager

    def _get_prompts(self) -> PromptDictType:
        return {"text_qa_template": self._text_qa_template}

    def _update_prompts(self, prompts: PromptDictType) -> None:
        self._text_qa_template = prompts.get("text_qa_template", self._text_qa_template)

    def _get_prompt_modules(self) -> PromptMixinType:
        return {}

    def retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        """All nodes in the order in which they are read, or those that the postprocessors leave."""
        nodes = self._index.as_retriever().retrieve(query_bundle)
        for postprocessor in self._postprocessors:
            nodes = postprocessor.postprocess_nodes(nodes, query_bundle=query_bundle)
        return nodes

    async def aretrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        """The same, asynchronously."""
        nodes = await self._index.as_retriever().aretrieve(query_bundle)
        for postprocessor in self._postprocessors:
            nodes = await postprocessor.apostprocess_nodes(nodes, query_bundle=query_bundle)
        return nodes

    def synthesize(
        self,
        query_bundle: QueryBundle,
        nodes: list[NodeWithScore],
        additional_source_nodes: Sequence[NodeWithScore] | None = None,
    ) -> RESPONSE_TYPE:
        """An answer from these nodes alone, each folded by itself."""
        return self._synthesizer.synthesize(query_bundle, nodes, additional_source_nodes)

    async def asynthesize(
        self,
        query_bundle: QueryBundle,
        nodes: list[NodeWithScore],
        additional_source_nodes: Sequence[NodeWithScore] | None = None,
    ) -> RESPONSE_TYPE:
        """The same, asynchronously."""
        return await self._synthesizer.asynthesize(query_bundle, nodes, additional_source_nodes)

    @dispatcher.span
    def _query(self, query_bundle: QueryBundle) -> RESPONSE_TYPE:
        with self._event(query_bundle) as ended:
            nodes, messages = self.retrieve(query_bundle), self._messages(query_bundle)
            how = self._how(nodes)
            response: RESPONSE_TYPE
            if self._streaming:
                about = metadata_of(nodes)
                pieces = self._words(self._llm.stream_chat(messages, **how), nodes, about) if nodes else empty()
                response = StreamingResponse(pieces, nodes, about)
            elif nodes:
                response = self._response(self._llm.chat(messages, **how), nodes)
            else:
                response = Response(EMPTY)
            ended.append(response)
        return response

    @dispatcher.span
    async def _aquery(self, query_bundle: QueryBundle) -> RESPONSE_TYPE:
        with self._event(query_bundle) as ended:
            nodes, messages = await self.aretrieve(query_bundle), self._messages(query_bundle)
            how = self._how(nodes)
            response: RESPONSE_TYPE
            if self._streaming:
                about = metadata_of(nodes)
                responses = await self._llm.astream_chat(messages, **how) if nodes else None
                pieces = aempty() if responses is None else self._awords(responses, nodes, about)
                response = AsyncStreamingResponse(pieces, nodes, about)
            elif nodes:
                response = self._response(await self._llm.achat(messages, **how), nodes)
            else:
                response = Response(EMPTY)
            ended.append(response)
        return response

    def _how(self, nodes: list[NodeWithScore]) -> dict[str, Any]:
        """In front of a question stand the documents, or the nodes that postprocessors left, and no talk. Of these,
        `nodes` become those that can be read.
        """
        how: dict[str, Any] = {"context_id": self._index.index_id, "session_id": None}
        if self._postprocessors:
            texts = readable([found.node.get_content(MetadataMode.LLM) for found in nodes])
            nodes[:] = [nodes[n] for n in texts]
            how = {"texts": list(texts.values()), "session_id": None}
        if self._recall is not None:
            how["recall_tokens"] = self._recall
        return how if self._output_cls is None else form(self._output_cls, how)

    @property
    def _synthesizer(self) -> BeaconSynthesizer:
        how: dict[str, Any] = {"streaming": self._streaming, "output_cls": self._output_cls}
        return BeaconSynthesizer(self._llm, text_qa_template=self._text_qa_template, recall_tokens=self._recall, **how)

    def _response(self, said: ChatResponse, nodes: list[NodeWithScore]) -> RESPONSE_TYPE:
        about = told(said)
        self._looked(nodes, about)
        if self._output_cls is None:
            return Response(said.message.content, nodes, about)
        return PydanticResponse(parsed(self._output_cls, said), nodes, about)

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
        if self._verbose:
            logger.info("%d nodes read: %s", len(nodes), about)
        nodes[:] = source_nodes(about, nodes, cutoff=self._cutoff)
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


def _postprocessors(given: Sequence[BaseNodePostprocessor] | None) -> list[BaseNodePostprocessor]:
    found = list(given) if isinstance(given, Sequence) else [given] if given is not None else []
    if wrong := [one for one in found if not isinstance(one, BaseNodePostprocessor)]:
        raise ConfigError(f"node_postprocessors are a list of LlamaIndex's, not {wrong[0]!r:.80}")
    return found
