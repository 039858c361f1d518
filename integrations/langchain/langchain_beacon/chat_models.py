"""A chat model that remembers: what a session holds is read from memory, the rest of the message list is new."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from operator import itemgetter
from typing import Any, Literal, Self

from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun
from langchain_core.exceptions import ModelNotFoundError
from langchain_core.language_models import BaseChatModel, LanguageModelInput, ModelProfile
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.output_parsers import JsonOutputParser, PydanticOutputParser
from langchain_core.output_parsers.openai_tools import JsonOutputKeyToolsParser, PydanticToolsParser
from langchain_core.outputs import ChatGenerationChunk, ChatResult
from langchain_core.runnables import Runnable, RunnableConfig, RunnableMap, RunnablePassthrough
from langchain_core.tools import BaseTool
from langchain_core.utils.function_calling import convert_to_json_schema, convert_to_openai_tool
from langchain_core.utils.pydantic import is_basemodel_subclass
from pydantic import model_validator

from beacon_memory.talk.history import History
from beacon_memory.talk.tools import tools_choice
from beacon_memory.version import __version__
from langchain_beacon.errors import translated
from langchain_beacon.messages import to_asked
from langchain_beacon.replies import Talk
from langchain_beacon.sessions import BeaconSessions


class ChatBeacon(BeaconSessions, BaseChatModel):
    """A chat model with memory: give it a session, and it has read whatever was said there.

    The session is named per call (`session_id=`), by `config["configurable"]["session_id"]` or by the constructor, in
    this order; `session_id=None` asks without memory. In a graph, `BeaconMemoryMiddleware` names its thread's, and a
    call within a tool or node has none (`session_from_thread`). Send the whole message list or only what is new: what
    the session holds is not read again (`history`).

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

    history: History = "auto"
    """What a message list is to its session: see `beacon_memory.talk.history.match`."""

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
        names = ["temperature", "top_p", "top_k", "max_tokens", "seed", "stop", "history", "context_id", "beacon_ratio"]
        names += [] if self.base_url is None else ["base_url"]
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
        if (positions := self.opened.positions) is not None:  # what is known without asking a server
            profile["max_input_tokens"] = self.opened.window(self.beacon_ratio) or positions
            profile["max_output_tokens"] = positions // 4
        return profile

    def stream_events(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> Any:
        return super().stream_events(input, config, **self._lifted(config, kwargs))

    def astream_events(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> Any:
        return super().astream_events(input, config, **self._lifted(config, kwargs))

    # Answers

    def _turn(self, messages: list[BaseMessage], stop: list[str] | None, kwargs: dict[str, Any]) -> Talk:
        """The turn of a call. Raises our errors."""
        if kwargs.get("model") not in (None, self.model, self.opened.name):
            raise ModelNotFoundError(f"this instance answers by {self.model!r}, not {kwargs['model']!r}")
        system, plain = to_asked(messages)
        reply = self.opened.reply(
            plain,
            system=system,
            tools=list(kwargs.get("tools") or ()),
            choice=kwargs.get("tool_choice"),
            many=kwargs.get("parallel_tool_calls"),
            schema=_schema(kwargs.get("response_format")),
            history=kwargs.get("history", self.history),
            keep=kwargs.get("keep"),
            **self._asked(kwargs),
            **self._sampling(stop, kwargs),
        )
        return Talk(reply, engine=self.opened)

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        with translated():
            return self._turn(messages, stop, kwargs).whole()

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
        talks: list[Talk] = []

        def begin() -> Iterator[str]:
            talks.append(self._turn(messages, stop, kwargs))
            return talks[0].reply

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

    def _generate_with_cache(self, messages: list[BaseMessage], *args: Any, **kwargs: Any) -> ChatResult:
        return super(ChatBeacon, self._uncached(kwargs))._generate_with_cache(messages, *args, **kwargs)

    async def _agenerate_with_cache(self, messages: list[BaseMessage], *args: Any, **kwargs: Any) -> ChatResult:
        return await super(ChatBeacon, self._uncached(kwargs))._agenerate_with_cache(messages, *args, **kwargs)

    # Tokens

    def get_token_ids(self, text: str) -> list[int]:
        with translated():
            return self.opened.encode(text)

    def get_num_tokens_from_messages(self, messages: Sequence[BaseMessage], tools: Any = None) -> int:
        """The tokens of messages as this model reads them, tools and the ask for an answer counted."""
        with translated():
            system, plain = to_asked(list(messages))
            return self.opened.count(plain, system=system, tools=[_tool(tool) for tool in tools or ()])

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
        told = [_tool(tool) for tool in tools]
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
            tool = _tool(schema)
            name = tool["function"]["name"]
            llm = self.bind_tools([tool], tool_choice=name, parallel_tool_calls=False, **about, **kwargs)
            parser = (
                PydanticToolsParser(tools=[schema], first_tool_only=True)  # type: ignore[list-item]
                if typed
                else JsonOutputKeyToolsParser(key_name=name, first_tool_only=True)
            )
        elif method in ("json_schema", "json_mode"):
            form = {"type": method, "json_schema": {"schema": _form(schema)}}
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


def _form(schema: Any) -> dict[str, Any]:
    """The JSON schema of a class: pydantic's own, which LangChain's cuts off where a class contains itself."""
    if isinstance(schema, type) and (own := getattr(schema, "model_json_schema", None)):
        return dict(own())
    return dict(convert_to_json_schema(schema))


def _tool(tool: Any) -> dict[str, Any]:
    """A tool in OpenAI's words, its arguments as `_form` has them where they contain a class twice over."""
    told = dict(convert_to_openai_tool(tool))
    cls = tool.tool_call_schema if isinstance(tool, BaseTool) else tool  # without what is injected, which no model says
    if isinstance(cls, type) and hasattr(cls, "model_json_schema"):
        form = _form(cls)
        if "$ref" in str(form.get("$defs", "")):
            about = {key: value for key, value in form.items() if key not in ("title", "description")}
            told["function"] = {**told["function"], "parameters": about}
    return told


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
    return _form(form)
