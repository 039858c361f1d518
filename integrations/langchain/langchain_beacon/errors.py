"""beacon-memory's errors as LangChain's: each is both, so code that catches either goes on working.

PromptTooLong, BudgetExceeded    ContextOverflowError       (summarization retries on it)
StoreUnavailable                 ModelConnectionError       (retryable)
ModelMismatch                    ModelInvalidRequestError
SessionConflict                  ModelAPIError              (retryable)
InputError, ConfigError          ModelInvalidRequestError, still ValueErrors
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from langchain_core import exceptions as lc

from beacon_memory import errors


class BeaconContextOverflow(lc.ContextOverflowError, errors.PromptTooLong):
    """What was asked does not fit the model's window beside the memory."""


class BeaconStoreUnavailable(lc.ModelConnectionError, errors.StoreUnavailable):
    """The store of the sessions cannot be reached."""


class BeaconModelMismatch(lc.ModelInvalidRequestError, errors.ModelMismatch):
    """The session was written by another model."""


class BeaconSessionConflict(lc.ModelAPIError, errors.SessionConflict):
    """Another writer moved the session first; nothing was written."""


class BeaconInvalidRequest(lc.ModelInvalidRequestError, errors.InputError):
    """Messages, tools or schemas that cannot be read."""


class BeaconInvalidSetting(lc.ModelInvalidRequestError, errors.ConfigError):
    """A setting that cannot work."""


_OURS = {
    errors.PromptTooLong: BeaconContextOverflow,
    errors.BudgetExceeded: BeaconContextOverflow,
    errors.StoreUnavailable: BeaconStoreUnavailable,
    errors.ModelMismatch: BeaconModelMismatch,
    errors.SessionConflict: BeaconSessionConflict,
    errors.InputError: BeaconInvalidRequest,  # behind its children
    errors.ConfigError: BeaconInvalidSetting,
}


@contextmanager
def translated() -> Iterator[None]:
    """Within, our errors leave as LangChain's too."""
    try:
        yield
    except errors.BeaconError as exc:
        if isinstance(exc, lc.ModelError):
            raise
        for ours, theirs in _OURS.items():
            if isinstance(exc, ours):
                raise theirs(str(exc)) from exc
        raise
