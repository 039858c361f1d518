"""For people who keep their retriever: what was found is folded, chunk by chunk, and read at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llama_index.core.base.llms.types import ChatMessage
from llama_index.core.callbacks.base import CallbackManager
from llama_index.core.prompts import BasePromptTemplate
from llama_index.core.prompts.mixin import PromptDictType
from llama_index.core.response_synthesizers import BaseSynthesizer
from llama_index.core.settings import Settings
from llama_index.core.types import RESPONSE_TEXT_TYPE
from llama_index.indices.managed.beacon.answers import (
    READ,
    awords,
    question_template,
    readable,
    structured_reader,
    words,
)
from llama_index.llms.beacon.structured import form, parsed
from pydantic import BaseModel

from beacon_memory.config import check_recall


class BeaconSynthesizer(BaseSynthesizer):
    """One answer behind all chunks, each folded by itself: a chunk that comes again is not folded again.

    >>> from beacon_memory.testing import scripted_engine
    >>> llm = BeaconLLM(engine=scripted_engine(lambda seen: "In May." if "ends in May" in seen else "?"))
    >>> BeaconSynthesizer(llm=llm).get_response("When?", ["The lease ends in May.", "The door is green."])
    'In May.'
    """

    def __init__(
        self,
        llm: Any = None,
        *,
        streaming: bool = False,
        text_qa_template: BasePromptTemplate | None = None,
        output_cls: type[BaseModel] | None = None,
        recall_tokens: int | None = None,
        callback_manager: CallbackManager | None = None,
    ) -> None:
        """`text_qa_template`, `output_cls`, `recall_tokens` and a structured LLM as `BeaconQueryEngine` takes them."""
        self._recall = None if recall_tokens is None else check_recall(recall_tokens)
        self._beacon, output_cls = structured_reader(llm or Settings._llm, output_cls, streaming=streaming)
        how: dict[str, Any] = {"callback_manager": callback_manager, "streaming": streaming}
        super().__init__(llm=self._beacon, output_cls=output_cls, **how)
        self._text_qa_template = question_template(text_qa_template)

    def _get_prompts(self) -> PromptDictType:
        return {"text_qa_template": self._text_qa_template}

    def _update_prompts(self, prompts: PromptDictType) -> None:
        self._text_qa_template = prompts.get("text_qa_template", self._text_qa_template)

    def get_response(self, query_str: str, text_chunks: Sequence[str], **response_kwargs: Any) -> RESPONSE_TEXT_TYPE:
        messages, how = self._asked(query_str, text_chunks)
        if self._streaming:
            return words(self._beacon.stream_chat(messages, **how), {})
        said = self._beacon.chat(messages, **how)
        return parsed(self._output_cls, said) if self._output_cls else said.message.content or ""

    async def aget_response(
        self, query_str: str, text_chunks: Sequence[str], **response_kwargs: Any
    ) -> RESPONSE_TEXT_TYPE:
        messages, how = self._asked(query_str, text_chunks)
        if self._streaming:
            return awords(await self._beacon.astream_chat(messages, **how), {})
        said = await self._beacon.achat(messages, **how)
        return parsed(self._output_cls, said) if self._output_cls else said.message.content or ""

    def _asked(self, query_str: str, text_chunks: Sequence[str]) -> tuple[list[ChatMessage], dict[str, Any]]:
        messages = self._text_qa_template.format_messages(llm=self._beacon, query_str=query_str, context_str=READ)
        how: dict[str, Any] = {"texts": list(readable(text_chunks).values()), "session_id": None}
        if self._recall is not None:
            how["recall_tokens"] = self._recall
        return messages, form(self._output_cls, how) if self._output_cls else how
