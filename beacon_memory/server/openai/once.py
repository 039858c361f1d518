"""Requests that may be sent again: of two with one `Idempotency-Key` and one body, the second tells the first's answer.

What was asked and answered stands in a field of the newest message that the answer wrote, so it is there exactly if the
answer is, whichever process wrote it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import ExitStack, aclosing, contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from beacon_memory.server.errors import Refused
from beacon_memory.server.visit import Visit

T = TypeVar("T")
IN_USE = "idempotency_key_in_use"
HEADER = "Idempotency-Key"


@dataclass(frozen=True)
class Once:
    """A request that is answered once."""

    key: str  # of its key and of what it is about: 32 hexadecimal digits
    asked: str  # of its body

    def check(self, asked: object) -> None:
        """Raises Refused (422) where the key was used for another body."""
        if asked != self.asked:
            raise Refused(
                422, f"this {HEADER} was used for another body: choose a new one", code="idempotency_key_reused"
            )


def once_of(header: str | None, about: str, body: BaseModel) -> Once | None:
    """The request's key with its body, or None for a request without one. Raises Refused."""
    if header is None:
        return None
    if not 0 < len(header) <= 255:
        raise Refused(400, f"an {HEADER} has 1 to 255 characters", code="invalid_idempotency_key")
    said = json.dumps(body.model_dump(mode="json", exclude_unset=True), sort_keys=True)
    return Once(_digest(f"{about}\0{header}")[:32], _digest(said))


def in_use() -> Refused:
    """The error for a key whose request is being answered."""
    return Refused(
        409, f"a request with this {HEADER} is being answered: wait for it", kind="conflict_error", code=IN_USE
    )


@contextmanager
def running(here: Visit, once: Once | None) -> Iterator[None]:
    """While a request is answered. Raises Refused (409) where this process answers one with its key already."""
    if once is None:
        yield
        return
    name = (id(here.memory), once.key)
    if name in here.served.running:
        raise in_use()
    here.served.running.add(name)
    try:
        yield
    finally:
        here.served.running.discard(name)


async def within(held: ExitStack, pieces: AsyncIterator[T]) -> AsyncIterator[T]:
    """These pieces; what is held is let go with the last of them, or when this is closed."""
    with held:
        async with aclosing(pieces):  # type: ignore[type-var]
            async for piece in pieces:
                yield piece


def asked_by(message: Mapping[str, object], field: str, shape: type[BaseModel]) -> Mapping[str, Any]:
    """What a field of a message says; nothing where something of another shape stands in it, which a caller wrote."""
    found = message.get(field)
    if not isinstance(found, Mapping):
        return {}
    try:
        shape.model_validate(found)
    except ValidationError:
        return {}
    return found


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()
