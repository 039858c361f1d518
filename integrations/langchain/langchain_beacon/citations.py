"""Sources in LangChain's standard: citations of the text block that `message.content_blocks` gives.

The content of a message stays plain text, and `response_metadata["beacon"]["sources"]` is where the sources are kept.
"""

from __future__ import annotations

from typing import Any

from langchain_core.messages import AIMessage, AIMessageChunk
from langchain_core.messages import content as types
from langchain_core.messages.block_translators import register_translator

PROVIDER = "beacon"  # response_metadata["model_provider"]


def citation(source: dict[str, Any]) -> types.Citation:
    """A source as a citation of the whole answer."""
    named = source.get("document") or f"{source.get('role', 'message')} {source.get('id', source.get('message', ''))}"
    about = {name: value for name, value in source.items() if name != "text"}
    return types.Citation(type="citation", title=str(named).strip(), cited_text=source["text"], extras=about)


def cited_blocks(message: AIMessage) -> list[types.ContentBlock]:
    """The content blocks that LangChain makes of a message, its sources cited by the text."""
    about = message.response_metadata
    plain = {name: value for name, value in about.items() if name != "model_provider"}
    blocks = list(message.model_copy(update={"response_metadata": plain}).content_blocks)
    sources = about.get("beacon", {}).get("sources", ())
    texts = [block for block in blocks if block["type"] == "text"]
    if sources and texts and "annotations" not in texts[0]:
        texts[0]["annotations"] = [citation(source) for source in sources]
    return blocks


def cited_chunk(message: AIMessageChunk) -> list[types.ContentBlock]:
    """The same of a piece of a stream. The last one, in which nothing is said, cites for the text before it."""
    blocks = cited_blocks(message)
    sources = message.response_metadata.get("beacon", {}).get("sources", ())
    if blocks or not sources or message.tool_call_chunks:
        return blocks
    return [types.TextContentBlock(type="text", text="", annotations=[citation(source) for source in sources])]


# What langchain-core asks of a provider's package, so that messages read from a checkpoint have their citations too.
register_translator(PROVIDER, cited_blocks, cited_chunk)
