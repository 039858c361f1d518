"""Structured output: JSON of a class's schema, which the decoding guarantees, whole or as it comes."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Generator
from typing import Any

from llama_index.core.base.llms.types import ChatMessage, ChatResponse
from llama_index.core.instrumentation.events.llm import LLMStructuredPredictEndEvent, LLMStructuredPredictStartEvent
from llama_index.core.llms.function_calling import FunctionCallingLLM
from llama_index.core.program.utils import process_streaming_objects
from llama_index.core.prompts import PromptTemplate
from llama_index.core.types import Model, PydanticProgramMode
from llama_index_instrumentation import get_dispatcher

dispatcher = get_dispatcher(__name__)


class StructuredOutput(FunctionCallingLLM):
    """LlamaIndex's structured calls where `chat` takes `schema=`; other program modes go LlamaIndex's own way."""

    @dispatcher.span
    def structured_predict(
        self,
        output_cls: type[Model],
        prompt: PromptTemplate,
        llm_kwargs: dict[str, Any] | None = None,
        **prompt_args: Any,
    ) -> Model:
        if self.pydantic_program_mode != PydanticProgramMode.DEFAULT:
            found: Model = super().structured_predict(output_cls, prompt, llm_kwargs, **prompt_args)
            return found
        dispatcher.event(
            LLMStructuredPredictStartEvent(output_cls=output_cls, template=prompt, template_args=prompt_args)
        )
        return parsed(output_cls, self.chat(*self._asked(prompt, prompt_args), **form(output_cls, llm_kwargs)))

    @dispatcher.span
    async def astructured_predict(
        self,
        output_cls: type[Model],
        prompt: PromptTemplate,
        llm_kwargs: dict[str, Any] | None = None,
        **prompt_args: Any,
    ) -> Model:
        if self.pydantic_program_mode != PydanticProgramMode.DEFAULT:
            found: Model = await super().astructured_predict(output_cls, prompt, llm_kwargs, **prompt_args)
            return found
        dispatcher.event(
            LLMStructuredPredictStartEvent(output_cls=output_cls, template=prompt, template_args=prompt_args)
        )
        return parsed(output_cls, await self.achat(*self._asked(prompt, prompt_args), **form(output_cls, llm_kwargs)))

    def _structured_stream_call(
        self,
        output_cls: type[Model],
        prompt: PromptTemplate,
        llm_kwargs: dict[str, Any] | None = None,
        **prompt_args: Any,
    ) -> Generator[Any, None, None]:
        if self.pydantic_program_mode != PydanticProgramMode.DEFAULT:
            return super()._structured_stream_call(output_cls, prompt, llm_kwargs, **prompt_args)
        responses = self.stream_chat(*self._asked(prompt, prompt_args), **form(output_cls, llm_kwargs))
        partly = _Partly(output_cls)
        return (partly.read(response) for response in responses)

    async def _structured_astream_call(
        self,
        output_cls: type[Model],
        prompt: PromptTemplate,
        llm_kwargs: dict[str, Any] | None = None,
        **prompt_args: Any,
    ) -> AsyncGenerator[Any, None]:
        if self.pydantic_program_mode != PydanticProgramMode.DEFAULT:
            return await super()._structured_astream_call(output_cls, prompt, llm_kwargs, **prompt_args)
        responses = await self.astream_chat(*self._asked(prompt, prompt_args), **form(output_cls, llm_kwargs))
        partly = _Partly(output_cls)
        return (partly.read(response) async for response in responses)

    def _asked(self, prompt: PromptTemplate, prompt_args: dict[str, Any]) -> list[list[ChatMessage]]:
        return [self._extend_messages(prompt.format_messages(llm=self, **prompt_args))]


class _Partly:
    """What an answer that is not whole yet says so far."""

    def __init__(self, output_cls: type[Any]) -> None:
        self._of = output_cls
        self._found: list[Any] | None = None

    def read(self, response: ChatResponse) -> Any:
        found = process_streaming_objects(response, self._of, cur_objects=self._found)
        self._found = [found]
        return found


def form(output_cls: type[Any], llm_kwargs: dict[str, Any] | None) -> dict[str, Any]:
    """What a call of `chat` is given, for an answer of this class."""
    return {**(llm_kwargs or {}), "schema": output_cls.model_json_schema()}


def parsed(output_cls: type[Model], response: ChatResponse) -> Model:
    """The answer as an object of its class."""
    found = output_cls.model_validate_json(response.message.content or "")
    dispatcher.event(LLMStructuredPredictEndEvent(output=found))
    return found
