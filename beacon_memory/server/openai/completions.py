"""`POST /v1/completions`: answers to texts without a chat template, several at once or one in pieces."""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncIterator, Iterator
from typing import Any

from fastapi import APIRouter
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel, ConfigDict, Field, field_validator

from beacon_memory.server.errors import Refused
from beacon_memory.server.limits import Limits, Ratio
from beacon_memory.server.openai.asked import StreamOptions, check_neutral
from beacon_memory.server.openai.chat import DONE, event_of, sent, whole_behind
from beacon_memory.server.openai.models import check_model
from beacon_memory.server.visit import STREAMED, Here, StrictRoute, streamed
from beacon_memory.sessions.context import in_front
from beacon_memory.sessions.looking.plain import texts_looked
from beacon_memory.sessions.memory import BeaconMemory
from beacon_memory.sessions.prompt import Prompt
from beacon_memory.sessions.reply import TextReply, completed
from beacon_memory.sessions.turn import batch_answers
from beacon_memory.state.info import Completion

router = APIRouter(prefix="/v1/completions", tags=["OpenAI"], route_class=StrictRoute)

MOST = 64  # texts of one request
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "n": (None, 1),
    "best_of": (None, 1),
    "echo": (None, False),
    "logprobs": (None,),
    "suffix": (None, ""),
    "frequency_penalty": (None, 0),
    "presence_penalty": (None, 0),
    "logit_bias": (None, {}),
}


class CompletionRequest(BaseModel):
    """The body of a completion."""

    model_config = ConfigDict(extra="forbid", strict=True)

    model: str
    prompt: str | list[str]
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: int | None = Field(None, ge=1)
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: int | None = Field(None, ge=0)
    repetition_penalty: float | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    # Memory's own.
    context_id: str | list[str] | None = None
    texts: list[str] | None = None
    ratio: Ratio | None = None
    recall_tokens: int | None = Field(None, ge=0)
    formatted: bool | None = None
    # Accepted where they ask for nothing (NEUTRAL).
    n: int | None = None
    best_of: int | None = None
    echo: bool | None = None
    logprobs: int | None = None
    suffix: str | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    logit_bias: dict[str, Any] | None = None
    # Accepted and ignored.
    user: str | None = None

    @field_validator("prompt", mode="before")
    @classmethod
    def _prompt(cls, value: Any) -> Any:
        if not isinstance(value, str) and not (isinstance(value, list) and all(isinstance(v, str) for v in value)):
            raise ValueError("a text, or a list of texts")
        return value

    @property
    def prompts(self) -> list[str]:
        """The texts."""
        return [self.prompt] if isinstance(self.prompt, str) else self.prompt

    def check(self, limits: Limits) -> None:
        """Raises Refused for what this server does not do, or not as much of."""
        check_neutral(self, NEUTRAL)
        if not 0 < len(self.prompts) <= MOST:
            raise Refused(400, f"1 to {MOST} texts a request, not {len(self.prompts)}", param="prompt")
        if self.stream and len(self.prompts) > 1:
            raise Refused(400, "one text a stream", param="prompt")
        if self.max_tokens is not None and self.max_tokens > limits.answer_tokens:
            raise Refused(400, f"an answer has at most {limits.answer_tokens} tokens here", param="max_tokens")

    def read(self, memory: BeaconMemory, limits: Limits) -> tuple[list[Prompt], dict[str, Any]]:
        """The prompts, and how answers are drawn. Raises InputError, ConfigError."""
        longest = self.max_tokens or limits.usual_tokens(memory.positions)
        names = ("temperature", "top_p", "top_k", "seed", "stop", "repetition_penalty")
        sampling = {name: value for name in names if (value := getattr(self, name)) is not None}
        contexts = in_front(memory, self.context_id, self.texts or (), ratio=self.ratio)
        how: dict[str, Any] = {"ratio": self.ratio, "recall_tokens": self.recall_tokens, "answer": longest}
        prompts = texts_looked(memory, self.prompts, formatted=bool(self.formatted), contexts=contexts, **how)
        return prompts, {"max_new_tokens": longest, **sampling}


Told = str | Completion  # pieces of an answer, and behind them the whole of it


@router.post("", responses=STREAMED)
async def complete(asked: CompletionRequest, here: Here) -> Response:
    """Answers to texts, as they are read without a chat template. Nothing of them is remembered."""
    check_model(here.served, asked.model)
    asked.check(here.limits)
    about = {"id": f"cmpl-{uuid.uuid4().hex}", "object": "text_completion", "created": int(time.time())}
    about["model"] = here.served.name
    if asked.stream:

        def reply() -> TextReply:
            prompts, sampling = asked.read(here.memory, here.limits)
            return TextReply(here.memory, prompts[0], **sampling)

        told = here.stream(lambda: whole_behind(reply, lambda said: said.completion))
        first = await anext(told)  # what can be refused is refused with a status, before the stream begins
        usage = bool(asked.stream_options and asked.stream_options.include_usage)
        return streamed(_events(about, first, told, usage=usage))

    def act() -> list[Completion]:
        prompts, sampling = asked.read(here.memory, here.limits)
        answers = batch_answers(here.memory, prompts, **sampling)
        return [completed(answer.text, answer, prompt) for answer, prompt in zip(answers, prompts, strict=True)]

    found = await here.run(act)
    return JSONResponse(
        {
            **about,
            "choices": [_choice(one.text, one.finish, n) for n, one in enumerate(found)],
            "usage": _usage(found),
            "beacon": [{"usage": _usage([one]), "sources": list(one.sources)} for one in found],
        }
    )


def _events(about: dict[str, Any], first: Told, told: AsyncIterator[Told], *, usage: bool) -> AsyncIterator[bytes]:
    """The answer as server-sent events. One that fails ends in an event with the error."""

    def end(said: Completion) -> Iterator[bytes]:
        yield event_of({**about, "choices": [_choice("", said.finish)], "beacon": {"sources": list(said.sources)}})
        if usage:
            yield event_of({**about, "choices": [], "usage": _usage([said])})
        yield DONE

    def say(piece: str) -> Iterator[bytes]:
        if piece:
            yield event_of({**about, "choices": [_choice(piece, None)]})

    return sent(first, told, say=say, end=end)


def _choice(text: str, finish: str | None, index: int = 0) -> dict[str, Any]:
    return {"text": text, "index": index, "logprobs": None, "finish_reason": finish}


def _usage(found: list[Completion]) -> dict[str, Any]:
    told, made = sum(one.tokens for one in found), sum(one.answer for one in found)
    return {"prompt_tokens": told, "completion_tokens": made, "total_tokens": told + made}
