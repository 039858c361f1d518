"""What the LLM is made of: names of a model and a store, and how answers are drawn."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

from llama_index.core.base.llms.generic_utils import messages_to_prompt
from llama_index.core.llms.llm import default_completion_to_prompt
from llama_index.core.schema import BaseNode
from llama_index.llms.beacon.structured import StructuredOutput
from pydantic import AliasChoices, ConfigDict, Field, SecretStr

from beacon_memory.config import BeaconConfig, check_finder, check_recall
from beacon_memory.errors import ConfigError
from beacon_memory.serving.engine import Engine
from beacon_memory.serving.engines import ReadsDocuments
from beacon_memory.talk.history import History

Documents = str | Path | BaseNode | Iterable["str | Path | BaseNode"]

SAMPLING = ("temperature", "top_p", "top_k", "repetition_penalty", "seed", "stop", "max_new_tokens")
CALL = ("session_id", "history", "budget", "context_id", "texts", "recall_tokens")


class BeaconSettings(ReadsDocuments, StructuredOutput):
    """The fields of `BeaconLLM`."""

    model_config = ConfigDict(
        arbitrary_types_allowed=True, populate_by_name=True, protected_namespaces=(), extra="forbid"
    )

    _model_field: ClassVar[str] = "model_name"
    _environ: ClassVar[Mapping[str, str]] = os.environ

    model_name: str | None = Field(
        default=None,
        validation_alias=AliasChoices("model_name", "model"),
        description='A directory, hub id, GGUF file or "smollm2"; default: BEACON_MODEL, else "smollm2".',
    )
    base_url: str | None = Field(
        default=None,
        description="A server's address (beacon-memory serve): model and sessions are there, none is loaded here.",
    )
    api_key: SecretStr | None = Field(
        default=None, exclude=True, description="For the server; default: BEACON_API_KEY."
    )
    timeout: float | None = Field(
        default=None, description="Seconds until a request to the server is given up; default: 600."
    )
    max_retries: int | None = Field(
        default=None, description="How often a request to the server is sent again; default: 2."
    )
    engine: Engine | None = Field(
        default=None,
        exclude=True,
        repr=False,
        description="A loaded model to share; made from the names below where it is not given.",
    )
    config: BeaconConfig | None = Field(default=None, exclude=True, description="How text is folded.")
    adapter: str | None = Field(default="auto", description="Beacon weights; None for the base model's own.")
    finder: str = Field(
        default="attention",
        description="What finds the passages that are read again: attention (the adapter's heads), words, or "
        "attention+words.",
    )
    device_map: Any = Field(default=None, description="As transformers takes it.")
    dtype: Any = Field(default="auto", description="As transformers takes it.")
    model_kwargs: dict[str, Any] = Field(default_factory=dict, description="More of what transformers takes.")

    store: Any = Field(
        default=None,
        exclude=True,
        repr=False,
        description="Where sessions are kept: a URL (memory://, sqlite:///memory.db, redis://…) or a StateStore.",
    )
    redis_url: SecretStr | None = Field(
        default=None, exclude=True, description="The same, for Redis; default: BEACON_REDIS_URL."
    )
    redis_client: Any = Field(default=None, exclude=True, repr=False, description="A redis-py client of yours.")
    key_prefix: str = Field(default="beacon", description="What keys in Redis begin with.")
    ttl: int | None = Field(default=None, description="Seconds that a session lives in Redis after its last use.")

    session_id: str | None = Field(default=None, description="The session of every call that names none.")
    history: History = Field(default="auto", description="What a message list is to its session.")
    budget: int | None = Field(default=None, description="The most slots a session may keep.")
    beacon_ratio: int | None = Field(
        default=None, description="Raw tokens a slot stands for, of what is folded from now on."
    )
    recall_tokens: int | None = Field(
        default=None,
        description="Tokens of what a question is about that are read again, raw, in front of it, at most; default: "
        "the memory's.",
    )
    context_id: str | list[str] | None = Field(
        default=None, description="Documents that stand in front of every prompt, as `with_context` named them."
    )

    context_window: int | None = Field(
        default=None, description="The window to tell of; default: what memory holds at this ratio."
    )
    is_chat_model: bool = Field(default=True, description="Whether the model has a chat template.")
    temperature: float | None = Field(default=None, description="0 or None is greedy.")
    top_p: float | None = Field(default=None, description="Nucleus sampling.")
    top_k: int | None = Field(default=None, description="Sampling from so many tokens.")
    max_new_tokens: int | None = Field(
        default=None,
        validation_alias=AliasChoices("max_new_tokens", "max_tokens"),
        description="The most tokens an answer has; default: 256.",
    )
    repetition_penalty: float | None = Field(default=None, description="Above 1: fewer repetitions.")
    seed: int | None = Field(default=None, description="Of what is drawn.")
    stop: list[str] | None = Field(default=None, description="The answer ends before the first of these.")
    generate_kwargs: dict[str, Any] = Field(default_factory=dict, description="The same names, for every call.")

    def __init__(self, **fields: Any) -> None:
        """The fields by name. Raises ConfigError for two stores, or for a setting of another kind of model."""
        written = fields.get("messages_to_prompt"), fields.get("completion_to_prompt")
        if any(by not in (None, messages_to_prompt, default_completion_to_prompt) for by in written):
            raise ConfigError(
                "this model's prompts are written by its chat template: set tokenizer.chat_template, not "
                "messages_to_prompt or completion_to_prompt"
            )
        super().__init__(**fields)
        self._settle()
        self._sampling({})
        if self.recall_tokens is not None:
            check_recall(self.recall_tokens)
        check_finder(self.finder)

    def __getstate__(self) -> dict[str, Any]:
        # LlamaIndex takes from the object itself what cannot be pickled; a copy is made anew of its names.
        state: dict[str, Any] = super(BeaconSettings, self.model_copy(update={"engine": None})).__getstate__()
        return state

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
        if not isinstance(one, BaseNode):
            return None
        # An id that LlamaIndex made up is another one in each run, and would put the same document behind itself.
        own = one.node_id if "id_" in one.model_fields_set else ""
        return str(one.metadata.get("file_name") or one.metadata.get("title") or own), one.get_content()

    def _sampling(self, kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """How this answer is drawn: what the call says, else the fields; what neither says, as the core has it.

        Raises ConfigError for a word that nobody reads.
        """
        asked = {**self.generate_kwargs, **kwargs}
        if (most := asked.pop("max_tokens", None)) is not None:
            asked["max_new_tokens"] = most
        if unknown := sorted(set(asked) - {*SAMPLING, *CALL}):
            raise ConfigError(f"unknown option {', '.join(unknown)}; there are {', '.join([*SAMPLING, *CALL])}")
        found = {name: getattr(self, name) if asked.get(name) is None else asked[name] for name in SAMPLING}
        return {name: value for name, value in found.items() if value is not None}

    def _recall(self, kwargs: Mapping[str, Any]) -> int | None:
        """How many tokens may be read again: what the call says, else the settings; None: as the memory has it."""
        asked = {**self.generate_kwargs, **kwargs}
        found: int | None = asked.get("recall_tokens", self.recall_tokens)
        return found
