"""A chat model that remembers: what a session holds is read from memory, the rest of the message list is new."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from operator import itemgetter
from typing import Any, Literal, Self

from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun
from langchain_core.exceptions import ModelNotFoundError
from langchain_core.language_models import BaseChatModel, LanguageModelInput, ModelProfile
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage
from langchain_core.messages.ai import UsageMetadata
from langchain_core.messages.tool import invalid_tool_call, tool_call, tool_call_chunk
from langchain_core.output_parsers import JsonOutputParser, PydanticOutputParser
from langchain_core.output_parsers.openai_tools import JsonOutputKeyToolsParser, PydanticToolsParser
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from langchain_core.runnables import Runnable, RunnableConfig, RunnableMap, RunnablePassthrough
from langchain_core.runnables.config import ensure_config
from langchain_core.tools import BaseTool
from langchain_core.utils.function_calling import convert_to_json_schema, convert_to_openai_tool
from langchain_core.utils.pydantic import is_basemodel_subclass
from pydantic import Field, model_validator

from beacon_memory.errors import SessionNotFound
from beacon_memory.history import History
from beacon_memory.reply import Reply
from beacon_memory.tools import tools_choice
from beacon_memory.version import __version__
from langchain_beacon.errors import translated
from langchain_beacon.messages import to_plain
from langchain_beacon.settings import BeaconSettings


class ChatBeacon(BeaconSettings, BaseChatModel):
    """A chat model with memory: give it a session, and it has read whatever was said there.

    The session is named per call (`session_id=`), by `config["configurable"]["session_id"]` or, in a graph,
    `["thread_id"]`, or by the constructor, in this order; `session_id=None` asks without memory. Send the whole message
    list or only what is new: what the session holds is not read again (`history`).

    >>> from beacon_memory.testing import scripted_engine
    >>> llm = ChatBeacon(engine=scripted_engine(lambda seen: "Rex!" if "called Rex" in seen else "Noted."))
    >>> ada = {"configurable": {"session_id": "ada"}}
    >>> llm.invoke("My dog is called Rex.", ada).text
    'Rex!'
    >>> llm.invoke("What is my dog called?", ada).text
    'Rex!'
    >>> llm.invoke("What is my dog called?").text
    'Noted.'
    """

    session_id: str | None = None
    history: History = "auto"
    """What a message list is to its session: see `beacon_memory.history.match`."""
    session_from_thread: bool = True
    """Whether a graph's thread_id names a session, where there is a store and nothing else names one."""
    budget: int | None = Field(default=None)
    """The most slots a session may keep."""

    @model_validator(mode="after")
    def _set_beacon_version(self) -> Self:
        self._add_version("langchain-beacon", __version__)
        if self.profile is None:  # the base asked before there was an engine
            self.profile = self._resolve_model_profile()
        return self

    @property
    def _llm_type(self) -> str:
        return "beacon-chat"

    @property
    def _identifying_params(self) -> dict[str, Any]:
        names = ("temperature", "top_p", "top_k", "max_tokens", "seed", "stop", "history", "context_id", "beacon_ratio")
        return {"model_name": self.model} | {name: getattr(self, name) for name in names}

    def _resolve_model_profile(self) -> ModelProfile | None:
        if self.engine is None:
            return None
        profile: ModelProfile = {
            "text_inputs": True,
            "text_outputs": True,
            "image_inputs": False,
            "audio_inputs": False,
            "pdf_inputs": False,
            "video_inputs": False,
            "tool_calling": True,
            "tool_choice": True,
            "structured_output": True,
            "open_weights": True,
        }
        if (window := self.opened.window(self.beacon_ratio)) is not None:
            profile["max_input_tokens"] = window
            profile["max_output_tokens"] = (self.opened.positions or 0) // 4
        return profile

    # Sessions

    def invoke(
        self, input: LanguageModelInput, config: RunnableConfig | None = None, *, stop: Any = None, **kwargs: Any
    ) -> AIMessage:
        return super().invoke(input, config, stop=stop, **self._lifted(config, kwargs))

    async def ainvoke(
        self, input: LanguageModelInput, config: RunnableConfig | None = None, *, stop: Any = None, **kwargs: Any
    ) -> AIMessage:
        return await super().ainvoke(input, config, stop=stop, **self._lifted(config, kwargs))

    def stream(
        self, input: LanguageModelInput, config: RunnableConfig | None = None, *, stop: Any = None, **kwargs: Any
    ) -> Iterator[AIMessageChunk]:
        yield from super().stream(input, config, stop=stop, **self._lifted(config, kwargs))

    async def astream(
        self, input: LanguageModelInput, config: RunnableConfig | None = None, *, stop: Any = None, **kwargs: Any
    ) -> AsyncIterator[AIMessageChunk]:
        async for chunk in super().astream(input, config, stop=stop, **self._lifted(config, kwargs)):
            yield chunk

    def stream_events(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> Any:
        return super().stream_events(input, config, **self._lifted(config, kwargs))

    def astream_events(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> Any:
        return super().astream_events(input, config, **self._lifted(config, kwargs))

    def _lifted(self, config: RunnableConfig | None, kwargs: dict[str, Any]) -> dict[str, Any]:
        """The call's words with its session: what a config says never reaches `_generate` by itself."""
        if "session_id" not in kwargs and (named := self._configured(config)) is not None:
            kwargs = kwargs | {"session_id": named}
        return kwargs

    def _configured(self, config: RunnableConfig | None) -> str | None:
        found = ensure_config(config).get("configurable") or {}
        if found.get("session_id") is not None:
            return str(found["session_id"])
        if self.session_id is None and self.session_from_thread and self.opened.keeps_sessions:
            return None if found.get("thread_id") is None else str(found["thread_id"])
        return None

    def _session_id(self, kwargs: Mapping[str, Any]) -> str | None:
        """The session of a call, or None."""
        if "session_id" in kwargs:
            return None if kwargs["session_id"] is None else str(kwargs["session_id"])
        return self._configured(None) or self.session_id

    def delete_thread(self, thread_id: str) -> None:
        """Forget a thread's memory, every byte of it; one that is not there is forgotten already."""
        with translated():
            try:
                self.opened.session(thread_id).forget()
            except SessionNotFound:
                return

    def copy_thread(self, source_thread_id: str, target_thread_id: str) -> None:
        """Begin a thread's memory where another one's stands. Raises SessionNotFound, SessionExists."""
        with translated():
            self.opened.session(source_thread_id).fork(target_thread_id)

    async def adelete_thread(self, thread_id: str) -> None:
        """As `delete_thread`."""
        await self.opened.run(lambda: self.delete_thread(thread_id))

    async def acopy_thread(self, source_thread_id: str, target_thread_id: str) -> None:
        """As `copy_thread`."""
        await self.opened.run(lambda: self.copy_thread(source_thread_id, target_thread_id))

    # Answers

    def _turn(self, messages: list[BaseMessage], stop: list[str] | None, kwargs: dict[str, Any]) -> _Talk:
        """The turn of a call. Raises our errors."""
        if kwargs.get("model") not in (None, self.model):
            raise ModelNotFoundError(f"this instance answers by {self.model!r}, not {kwargs['model']!r}")
        system, plain = to_plain(messages)
        name, engine = self._session_id(kwargs), self.opened
        reply = Reply(
            engine.memory,
            plain,
            system=system,
            tools=list(kwargs.get("tools") or ()),
            choice=kwargs.get("tool_choice"),
            many=kwargs.get("parallel_tool_calls"),
            schema=_schema(kwargs.get("response_format")),
            session=None
            if name is None
            else engine.session(name, ratio=self.beacon_ratio, budget=kwargs.get("budget", self.budget)),
            history=kwargs.get("history", self.history),
            contexts=self._contexts(kwargs),
            keep=kwargs.get("keep"),
            **self._sampling(stop, kwargs),
        )
        return _Talk(reply, model=str(self.model))

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        with translated():
            talk = self._turn(messages, stop, kwargs)
            for _ in talk:
                pass
            return talk.result()

    def _stream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[ChatGenerationChunk]:
        with translated():
            for chunk in self._turn(messages, stop, kwargs).chunks():
                if run_manager:
                    run_manager.on_llm_new_token(chunk.text, chunk=chunk)
                yield chunk

    async def _agenerate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        talks: list[_Talk] = []

        def begin() -> Iterator[str]:
            talks.append(self._turn(messages, stop, kwargs))
            return talks[0]

        with translated():
            async for _ in self.opened.stream(begin):
                pass
            return talks[0].result()

    async def _astream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[ChatGenerationChunk]:
        with translated():
            async for chunk in self.opened.stream(lambda: self._turn(messages, stop, kwargs).chunks()):
                if run_manager:
                    await run_manager.on_llm_new_token(chunk.text, chunk=chunk)
                yield chunk

    # LangChain's cache knows messages, not sessions: it would give yesterday's answer, and remember nothing.

    def _generate_with_cache(self, messages: list[BaseMessage], *args: Any, **kwargs: Any) -> ChatResult:
        return super(ChatBeacon, self._uncached(kwargs))._generate_with_cache(messages, *args, **kwargs)

    async def _agenerate_with_cache(self, messages: list[BaseMessage], *args: Any, **kwargs: Any) -> ChatResult:
        return await super(ChatBeacon, self._uncached(kwargs))._agenerate_with_cache(messages, *args, **kwargs)

    def _uncached(self, kwargs: Mapping[str, Any]) -> Self:
        if self._session_id(kwargs) is None and kwargs.get("context_id", self.context_id) is None:
            return self
        return self.model_copy(update={"cache": False})

    # Tokens

    def get_token_ids(self, text: str) -> list[int]:
        return self.opened.memory.model.encode(text)

    def get_num_tokens_from_messages(self, messages: Sequence[BaseMessage], tools: Any = None) -> int:
        """The tokens of messages as this model reads them, tools and the ask for an answer counted."""
        transcript = self.opened.memory.transcript
        with translated():
            system, plain = to_plain(list(messages))
            told = [convert_to_openai_tool(tool) for tool in tools or ()]
            front = transcript.system(system, tools=told) if system or told else []
            return len(front) + sum(len(transcript.turn(m)) for m in plain) + len(transcript.header())

    # Tools and structured output

    def bind_tools(
        self,
        tools: Sequence[dict[str, Any] | type | Callable[..., Any] | BaseTool],
        *,
        tool_choice: str | dict[str, Any] | bool | None = None,
        **kwargs: Any,
    ) -> Runnable[LanguageModelInput, AIMessage]:
        """This model with tools. `tool_choice`: "auto", "none", "any" ("required", True), or a tool's name.

        What is called is always a bound tool, and its arguments are always of its schema.
        """
        told = [convert_to_openai_tool(tool) for tool in tools]
        choice = tools_choice(tool_choice, [str(tool.get("function", {}).get("name")) for tool in told])
        if choice is not None:
            kwargs["tool_choice"] = choice
        return self.bind(tools=told, **kwargs)

    def with_structured_output(
        self,
        schema: dict[str, Any] | type,
        *,
        method: Literal["json_schema", "function_calling", "json_mode"] = "json_schema",
        include_raw: bool = False,
        strict: bool | None = None,
        **kwargs: Any,
    ) -> Runnable[LanguageModelInput, Any]:
        """Answers of a schema (pydantic class, TypedDict, JSON schema), which the decoding guarantees.

        The model is told of the schema, as a tool with `function_calling`. Answers are always strict.
        """
        typed = isinstance(schema, type) and is_basemodel_subclass(schema)
        about = {
            "ls_structured_output_format": {
                "kwargs": {"method": method} | ({} if strict is None else {"strict": strict}),
                "schema": convert_to_json_schema(schema),
            }
        }
        parser: Any
        if method == "function_calling":
            tool = convert_to_openai_tool(schema)
            name = tool["function"]["name"]
            llm = self.bind_tools([tool], tool_choice=name, parallel_tool_calls=False, **about, **kwargs)
            parser = (
                PydanticToolsParser(tools=[schema], first_tool_only=True)  # type: ignore[list-item]
                if typed
                else JsonOutputKeyToolsParser(key_name=name, first_tool_only=True)
            )
        elif method in ("json_schema", "json_mode"):
            form = {"type": method, "json_schema": {"schema": convert_to_json_schema(schema)}}
            llm = self.bind(response_format=form, **about, **kwargs)
            parser = PydanticOutputParser(pydantic_object=schema) if typed else JsonOutputParser()  # type: ignore[arg-type]
        else:
            raise ValueError(f"method is 'json_schema', 'function_calling' or 'json_mode', not {method!r}")
        if not include_raw:
            return llm | parser  # type: ignore[no-any-return]
        parsed = RunnablePassthrough.assign(parsed=itemgetter("raw") | parser, parsing_error=lambda _: None)
        failed = RunnablePassthrough.assign(parsed=lambda _: None)
        return RunnableMap(raw=llm) | parsed.with_fallbacks([failed], exception_key="parsing_error")


BeaconChatModel = ChatBeacon


class _Talk(Iterator[str]):
    """A reply as LangChain's messages."""

    def __init__(self, reply: Reply, *, model: str) -> None:
        self._reply, self._model = reply, model

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> str:
        return next(self._reply)

    def close(self) -> None:
        self._reply.close()

    def result(self) -> ChatResult:
        """The whole answer, once it has been read."""
        metadata, said = self._metadata(), self._reply.said
        message = AIMessage(
            said.text,
            id=self._reply.id,
            tool_calls=[tool_call(name=call.name, args=call.arguments, id=call.id) for call in self._reply.calls],
            invalid_tool_calls=[
                invalid_tool_call(name=None, args=broken, id=None, error="not JSON of a call") for broken in said.broken
            ],
            usage_metadata=self._usage(),
            response_metadata=metadata,
        )
        info = {"finish_reason": metadata["finish_reason"]}
        return ChatResult(generations=[ChatGeneration(message=message, generation_info=info)])

    def chunks(self) -> Iterator[ChatGenerationChunk]:
        """The answer in pieces; the last one tells what it took."""
        reply = self._reply
        try:
            for text in reply:
                yield ChatGenerationChunk(message=AIMessageChunk(content=text, id=reply.id))
        finally:
            reply.close()
        calls = [
            tool_call_chunk(name=call.name, args=_json(call.arguments), id=call.id, index=n)
            for n, call in enumerate(reply.calls)
        ]
        calls += [
            tool_call_chunk(name=None, args=broken, id=None, index=len(calls) + n)
            for n, broken in enumerate(reply.said.broken)
        ]
        metadata = self._metadata()
        last = AIMessageChunk(
            content="",
            id=reply.id,
            tool_call_chunks=calls,
            usage_metadata=self._usage(),
            response_metadata=metadata,
            chunk_position="last",
        )
        yield ChatGenerationChunk(message=last, generation_info={"finish_reason": metadata["finish_reason"]})

    def _usage(self) -> UsageMetadata:
        usage = self._reply.usage
        return UsageMetadata(
            input_tokens=usage.tokens,
            output_tokens=usage.answer,
            total_tokens=usage.tokens + usage.answer,
            input_token_details={"cache_read": usage.read, "cache_creation": usage.folded},
        )

    def _metadata(self) -> dict[str, Any]:
        return {
            "model_name": self._model,
            "model_provider": "beacon",
            "finish_reason": self._reply.finish,
            "beacon": self._reply.physical,
        }


def _json(value: Mapping[str, Any]) -> str:
    return json.dumps(dict(value), ensure_ascii=False)


def _schema(form: Any) -> dict[str, Any] | None:
    """The JSON schema of a response_format, in OpenAI's words or bare."""
    if form is None:
        return None
    if isinstance(form, dict):
        if form.get("type") == "text":
            return None
        if isinstance(form.get("json_schema"), dict):
            return dict(form["json_schema"].get("schema") or {"type": "object"})
        if form.get("type") == "json_object":
            return {"type": "object"}
        if "format" in form or form.get("type") in ("json_schema", "json_mode"):
            return dict(form.get("schema") or {"type": "object"})
        return dict(form)
    return dict(convert_to_json_schema(form))
