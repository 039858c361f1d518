"""The list of models: the one that is served."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict, Field

from beacon_memory.client.connection import INTERFACE
from beacon_memory.server.errors import Refused
from beacon_memory.server.openai.asked import read_list
from beacon_memory.server.visit import Here, Part, Served, StrictRoute, Visit
from beacon_memory.version import __version__

router = APIRouter(prefix="/v1/models", tags=["OpenAI"])
tokens = APIRouter(prefix="/v1/tokenize", tags=["OpenAI"], route_class=StrictRoute)


class Counted(BaseModel):
    """A text, or messages, whose tokens are told."""

    model_config = ConfigDict(extra="forbid", strict=True)

    model: str | None = None
    prompt: str | None = None
    messages: list[dict[str, Any]] | None = None
    tools: list[dict[str, Any]] = Field(default_factory=list)


@router.get("")
async def models(here: Here) -> dict[str, Any]:
    """The models that can be asked: one."""
    return {"object": "list", "data": [_told(here)]}


@router.get("/{model}")
async def model(here: Here, model: Part) -> dict[str, Any]:
    """What is known of the model."""
    check_model(here.served, model)
    return _told(here)


@tokens.post("")
async def tokenize(asked: Counted, here: Here) -> dict[str, Any]:
    """The tokens of a text, or of messages as the model reads them, with its tools and the ask for an answer."""
    if asked.model is not None:
        check_model(here.served, asked.model)
    if (asked.prompt is None) == (asked.messages is None):
        raise Refused(400, "give prompt or messages", param="prompt")

    def act() -> list[int]:
        memory = here.memory
        if asked.prompt is not None:
            return memory.model.encode(asked.prompt)
        system, plain = read_list(asked.messages or ())
        transcript = memory.transcript
        front = transcript.system(system, tools=asked.tools) if system or asked.tools else []
        turns = [transcript.turn(message) for message in transcript.read(plain)]
        return [*front, *(i for turn in turns for i in turn), *transcript.header()]

    ids = await here.aside(act)
    return {"count": len(ids), "max_model_len": here.memory.positions, "tokens": ids}


def check_model(served: Served, name: str) -> None:
    """Raises Refused for another model than the one that is served."""
    if name != served.name:
        raise Refused(
            404, f"the model {name!r:.80} is not served here; {served.name!r} is", code="model_not_found", param="model"
        )


def _told(here: Visit) -> dict[str, Any]:
    model = here.memory.model
    about = {
        "version": __version__,
        "interface": INTERFACE,
        "positions": here.memory.positions,
        "slots": model.budget,
        "ratio": model.config.ratio,
        "finder": model.finder is not None,
    }
    told = {"id": here.served.name, "object": "model", "created": here.served.made, "owned_by": "beacon-memory"}
    return {**told, "beacon": about}
