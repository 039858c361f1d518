"""A text model: many prompts in one batch, documents in front of them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Sized
from typing import TYPE_CHECKING, Any, Self

from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun
from langchain_core.language_models import BaseLLM, LanguageModelInput
from langchain_core.outputs import Generation, GenerationChunk, LLMResult
from langchain_core.runnables.config import get_config_list
from pydantic import model_validator

from beacon_memory.state.info import Completion
from beacon_memory.version import __version__
from langchain_beacon.errors import translated
from langchain_beacon.sessions import BeaconSessions

if TYPE_CHECKING:
    from beacon_memory.client.reply import RemoteReply, RemoteText
    from beacon_memory.sessions.reply import Reply, TextReply

    Pieces = Reply | TextReply | RemoteReply | RemoteText


class BeaconLLM(BeaconSessions, BaseLLM):
    """Text in, text out, without a chat template; what does not fit the model's window is folded.

    With a session, named as for `ChatBeacon`, a prompt is what the user says next there, in the chat's template, and
    the answer is remembered: both classes know the same sessions.

    >>> from beacon_memory.testing import scripted_engine
    >>> llm = BeaconLLM(engine=scripted_engine(lambda seen: " blue." if "sky" in seen else " ?"))
    >>> llm.batch(["The sky is", "And now"])
    [' blue.', ' ?']
    >>> llm.invoke("The sky is", session_id="ada"), llm.invoke("And now", session_id="ada")
    (' blue.', ' blue.')
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

    def batch(
        self, inputs: list[LanguageModelInput], config: Any = None, *, return_exceptions: bool = False, **kwargs: Any
    ) -> list[str]:
        """The answers, in one batch; with `return_exceptions`, a prompt that fails takes no other one with it."""
        configs = get_config_list(config, len(inputs)) if inputs else []
        talking = self._talking(configs, kwargs)
        try:
            if not talking:
                return super().batch(inputs, config, **kwargs)
            if len(inputs) == 1 or not return_exceptions:
                return [self.invoke(prompt, one, **kwargs) for prompt, one in zip(inputs, configs, strict=True)]
        except Exception as exc:
            if not return_exceptions:
                raise
            if len(inputs) == 1:
                return [exc]  # type: ignore[list-item]
        said: list[str] = []
        for part in _parts(inputs, talking=talking):
            said += self.batch(inputs[part], configs[part], return_exceptions=True, **kwargs)
        return said

    async def abatch(
        self, inputs: list[LanguageModelInput], config: Any = None, *, return_exceptions: bool = False, **kwargs: Any
    ) -> list[str]:
        configs = get_config_list(config, len(inputs)) if inputs else []
        talking = self._talking(configs, kwargs)
        try:
            if not talking:
                return await super().abatch(inputs, config, **kwargs)
            if len(inputs) == 1 or not return_exceptions:
                return [await self.ainvoke(prompt, one, **kwargs) for prompt, one in zip(inputs, configs, strict=True)]
        except Exception as exc:
            if not return_exceptions:
                raise
            if len(inputs) == 1:
                return [exc]  # type: ignore[list-item]
        said: list[str] = []
        for part in _parts(inputs, talking=talking):
            said += await self.abatch(inputs[part], configs[part], return_exceptions=True, **kwargs)
        return said

    def _talking(self, configs: list[Any], kwargs: dict[str, Any]) -> bool:
        """Whether a prompt belongs to a session: what is said there is said in order, not in one batch."""
        return any(self._session_id(self._lifted(one, kwargs)) is not None for one in configs)

    def generate(self, prompts: list[str], *args: Any, **kwargs: Any) -> LLMResult:
        return super(BeaconLLM, self._uncached(kwargs)).generate(prompts, *args, **kwargs)

    async def agenerate(self, prompts: list[str], *args: Any, **kwargs: Any) -> LLMResult:
        return await super(BeaconLLM, self._uncached(kwargs)).agenerate(prompts, *args, **kwargs)

    def _generate(
        self,
        prompts: list[str],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> LLMResult:
        with translated():
            sampling = self._sampling(stop, kwargs)
            if self._session_id(kwargs) is None:
                answers = self.opened.texts(prompts, **self._read(kwargs), **sampling)
                said = [(answer.text, _looked(answer)) for answer in answers]
                told = sum(answer.tokens for answer in answers)
                made = sum(answer.answer for answer in answers)
            else:
                replies = [self._reply(prompt, sampling, kwargs) for prompt in prompts]
                said = [("".join(reply), _about(reply)) for reply in replies]
                told = sum(reply.usage.tokens for reply in replies)
                made = sum(reply.usage.answer for reply in replies)
        usage = {"prompt_tokens": told, "completion_tokens": made, "total_tokens": told + made}
        return LLMResult(
            generations=[[Generation(text=text, generation_info=about)] for text, about in said],
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
            if self._session_id(kwargs) is None:
                text = self.opened.text(prompt, **self._read(kwargs), **sampling)
                yield from _chunks(text)
                yield GenerationChunk(text="", generation_info=_looked(text.completion))
                return
            reply = self._reply(prompt, sampling, kwargs)
            yield from _chunks(reply)
            yield GenerationChunk(text="", generation_info=_about(reply))

    def _reply(self, prompt: str, sampling: dict[str, Any], kwargs: dict[str, Any]) -> Reply | RemoteReply:
        """What a session answers to what is said there next."""
        asked = [{"role": "user", "content": prompt}]
        return self.opened.reply(asked, history="append", **self._asked(kwargs), **sampling)

    def _read(self, kwargs: dict[str, Any]) -> dict[str, Any]:
        """What a prompt without a session is read with."""
        names = ("context_id", "ratio", "recall_tokens")
        return {name: value for name, value in self._asked(kwargs).items() if name in names}

    def get_token_ids(self, text: str) -> list[int]:
        with translated():
            return self.opened.encode(text)


def _parts(inputs: Sized, *, talking: bool) -> list[slice]:
    """What to try again of a batch that failed: its halves; in sessions each prompt alone, once."""
    size = 1 if talking else (len(inputs) + 1) // 2
    return [slice(n, n + size) for n in range(0, len(inputs), size)]


def _chunks(pieces: Pieces) -> Iterator[GenerationChunk]:
    try:
        for piece in pieces:
            yield GenerationChunk(text=piece)
    finally:
        pieces.close()


def _looked(answer: Completion) -> dict[str, Any]:
    """What is told of an answer to a bare prompt: also what was read again for it, where anything was."""
    found = {"beacon": {"sources": list(answer.sources)}} if answer.sources else {}
    return {"finish_reason": answer.finish, **found}


def _about(reply: Reply | RemoteReply) -> dict[str, Any]:
    return {"finish_reason": reply.finish, "beacon": reply.physical}
