"""What the chat model and the text model are made of: names of a model and a store, and how answers are drawn."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

from langchain_core.documents import Document
from pydantic import BaseModel, ConfigDict, Field, SecretStr, model_validator

from beacon_memory.config import BeaconConfig, check_finder, check_recall
from beacon_memory.errors import ConfigError
from beacon_memory.serving.engine import Engine
from beacon_memory.serving.engines import ReadsDocuments

SAMPLING = ("temperature", "top_p", "top_k", "repetition_penalty", "seed")
LIMITS = ("max_tokens", "max_new_tokens", "stop", "stop_sequences")
CALL = ("session_id", "history", "budget", "keep", "context_id", "recall_tokens", "model")
ANSWER = ("tools", "tool_choice", "parallel_tool_calls", "response_format", "strict")  # answers are strict anyhow

Documents = str | Path | Document | Iterable["str | Path | Document"]


class BeaconSettings(ReadsDocuments, BaseModel):
    """The fields that `ChatBeacon` and `BeaconLLM` share."""

    model_config = ConfigDict(arbitrary_types_allowed=True, populate_by_name=True, protected_namespaces=())

    _environ: ClassVar[Mapping[str, str]] = os.environ

    model: str | None = Field(default=None, alias="model_name")
    """A directory, hub id, GGUF file or "smollm2"; default: BEACON_MODEL, else "smollm2"."""
    base_url: str | None = None
    """A server's address (`beacon-memory serve`): model and sessions are there, and no model is loaded here."""
    api_key: SecretStr | None = None
    """For the server; default: BEACON_API_KEY. Without base_url it changes nothing, as the two below."""
    timeout: float | None = None
    """Seconds until a request to the server is given up; default: 600."""
    max_retries: int | None = None
    """How often a request to the server is sent again; default: 2."""
    engine: Engine | None = Field(default=None, exclude=True, repr=False)
    """A loaded model to share; made from the names below where it is not given."""
    config: BeaconConfig | None = Field(default=None, exclude=True)
    adapter: str | None = "auto"
    finder: str = "attention"
    """What finds the passages that are read again: "attention" (the adapter's heads), "words", or "attention+words"."""
    device_map: Any = None
    dtype: Any = "auto"
    model_kwargs: dict[str, Any] = Field(default_factory=dict)

    store: Any = Field(default=None, exclude=True, repr=False)
    """Where sessions are kept: a URL (memory://, sqlite:///memory.db, redis://…) or a StateStore."""
    redis_url: SecretStr | None = None
    """The same, for Redis; default: BEACON_REDIS_URL."""
    redis_client: Any = Field(default=None, exclude=True, repr=False)
    key_prefix: str = "beacon"
    ttl: int | None = None
    """Seconds that a session lives in Redis after it was last used."""
    beacon_ratio: int | None = None
    """Raw tokens a slot stands for, of what is folded from now on."""
    recall_tokens: int | None = None
    """Tokens of what a question is about that are read again, raw, in front of it, at most; default: the memory's."""

    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    max_tokens: int | None = Field(default=None, alias="max_new_tokens")
    repetition_penalty: float | None = None
    seed: int | None = None
    stop: list[str] | None = Field(default=None, alias="stop_sequences")
    streaming: bool = False

    context_id: str | list[str] | None = None
    """Documents that stand in front of every prompt, as `with_context` named them."""

    @model_validator(mode="before")
    @classmethod
    def _know_all(cls, fields: Any) -> Any:
        """Refuse what is no field's name."""
        if isinstance(fields, dict):
            known = {name for key, field in cls.model_fields.items() for name in (key, field.alias)}
            if unknown := sorted(map(str, set(fields) - known)):
                near = [n for one in unknown for n in get_close_matches(one, [n for n in known if n], 1)]
                meant = f"; perhaps {', '.join(near)}" if near else ""
                raise ValueError(f"unknown argument {', '.join(unknown)}{meant}")
        return fields

    @model_validator(mode="after")
    def _set_beacon_engine(self) -> Self:
        if self.recall_tokens is not None:
            check_recall(self.recall_tokens)
        check_finder(self.finder)
        self._settle()
        return self

    def __getstate__(self) -> dict[Any, Any]:
        """Names alone: the engine is made anew of them. Raises ConfigError where it was given, and has none."""
        if self.engine is not None and self.engine.place is None and self.engine.keeps_sessions:
            raise ConfigError(
                "this model's store was given as an object, which cannot be written down: name it by store= or "
                "redis_url= to pickle the model"
            )
        return super(BeaconSettings, self.model_copy(update={"engine": None})).__getstate__()

    if TYPE_CHECKING:

        def with_context(
            self,
            documents: Documents,
            *,
            context_id: str | None = None,
            delete_missing: bool = False,
            skip_bad: bool = True,
        ) -> Self: ...

    @staticmethod
    def _document(one: Any) -> tuple[str, str] | None:
        if not isinstance(one, Document):
            return None
        return str(one.metadata.get("source") or one.id or ""), one.page_content

    def _sampling(self, stop: list[str] | None, kwargs: dict[str, Any]) -> dict[str, Any]:
        """How this answer is drawn: what the call says, else the fields; what neither says, as the core has it.

        Raises ConfigError for a word that nobody reads.
        """
        if unknown := sorted(set(kwargs) - {*SAMPLING, *LIMITS, *CALL, *ANSWER}):
            there = ", ".join([*SAMPLING, *LIMITS, *CALL, *ANSWER])
            raise ConfigError(f"unknown argument {', '.join(unknown)}; there are {there}")
        found = {name: kwargs.get(name, getattr(self, name)) for name in SAMPLING}
        for name in ("max_tokens", "max_new_tokens"):
            found["max_new_tokens"] = kwargs.get(name) or found.get("max_new_tokens") or self.max_tokens
        found["stop"] = self._stops(stop, kwargs) or None
        return {name: value for name, value in found.items() if value is not None}

    def _recall(self, kwargs: Mapping[str, Any]) -> int | None:
        """How many tokens may be read again: what the call says, else the field; None for the memory's own number."""
        found: int | None = kwargs.get("recall_tokens", self.recall_tokens)
        return found

    def _stops(self, stop: list[str] | None, kwargs: dict[str, Any]) -> list[str]:
        asked = stop or kwargs.get("stop_sequences") or self.stop or []
        return [asked] if isinstance(asked, str) else list(asked)
