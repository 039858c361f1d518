"""Every error we raise.

BeaconError
├── ConfigError            a setting that cannot work (also a ValueError)
├── InputError             text, a file or a message that cannot be read (also a ValueError)
│   ├── PromptTooLong      what was asked does not fit the model's window
│   └── TranscriptError    messages the model's chat template cannot render, or not append-only
├── ModelError             a model that cannot be loaded
│   ├── UnsupportedModel   an architecture, RoPE variant or attention we would get wrong
│   ├── AdapterError       beacon weights that are damaged or belong to another model
│   └── ModelUnavailable   answers are made by another process, which does not answer
├── TrainingError          a run that cannot go on; its last whole checkpoint is kept
├── ModelMismatch          bytes written by another model, adapter, tokenizer or layout
├── CodecError             bytes that are damaged, truncated, foreign or of a newer format
├── BudgetExceeded         a session that cannot be made smaller
├── EngineBusy             too many questions wait for an answer already
├── ServerError            a server that was asked did not answer as one of ours
│   ├── ServerUnavailable  it cannot be reached, is too slow, or went away
│   │   └── AnswerCut      it went away before the answer was whole
│   └── KeyRefused         it wants an API key, or another one
├── MissingExtra           an optional package that is not installed (also an ImportError)
└── StoreError             the store failed
    ├── StoreUnavailable   it cannot be reached or opened
    ├── StoreFull          it has no room left: nothing was written
    │   └── QuotaExceeded  a session or a namespace would pass its byte budget
    ├── IntegrityError     what is stored is not what was written here: edited, moved, replayed or another key's
    ├── SessionRolledBack  a session stands at an older version than the caller has seen
    ├── SessionNotFound    no such session (also a KeyError)
    ├── SessionExists      the session to create is there already
    ├── SessionConflict    another writer moved the session first: load it again and retry
    ├── BlobDiffers        other bytes are kept under that name already: nothing was written
    └── SegmentMissing     a session names bytes that are not there (evicted or lost)
"""


class BeaconError(Exception):
    """The parent of every error raised on purpose by this package."""


class ConfigError(BeaconError, ValueError):
    """A setting that cannot work."""


class InputError(BeaconError, ValueError):
    """Text, a file or a message that cannot be read."""


class PromptTooLong(InputError):
    """What was asked does not fit the model's window beside the memory."""


class TranscriptError(InputError):
    """Messages that the model's chat template cannot render append-only."""


class ModelError(BeaconError):
    """A model that cannot be loaded."""


class UnsupportedModel(ModelError):
    """An architecture, RoPE variant or attention that would be silently wrong."""


class AdapterError(ModelError):
    """Beacon weights that are damaged, incomplete or made for another model."""


class ModelUnavailable(ModelError):
    """Answers are made by another process (vLLM), and it cannot be reached, or went away."""


class TrainingError(BeaconError):
    """A training run that cannot go on; its last whole checkpoint is kept."""


class ModelMismatch(BeaconError):
    """Bytes written by another model, adapter, tokenizer or layout than the one that reads them."""


class CodecError(BeaconError):
    """Bytes that are damaged, truncated, foreign or of a newer format."""


class BudgetExceeded(BeaconError):
    """A session whose every segment is at the highest ratio and that still does not fit."""


class EngineBusy(BeaconError):
    """Too many questions wait for an answer already."""


class ServerError(BeaconError):
    """A server was asked, and did not answer as a beacon-memory server of this version does."""


class ServerUnavailable(ServerError):
    """The server cannot be reached, is too slow, or went away."""


class AnswerCut(ServerUnavailable):
    """The server went away before the answer was whole."""


class KeyRefused(ServerError):
    """The server wants an API key, or another one."""


class MissingExtra(BeaconError, ImportError):
    """An optional package that is not installed; the message names the extra."""


class StoreError(BeaconError):
    """The store failed."""


class StoreUnavailable(StoreError):
    """The store cannot be reached or opened."""


class StoreFull(StoreError):
    """The store has no room left; nothing was written."""


class QuotaExceeded(StoreFull):
    """A session or a namespace would pass its byte budget; nothing was written."""


class IntegrityError(StoreError):
    """What is stored is not what was written there: edited, moved, replayed, removed, or signed with another key."""


class SessionRolledBack(StoreError):
    """A session stands at an older version than the caller has seen: a restored backup, or a lost write."""


class SessionNotFound(StoreError, KeyError):
    """No session of this name."""

    # KeyError prints its argument quoted; a sentence reads better bare.
    __str__ = Exception.__str__


class SessionExists(StoreError):
    """The session to create is there already."""


class SessionConflict(StoreError):
    """Another writer moved the session's head first; nothing was written."""


class BlobDiffers(StoreError):
    """Other bytes are kept under a name that was to be written; nothing was written."""

    def __init__(self, message: str, digest: str = "") -> None:
        super().__init__(message)
        self.digest = digest  # the first name


class SegmentMissing(StoreError):
    """A session names bytes that are not in the store (evicted or lost)."""
