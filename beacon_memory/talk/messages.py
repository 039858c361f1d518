"""What a message is: whatever a caller sends, made into one form, or refused with one clear error."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from beacon_memory.errors import InputError
from beacon_memory.talk.tools import Call, Said, as_json, read_said, write_said

Message = Mapping[str, Any]

ROLES = ("user", "assistant", "tool")
DEEPEST = 100  # lists and objects within each other: Python reads some hundreds, fewer where a framework calls it
_TEXTS = ("text", "input_text", "output_text", "refusal")  # blocks of content that are words
# A thought begins a line, so that an answer may speak of <think> within a sentence.
# To its end, or to a call, or to where the answer was cut off.
_THOUGHT = re.compile(
    r"^[ \t]*(?:<think(?:ing)?>|\[THINK\])"
    r"(?:.*?(?:</think(?:ing)?>|\[/THINK\])|.*?(?=<tool_call>\s*\{)|.*\Z)",
    re.S | re.M,
)
_THOUGHT_OPEN = re.compile(r"<think(?:ing)?>|\[THINK\]")
_THOUGHT_END = re.compile(r"</think(?:ing)?>|\[/THINK\]")


def check_message(message: Message) -> dict[str, Any]:
    """The message in the form in which it is remembered. Raises InputError.

    Content is text: blocks of text are joined, half an emoji becomes "\ufffd", an assistant's thoughts are left out.
    `tool_calls`, in OpenAI's shape or LangChain's, are written in the content too. What else stands in it is kept when
    it is JSON.

    >>> check_message({"role": "assistant", "content": "<think>\\nHm.\\n</think>\\n\\nIn Lyon."})["content"]
    'In Lyon.'
    """
    found = read_message(message)
    if found is None:
        raise InputError(f"an empty {message['role']} message: there is nothing to remember")
    return found


def says(message: Message, text: str) -> bool:
    """Whether a message's text contains this text, in whatever case."""
    return text.casefold() in str(message["content"]).casefold()


def read_messages(messages: Sequence[Message], *, thinking: bool = False) -> list[dict[str, Any]]:
    """Messages in the form in which they are remembered, without answers in which nothing was said but thoughts.

    `thinking` as `spoken` takes it. Raises InputError.
    """
    if isinstance(messages, str | Mapping) or not isinstance(messages, Iterable):
        raise InputError(f"messages are a list of mappings, not {messages!r:.120}")
    return [found for message in messages if (found := read_message(message, thinking=thinking)) is not None]


def read_message(message: Message, *, thinking: bool = False) -> dict[str, Any] | None:
    """The same of one message; None for an assistant's in which nothing was said."""
    if not isinstance(message, Mapping):
        raise InputError(f"a message is a mapping with 'role' and text 'content', not {message!r:.120}")
    role = message.get("role")
    if role in ("system", "developer"):
        raise InputError("a system prompt is not remembered: pass it as system= with each question")
    if role not in ROLES:
        raise InputError(f"a message's role is one of {', '.join(ROLES)}, not {role!r:.80}")
    text = _text(message.get("content"), role=role)
    if role != "assistant":
        if not text.strip():
            raise InputError(f"an empty {role} message: there is nothing to remember")
        return {**_about(message), "content": text}
    text, calls = spoken(text, thinking=thinking), calls_of(message)
    if calls and not read_said(text).calls:
        text = write_said(Said(text, tuple(calls)))
    return {**_about(message), "content": text} if text.strip() else None


def spoken(text: str, *, thinking: bool = False) -> str:
    """An answer without its thoughts, those that were cut off too.

    `thinking` says that this model's answers begin within a thought: then all up to a bare `</think>` is one. Of any
    other model's answer a bare `</think>` is an ordinary word.

    >>> spoken("<think>\\nThe user asks")
    ''
    >>> spoken("Hm, Lyon?\\n</think>\\n\\nIn Lyon.", thinking=True)
    'In Lyon.'
    """
    before, left = None, text
    while left != before:
        before, left = left, _THOUGHT.sub("", left)
        if thinking and (end := _THOUGHT_END.search(left)) and not _THOUGHT_OPEN.search(left, 0, end.start()):
            left = left[end.end() :]
        if left != before:
            left = left.strip()
    return left


def ends_thought(text: str) -> bool:
    """Whether a thought ends in a text."""
    return _THOUGHT_END.search(text) is not None


def calls_of(message: Message) -> list[Call]:
    """The calls of a message, of OpenAI's shape or of LangChain's. Raises InputError."""
    calls = message.get("tool_calls") or []
    if not isinstance(calls, Sequence) or isinstance(calls, str):
        raise InputError(f"tool_calls is a list of calls, not {calls!r:.80}")
    return [_call(call) for call in calls]


def whole(text: str) -> str:
    """Text that UTF-8 can hold: two halves of a letter are joined, half of one becomes U+FFFD.

    >>> whole("\\ud83d\\ude00 \\ud83d")
    '😀 \ufffd'
    """
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text


def _text(content: Any, *, role: str) -> str:
    if content is None:
        return ""
    if isinstance(content, str):
        return whole(str(content))
    if not isinstance(content, Sequence) or not all(isinstance(block, Mapping) for block in content):
        raise InputError(f"a message's content is text, not {content!r:.120}")
    texts = []
    for block in content:
        kind = block.get("type", "text")
        text = block.get("refusal" if kind == "refusal" else "text")
        if kind in _TEXTS and isinstance(text, str):
            texts.append(whole(text))
        elif role != "assistant":
            raise InputError(f"a content block of type {kind!r:.80} cannot be read: this model reads text alone")
    return "".join(texts)


def _call(call: Any) -> Call:
    function = call.get("function", call) if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise InputError(f"a call of a tool has a name and arguments, not {call!r:.120}")
    arguments = function.get("arguments", function.get("args")) or {}
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except ValueError as exc:
            raise InputError(f"a call of {function['name']!r} has arguments that are no JSON object: {exc}") from exc
    if not isinstance(arguments, Mapping):
        raise InputError(f"a call of {function['name']!r} has arguments that are no JSON object: {arguments!r:.80}")
    return Call(whole(function["name"]), json.loads(whole(as_json(dict(arguments)))))


def _about(message: Message) -> dict[str, Any]:
    """All of a message but its content, as JSON has it."""
    about = {key: value for key, value in message.items() if key != "content"}
    if about.get("tool_calls"):
        about["tool_calls"] = json.loads(as_json(about["tool_calls"]))
    try:
        kept: dict[str, Any] = json.loads(whole(json.dumps(about, ensure_ascii=False)))
    except (TypeError, ValueError, RecursionError) as exc:
        raise InputError(f"a message is made of JSON values: {exc}") from exc
    if nested(kept) > DEEPEST:
        raise InputError(f"a message's values may be nested {DEEPEST} deep, not more")
    return kept


def nested(value: object) -> int:
    """How deep the lists and objects of a JSON value are within each other."""
    depth, level = 0, [value]
    while level := [one for one in level if isinstance(one, dict | list)]:
        level = [inner for one in level for inner in (one.values() if isinstance(one, dict) else one)]
        depth += 1
    return depth
