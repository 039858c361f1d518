"""What LlamaIndex's `OpenAILike` is told by a server; the test reads it as JSON."""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

import openai
from llama_index.core.llms import ChatMessage
from llama_index.core.tools import FunctionTool
from llama_index.llms.openai_like import OpenAILike
from pydantic import BaseModel


class City(BaseModel):
    """A city."""

    name: str
    people: int


def weather(place: str) -> str:
    """The weather of a place."""
    return f"7 degrees in {place}"


def model(**more: Any) -> OpenAILike:
    """The served model, with no retries of its client's."""
    url = f"{sys.argv[1]}/v1"
    how = {"is_chat_model": True, "is_function_calling_model": True, "context_window": 16384, "max_retries": 0, **more}
    return OpenAILike(model="scripted", api_base=url, api_key="none", **how)


def remembered(text: str) -> str:
    """What a session's next answer says."""
    return model(additional_kwargs={"user": "like"}).chat([ChatMessage(text)]).message.content or ""


async def at_once(llm: OpenAILike) -> list[str]:
    """Three answers that are asked for at once."""
    answers = await asyncio.gather(*(llm.achat([ChatMessage("Hi")]) for _ in range(3)))
    return [answer.message.content or "" for answer in answers]


def main() -> None:
    """Print it."""
    llm, told = model(), dict[str, Any]()
    told["openai"] = openai.__version__
    told["chat"] = [remembered("My dog is called Rex."), remembered("What is my dog called?")]
    told["complete"] = llm.complete("Hi").text
    pieces = list(llm.stream_chat([ChatMessage("Hi")]))
    told["pieces"], told["stream"] = len([piece for piece in pieces if piece.delta]), pieces[-1].message.content
    told["async"] = asyncio.run(at_once(llm))
    tool = FunctionTool.from_defaults(weather)
    answer = llm.chat_with_tools([tool], user_msg="The weather in 'Lyon'?", tool_required=True)
    (call,) = llm.get_tool_calls_from_response(answer)
    told["call"] = [call.tool_name, call.tool_kwargs]
    told["called"] = llm.predict_and_call([tool], user_msg="The weather in 'Lyon'?").response
    forced = model(should_use_structured_outputs=True).as_structured_llm(City)
    told["structured"] = forced.complete("A city of 'Lyon', 5 people").raw.model_dump()
    try:
        model(additional_kwargs={"n": 2}).complete("Hi")
    except openai.BadRequestError as exc:
        told["refused"] = exc.param
    print(json.dumps(told))


if __name__ == "__main__":
    main()
