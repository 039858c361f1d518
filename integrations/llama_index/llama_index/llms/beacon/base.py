"""An LLM that remembers: what a session holds is read from memory, the rest of the message list is new."""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncGenerator, Callable, Generator, Iterator, Mapping, Sequence
from typing import Any, TypeVar

from llama_index.core.base.llms.types import (
    ChatMessage,
    ChatResponse,
    ChatResponseAsyncGen,
    ChatResponseGen,
    CompletionResponse,
    CompletionResponseAsyncGen,
    CompletionResponseGen,
    LLMMetadata,
    MessageRole,
    ToolCallBlock,
)
from llama_index.core.constants import DEFAULT_CONTEXT_WINDOW, DEFAULT_NUM_OUTPUTS
from llama_index.core.llms.callbacks import llm_chat_callback, llm_completion_callback
from llama_index.core.llms.llm import ToolSelection
from llama_index.core.tools.types import BaseTool
from llama_index.llms.beacon.messages import call_arguments, to_asked
from llama_index.llms.beacon.reference import Reference, take_reference
from llama_index.llms.beacon.responses import chat_pieces, completion, completion_pieces
from llama_index.llms.beacon.settings import BeaconSettings

from beacon_memory.errors import ConfigError, InputError
from beacon_memory.serving.engine import Engine

T = TypeVar("T")


class BeaconLLM(BeaconSettings):
    """An LLM with memory: give it a session, and it has read whatever was said there.

    The session is named per call (`session_id=`) or by the constructor; `session_id=None` in a call asks without
    memory. Send the whole message list or only what is new: what the session holds is not read again (`history`).

    >>> from beacon_memory.testing import scripted_engine
    >>> llm = BeaconLLM(engine=scripted_engine(lambda seen: "Rex!" if "called Rex" in seen else "Noted."))
    >>> llm.complete("My dog is called Rex.", session_id="ada").text
    'Rex!'
    >>> llm.complete("What is my dog called?", session_id="ada").text
    'Rex!'
    >>> llm.complete("What is my dog called?").text
    'Noted.'
    """

    @classmethod
    def class_name(cls) -> str:
        return "BeaconLLM"

    @property
    def metadata(self) -> LLMMetadata:
        """`context_window` is the effective one: what memory holds of it stands in fewer slots."""
        window = self.context_window or self.opened.window(self.beacon_ratio) or DEFAULT_CONTEXT_WINDOW
        return LLMMetadata(
            context_window=window,
            num_output=int(self._sampling({}).get("max_new_tokens", DEFAULT_NUM_OUTPUTS)),
            is_chat_model=self.is_chat_model,
            is_function_calling_model=self.is_chat_model,
            model_name=str(self.model_name or self.opened.name),
        )

    def tokenize(self, text: str) -> list[int]:
        """The ids of a text: for `Memory(tokenizer_fn=llm.tokenize)`, `TokenCountingHandler` and splitters."""
        return self.opened.encode(text)

    # Answers

    @llm_chat_callback()
    def chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        return _last(self._chat(messages, kwargs))

    @llm_chat_callback()
    def stream_chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponseGen:
        return _generator(self._chat(messages, kwargs))

    @llm_chat_callback()
    async def achat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        return await self._whole(lambda: self._chat(messages, kwargs))

    @llm_chat_callback()
    async def astream_chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponseAsyncGen:
        return await self._begun(lambda: self._chat(messages, kwargs))

    @llm_completion_callback()
    def complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:
        return _last(self._complete(prompt, formatted, kwargs))

    @llm_completion_callback()
    def stream_complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponseGen:
        return _generator(self._complete(prompt, formatted, kwargs))

    @llm_completion_callback()
    async def acomplete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:
        return await self._whole(lambda: self._complete(prompt, formatted, kwargs))

    @llm_completion_callback()
    async def astream_complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponseAsyncGen:
        return await self._begun(lambda: self._complete(prompt, formatted, kwargs))

    def _chat(self, messages: Sequence[ChatMessage], kwargs: Mapping[str, Any]) -> Iterator[ChatResponse]:
        """The responses to a message list. What can be refused is refused now, not at the first response."""
        asked = {name: value for name, value in kwargs.items() if name not in _FORM}
        form = {name: kwargs[name] for name in _FORM if kwargs.get(name) is not None}
        reference, messages = take_reference(messages)
        plain = to_asked(messages)
        engine, about = self._remembered(reference, asked)
        reply = engine.reply(
            plain.messages,
            system=plain.system,
            tools=form.get("tools", ()),
            choice=form.get("tool_choice"),
            many=form.get("parallel_tool_calls"),
            schema=form.get("schema"),
            close=plain.folded,
            **self._read(asked),
            **about,
            **self._sampling(asked),
        )
        return chat_pieces(reply, engine=engine)

    def _read(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        """What stands in front, and how much of it may be read again."""
        return {
            "context_id": asked.get("context_id", self.context_id),
            "texts": list(asked.get("texts") or ()),
            "ratio": self.beacon_ratio,
            "recall_tokens": self._recall(asked),
        }

    def _remembered(self, reference: Reference | None, asked: Mapping[str, Any]) -> tuple[Engine, dict[str, Any]]:
        """The engine of a call, and which session of it is read: a memory's reference, else what the call names."""
        engine, name = self.opened, asked.get("session_id", self.session_id)
        if reference is not None:
            if asked.get("session_id") not in (None, reference.session_id):
                raise ConfigError(
                    f"the call names session {asked['session_id']!r}, its messages come from the memory of session "
                    f"{reference.session_id!r}: leave session_id out"
                )
            if not engine.shares(reference.engine):
                raise ConfigError(
                    f"the memory folds by {reference.engine.name!r}, this LLM is another {engine.name!r}: make the "
                    f"memory with llm=, so that they share their weights"
                )
            # The memory writes what was said; here it is read. The documents are this LLM's.
            held = {"session_id": reference.session_id, "behind": reference.messages}
            return reference.engine, {**held, "shelf": engine}
        session = None if name is None else str(name)
        how = {"budget": asked.get("budget", self.budget), "history": asked.get("history", self.history)}
        return engine, {"session_id": session, **how}

    def _complete(self, prompt: str, formatted: bool, kwargs: Mapping[str, Any]) -> Iterator[CompletionResponse]:
        """The responses to a text: a user's message, or where it is `formatted` the prompt as it is."""
        if self.is_chat_model and not formatted:
            message = ChatMessage(role=MessageRole.USER, content=prompt)
            return map(completion, self._chat(self._extend_messages([message]), kwargs))
        if kwargs.get("session_id") is not None:
            raise ConfigError("a formatted prompt is no message: a session cannot remember it; use chat, or complete")
        engine = self.opened
        text = engine.text(prompt, formatted=True, **self._read(kwargs), **self._sampling(kwargs))
        return completion_pieces(text, engine=engine)

    # The edge is asynchronous, the core is not: the work is done on the engine's thread.

    async def _whole(self, begin: Callable[[], Iterator[T]]) -> T:
        last: list[T] = []
        async for response in self.opened.stream(begin):
            last = [response]
        return last[0]

    async def _begun(self, begin: Callable[[], Iterator[T]]) -> AsyncGenerator[T, None]:
        responses = await self.opened.run(begin)

        async def pieces() -> AsyncGenerator[T, None]:
            async for response in self.opened.stream(lambda: responses):
                yield response

        return pieces()

    # Tools

    def _prepare_chat_with_tools(
        self,
        tools: Sequence[BaseTool],
        user_msg: str | ChatMessage | None = None,
        chat_history: list[ChatMessage] | None = None,
        verbose: bool = False,
        allow_parallel_tool_calls: bool = False,
        tool_required: bool = False,
        tool_choice: str | dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> dict[str, Any]:
        if isinstance(user_msg, str):
            user_msg = ChatMessage(role=MessageRole.USER, content=user_msg)
        return {
            "messages": [*(chat_history or []), *([user_msg] if user_msg else [])],
            "tools": [tool.metadata.to_openai_tool(skip_length_check=True) for tool in tools],
            "tool_choice": tool_choice or ("any" if tool_required else "auto"),
            "parallel_tool_calls": allow_parallel_tool_calls,
            **kwargs,
        }

    def get_tool_calls_from_response(
        self, response: ChatResponse, error_on_no_tool_call: bool = True, **kwargs: Any
    ) -> list[ToolSelection]:
        calls = [block for block in response.message.blocks if isinstance(block, ToolCallBlock)]
        if not calls and error_on_no_tool_call:
            raise InputError(f"no tool was called; the model said {response.message.content!r:.120}")
        return [
            ToolSelection(tool_id=call.tool_call_id or "", tool_name=call.tool_name, tool_kwargs=call_arguments(call))
            for call in calls
        ]


_FORM = ("tools", "tool_choice", "parallel_tool_calls", "schema")


def _last(responses: Iterator[T]) -> T:
    return deque(responses, maxlen=1).pop()


def _generator(responses: Iterator[T]) -> Generator[T, None, None]:
    yield from responses
