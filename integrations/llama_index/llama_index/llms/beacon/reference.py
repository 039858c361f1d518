"""What a memory puts in the place of a session's messages, and the LLM reads the session for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

from llama_index.core.base.llms.types import ChatMessage, MessageRole, TextBlock

from beacon_memory.errors import ConfigError, InputError
from beacon_memory.serving.engine import Engine

KEY = "beacon_memory"  # in a message's additional_kwargs
NOTICE = "(What was said before stands in the memory of this conversation, which a BeaconLLM reads.)"


class Reference(str):
    """A session's first messages, in the place of them all. It is trusted as the object it is, within its process:
    text of the same words, as JSON makes of it, is no reference, so nobody can write one.
    """

    engine: Engine
    session_id: str
    messages: int  # of the session, documents counted

    def __new__(cls, engine: Engine, session_id: str, messages: int) -> Self:
        made = super().__new__(cls, f"{messages} messages")  # short: memories count its tokens
        made.engine, made.session_id, made.messages = engine, session_id, messages
        return made

    def __reduce__(self) -> tuple[Any, ...]:
        return str, (str(self),)

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self

    def message(self) -> ChatMessage:
        """The message that carries it: a user's, for some agents take the first system message for their own."""
        return ChatMessage(role=MessageRole.USER, content=NOTICE, additional_kwargs={KEY: self})


def take_reference(messages: Sequence[ChatMessage]) -> tuple[Reference | None, list[ChatMessage]]:
    """The reference in a message list, and the messages without it.

    Raises InputError for one that came as data, and for messages in front of it, which memory cannot stand behind;
    ConfigError for two.
    """
    found: Reference | None = None
    rest: list[ChatMessage] = []
    for message in messages:
        value = message.additional_kwargs.get(KEY)
        if value is None:
            rest.append(message)
            continue
        if not isinstance(value, Reference):
            raise InputError(
                "a reference to a memory came as data: only a BeaconMemory or BeaconMemoryBlock of this process may "
                "give one; get the messages from it again"
            )
        if found is not None:
            raise ConfigError("two memories in one message list: give the conversation one")
        if any(before.role not in (MessageRole.SYSTEM, MessageRole.DEVELOPER) for before in rest):
            raise InputError("messages stand in front of the memory: say them in the system prompt, or put them in it")
        found = value
        # Other memory blocks may have written into this message.
        blocks = [block for block in message.blocks if not (isinstance(block, TextBlock) and block.text == NOTICE)]
        rest += [ChatMessage(role=message.role, blocks=blocks)] if blocks else []
    return found, rest
