"""A server's errors as ours: what it says went wrong there is raised here, by the same class."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from beacon_memory import errors
from beacon_memory.errors import (
    BeaconError,
    ConfigError,
    EngineBusy,
    InputError,
    KeyRefused,
    ServerError,
    ServerUnavailable,
    SessionConflict,
)

CLASS = "beacon_error"  # the field of an error's body that names its class
IN_USE = "idempotency_key_in_use"
_BY_CODE: Mapping[str | None, type[BeaconError]] = {
    "model_not_found": ConfigError,
    "message_not_found": InputError,
    "document_not_found": InputError,
}
_BY_STATUS: Mapping[int, type[BeaconError]] = {
    400: InputError,
    401: KeyRefused,
    409: SessionConflict,
    413: InputError,
    422: InputError,
    429: EngineBusy,
    502: ServerUnavailable,
    503: ServerUnavailable,
    504: ServerUnavailable,
}
# Fields of a request that are settings: a value that cannot be is a ConfigError, as where the model is in this process.
_SAMPLING = ("temperature", "top_p", "top_k", "seed", "stop", "repetition_penalty", "max_tokens")
_SETTINGS = (*_SAMPLING, "recall_tokens", "ratio", "budget", "history")
_ADVICE: Mapping[int, str] = {
    401: ": give api_key=, or set BEACON_API_KEY",
    504: ": try again when the server has less to do, or ask for less at once",
}


def failure(status: int, body: Any, *, url: str) -> BeaconError:
    """The error that a response tells of. `body` is what its JSON says, None where it has none."""
    told = body.get("error") if isinstance(body, Mapping) else None
    if not isinstance(told, Mapping) or not isinstance(told.get("message"), str):
        gone = status in (502, 503, 504)
        return (ServerUnavailable if gone else ServerError)(
            f"{url} answered {status}, and not as a beacon-memory server does: is this the server's address, and does "
            f"it run?"
        )
    setting = ConfigError if status == 400 and told.get("param") in _SETTINGS else None
    cls = _named(body.get(CLASS)) or setting or _BY_CODE.get(told.get("code")) or _BY_STATUS.get(status, ServerError)
    said = str(told["message"])
    if cls is ServerError and status == 404:
        said += f": {url} may be of another version than this client"
    return cls(said + _ADVICE.get(status, ""))


def code_of(body: Any) -> str | None:
    """The code of an error's body."""
    told = body.get("error") if isinstance(body, Mapping) else None
    found = told.get("code") if isinstance(told, Mapping) else None
    return found if isinstance(found, str) else None


def parsed(content: bytes | str) -> Any:
    """What JSON says; None for what is none."""
    try:
        return json.loads(content)
    except (ValueError, RecursionError):
        return None


def _named(name: Any) -> type[BeaconError] | None:
    found = getattr(errors, name, None) if isinstance(name, str) else None
    return found if isinstance(found, type) and issubclass(found, BeaconError) else None
