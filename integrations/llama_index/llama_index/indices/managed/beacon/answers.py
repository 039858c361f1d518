"""What the engines and the synthesizer make of an LLM's responses."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterable, Generator, Iterable, Sequence
from typing import Any

from llama_index.core.base.llms.types import ChatResponse
from llama_index.core.llms.structured_llm import StructuredLLM
from llama_index.core.prompts import BasePromptTemplate, PromptTemplate, PromptType
from llama_index.core.schema import NodeWithScore
from llama_index.llms.beacon import BeaconLLM
from pydantic import BaseModel

from beacon_memory.errors import ConfigError
from beacon_memory.talk.sources import read_texts

EMPTY = "Empty Response"  # LlamaIndex's answer where there are no nodes
# A small model, asked alone, may not look back at a text that stood in front of the talk.
QUESTION = PromptTemplate("According to the text above: {query_str}", prompt_type=PromptType.QUESTION_ANSWER)
READ = "(all that you have read above)"  # what a template's {context_str} becomes: the text itself is in memory


def reader(llm: Any, default: BeaconLLM | None = None) -> BeaconLLM:
    """The LLM that reads what is folded. Raises ConfigError for one that cannot."""
    llm = llm or default
    if not isinstance(llm, BeaconLLM):
        raise ConfigError(f"what is folded is read by a BeaconLLM, not by {type(llm).__name__}: pass llm=BeaconLLM(…)")
    return llm


def structured_reader(
    llm: Any, output_cls: type[BaseModel] | None, *, streaming: bool, default: BeaconLLM | None = None
) -> tuple[BeaconLLM, type[BaseModel] | None]:
    """The same, and the class of its answers, which a structured LLM brings along. Raises ConfigError."""
    if isinstance(llm, StructuredLLM):
        if output_cls not in (None, llm.output_cls):
            raise ConfigError(f"the LLM answers with {llm.output_cls.__name__}, output_cls is another class: give one")
        llm, output_cls = llm.llm, llm.output_cls
    if output_cls is not None and not (isinstance(output_cls, type) and issubclass(output_cls, BaseModel)):
        raise ConfigError(f"output_cls is a pydantic class, not {output_cls!r:.80}")
    if output_cls is not None and streaming:
        raise ConfigError(f"an answer of class {output_cls.__name__} is whole or not there: leave streaming out")
    return reader(llm, default), output_cls


def question_template(template: BasePromptTemplate | None) -> BasePromptTemplate:
    """What a question is asked with. Raises ConfigError."""
    if not isinstance(template, BasePromptTemplate | None):
        raise ConfigError(f"text_qa_template is a prompt template, PromptTemplate(…), not {template!r:.80}")
    return template or QUESTION


def readable(chunks: Sequence[str]) -> dict[int, str]:
    """The chunks that can be read, cleaned as documents are, by their places. Raises InputError where there are some,
    and none can.
    """
    said = [n for n, chunk in enumerate(chunks) if chunk.strip()] or range(len(chunks))
    texts = read_texts([chunks[n] for n in said])
    return {n: text for n, (_, text) in zip(said, texts, strict=True) if text}


def metadata_of(nodes: Sequence[NodeWithScore]) -> dict[str, Any]:
    """The nodes' metadata by their ids, as LlamaIndex's responses have it."""
    return {found.node.node_id: found.node.metadata for found in nodes}


def told(response: ChatResponse) -> dict[str, Any]:
    """What a whole response tells beside its words: `usage` in tokens, `beacon` in slots."""
    return {name: response.raw[name] for name in ("usage", "beacon")} if isinstance(response.raw, dict) else {}


def words(responses: Iterable[ChatResponse], about: dict[str, Any]) -> Generator[str, None, None]:
    """The words of a stream as they come; `about` is told what the answer took, once it is whole."""
    for response in responses:
        about.update(told(response))
        if response.delta:
            yield response.delta


async def awords(responses: AsyncIterable[ChatResponse], about: dict[str, Any]) -> AsyncGenerator[str, None]:
    """The same, asynchronously."""
    async for response in responses:
        about.update(told(response))
        if response.delta:
            yield response.delta


def empty() -> Generator[str, None, None]:
    """The words of no answer."""
    yield EMPTY


async def aempty() -> AsyncGenerator[str, None]:
    """The same, asynchronously."""
    yield EMPTY
