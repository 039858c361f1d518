"""A text model: many prompts in one batch, documents in front of them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import Any, Self

from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun
from langchain_core.language_models import BaseLLM
from langchain_core.outputs import Generation, GenerationChunk, LLMResult
from pydantic import model_validator

from beacon_memory.prompt import read_prompt
from beacon_memory.state import BeaconState
from beacon_memory.version import __version__
from langchain_beacon.errors import translated
from langchain_beacon.settings import BeaconSettings


class BeaconLLM(BeaconSettings, BaseLLM):
    """Text in, text out, without a chat template; what does not fit the model's window is folded.

    >>> from beacon_memory.testing import scripted_engine
    >>> llm = BeaconLLM(engine=scripted_engine(lambda seen: " blue." if "sky" in seen else " ?"))
    >>> llm.batch(["The sky is", "And now"])
    [' blue.', ' ?']
    """

    @model_validator(mode="after")
    def _set_beacon_llm_version(self) -> Self:
        self._add_version("langchain-beacon", __version__)
        return self

    @property
    def _llm_type(self) -> str:
        return "beacon"

    @property
    def _identifying_params(self) -> dict[str, Any]:
        names = ("temperature", "top_p", "top_k", "max_tokens", "seed", "stop", "context_id")
        return {"model_name": self.model} | {name: getattr(self, name) for name in names}

    def _generate(
        self,
        prompts: list[str],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> LLMResult:
        with translated():
            sampling = self._sampling(stop, kwargs)
            read = [self._read(prompt, sampling, kwargs) for prompt in prompts]
            answers = self.opened.memory.model.answers(
                [ids for ids, _ in read], [state for _, state in read], **sampling
            )
        told = sum(len(ids) + state.tokens for ids, state in read)
        made = sum(answer.tokens for answer in answers)
        usage = {"prompt_tokens": told, "completion_tokens": made, "total_tokens": told + made}
        return LLMResult(
            generations=[
                [Generation(text=answer.text, generation_info={"finish_reason": answer.finish})] for answer in answers
            ],
            llm_output={"token_usage": usage, "model_name": self.model},
        )

    async def _agenerate(
        self,
        prompts: list[str],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> LLMResult:
        return await self.opened.run(lambda: self._generate(prompts, stop, None, **kwargs))

    def _stream(
        self,
        prompt: str,
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[GenerationChunk]:
        for chunk in self._pieces(prompt, stop, kwargs):
            if run_manager:
                run_manager.on_llm_new_token(chunk.text, chunk=chunk)
            yield chunk

    async def _astream(
        self,
        prompt: str,
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[GenerationChunk]:
        async for chunk in self.opened.stream(lambda: self._pieces(prompt, stop, kwargs)):
            if run_manager:
                await run_manager.on_llm_new_token(chunk.text, chunk=chunk)
            yield chunk

    def _pieces(self, prompt: str, stop: list[str] | None, kwargs: dict[str, Any]) -> Iterator[GenerationChunk]:
        with translated():
            sampling = self._sampling(stop, kwargs)
            ids, state = self._read(prompt, sampling, kwargs)
            stream = self.opened.memory.model.stream(ids, state, **sampling)
            try:
                for piece in stream:
                    yield GenerationChunk(text=piece)
            finally:
                stream.close()
            assert stream.answer is not None
            yield GenerationChunk(text="", generation_info={"finish_reason": stream.answer.finish})

    def _read(self, prompt: str, sampling: dict[str, Any], kwargs: dict[str, Any]) -> tuple[list[int], BeaconState]:
        """A prompt's ids, and the state in front of them: documents, and what does not fit raw."""
        memory = self.opened.memory
        answer = int(sampling.get("max_new_tokens", 256))
        return read_prompt(
            memory, memory.model.encode(prompt), contexts=self._contexts(kwargs), answer=answer, ratio=self.beacon_ratio
        )

    def get_token_ids(self, text: str) -> list[int]:
        return self.opened.memory.model.encode(text)
