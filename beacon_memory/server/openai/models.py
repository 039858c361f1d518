"""The list of models: the one that is served."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter

from beacon_memory.server.errors import Refused
from beacon_memory.server.visit import Here, Part, Served

router = APIRouter(prefix="/v1/models", tags=["OpenAI"])


@router.get("")
async def models(here: Here) -> dict[str, Any]:
    """The models that can be asked: one."""
    return {"object": "list", "data": [_told(here.served)]}


@router.get("/{model}")
async def model(here: Here, model: Part) -> dict[str, Any]:
    """What is known of the model."""
    check_model(here.served, model)
    return _told(here.served)


def check_model(served: Served, name: str) -> None:
    """Raises Refused for another model than the one that is served."""
    if name != served.name:
        raise Refused(
            404, f"the model {name!r:.80} is not served here; {served.name!r} is", code="model_not_found", param="model"
        )


def _told(served: Served) -> dict[str, Any]:
    return {"id": served.name, "object": "model", "created": served.made, "owned_by": "beacon-memory"}
