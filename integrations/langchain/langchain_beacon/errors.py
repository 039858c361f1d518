"""beacon-memory's errors as LangChain's: each is both, so code that catches either goes on working.

PromptTooLong, BudgetExceeded    ContextOverflowError       (summarization retries on it)
StoreUnavailable                 ModelConnectionError       (retryable)
ModelMismatch                    ModelInvalidRequestError
SessionConflict                  ModelAPIError              (retryable)
InputError, ConfigError          ModelInvalidRequestError, still ValueErrors
ServerUnavailable                ModelConnectionError       (retryable)
KeyRefused                       ModelAuthenticationError
EngineBusy                       ModelRateLimitError        (retryable)
other ServerErrors               ModelAPIError              (retryable)
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


class BeaconServerUnavailable(lc.ModelConnectionError, errors.ServerUnavailable):
    """The server cannot be reached, is too slow, or went away."""


class BeaconKeyRefused(lc.ModelAuthenticationError, errors.KeyRefused):
    """The server wants an API key, or another one."""


class BeaconBusy(lc.ModelRateLimitError, errors.EngineBusy):
    """Too many requests wait for an answer already."""


class BeaconServerError(lc.ModelAPIError, errors.ServerError):
    """A server that does not answer as one of ours."""


_OURS = {
    errors.PromptTooLong: BeaconContextOverflow,
    errors.BudgetExceeded: BeaconContextOverflow,
    errors.StoreUnavailable: BeaconStoreUnavailable,
    errors.ModelMismatch: BeaconModelMismatch,
    errors.SessionConflict: BeaconSessionConflict,
    errors.ServerUnavailable: BeaconServerUnavailable,
    errors.KeyRefused: BeaconKeyRefused,
    errors.EngineBusy: BeaconBusy,
    errors.ServerError: BeaconServerError,  # behind its children
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
