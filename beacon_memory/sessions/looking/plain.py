"""A bare prompt, without a chat template, behind documents: all of it is what is asked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from beacon_memory.sessions.looking.again import look_again
from beacon_memory.sessions.looking.source import context_origins
from beacon_memory.sessions.prompt import Prompt, text_prompt
from beacon_memory.state.state import BeaconState

if TYPE_CHECKING:
    from beacon_memory.sessions.repository import Repository


def text_looked(
    memory: Repository,
    ids: Sequence[int],
    *,
    contexts: Sequence[str | BeaconState] = (),
    answer: int = 256,
    ratio: int | None = None,
    recall_tokens: int | None = None,
) -> Prompt:
    """The prompt that `text_prompt` makes, with the passages of the documents in front that it is about.

    A text that is too long to be read raw is no question: it is read as it is. Raises SessionNotFound, BudgetExceeded,
    ConfigError.
    """
    prompt = text_prompt(memory, ids, contexts=contexts, answer=answer, ratio=ratio)
    if len(prompt.part("text")) == len(ids):
        prompt = replace(prompt, origins=tuple(context_origins(memory, contexts)))
    return look_again(memory, prompt, recall_tokens=recall_tokens, answer=answer)


def texts_looked(memory: Repository, prompts: Sequence[str], *, formatted: bool = False, **how: Any) -> list[Prompt]:
    """The prompts of texts; `how` as `text_looked` takes it. A `formatted` text is a template's, and may contain the
    template's own tokens.
    """
    found = []
    for text in prompts:
        ids = memory.model.encode(text)
        if formatted:
            ids = memory.model.tokenizer(text, add_special_tokens=False)["input_ids"]
            start = memory.transcript.start
            ids = ids[len(start) :] if start and ids[: len(start)] == start else ids
        found.append(text_looked(memory, ids, **how))
    return found
