"""Answers by a vLLM server from sessions that are folded here."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from beacon_memory.errors import ModelError, PromptTooLong
from beacon_memory.models.generation import Sampling
from beacon_memory.sessions.looking.again import look_again
from beacon_memory.sessions.memory import BeaconMemory
from beacon_memory.sessions.prompt import make_prompt
from beacon_memory.sessions.stored import CONTEXT
from beacon_memory.stores.base import not_found
from vllm_beacon.asked import Asked
from vllm_beacon.endpoint import Endpoint
from vllm_beacon.places import placeholders
from vllm_beacon.reading import pieces_of

if TYPE_CHECKING:
    from beacon_memory.state.state import Segment

logger = logging.getLogger(__name__)

TRIES = 3  # of a question whose session others move on meanwhile


@dataclass(frozen=True)
class Question:
    """A question as vLLM takes it."""

    ids: tuple[int, ...]  # placeholders, then what is read raw
    asked: Asked
    stop: tuple[str, ...]


class VLLMServer:
    """A vLLM server with a BeaconConnector, and a memory over the same store and the same model.

    vLLM answers; this process folds what was said, or leaves that to fold workers.
    """

    def __init__(
        self,
        memory: BeaconMemory,
        url: str = "http://localhost:8000",
        *,
        salt: str = "",
        timeout: float = 600.0,
        fold: bool = True,
    ) -> None:
        """A memory and the address of `vllm serve`. `salt` is the connector's. Without `fold` what was said stays raw
        until a worker folds it (`beacon-memory fold-worker`). Raises ModelError, where no vLLM answers.
        """
        self.memory = memory
        self._fold = fold
        self._salt = salt.encode()
        self.vllm = Endpoint(url, timeout=timeout)
        self.model, self.positions = self.vllm.model, self.vllm.positions

    def question(
        self,
        session_id: str,
        text: str,
        *,
        system: str | None = None,
        contexts: Sequence[str] = (),
        recall_tokens: int = 0,
        answer: int = 256,
        create: bool = False,
    ) -> Question:
        """The prompt for a question to a session, behind the documents of `contexts`, in vLLM's terms; with `create`,
        the session need not be there yet.

        Raises SessionNotFound, ModelMismatch, InputError, and PromptTooLong where an answer of so many tokens has no
        room.
        """
        memory = self.memory
        head, state, version = memory.session(session_id).opened()
        if not version and not create:
            raise not_found(session_id)
        owned: list[tuple[str, Segment]] = []
        for name in contexts:
            documents = memory.view(CONTEXT + name, memory.state)[0]
            owned += [(CONTEXT + name, segment) for segment in documents.segments]
        owned += [(session_id, segment) for segment in state.segments]
        prompt = make_prompt(
            memory,
            state,
            segments=[segment for _, segment in owned],
            opens=head.unfolded,
            asked=memory.transcript.read([{"role": "user", "content": text}]),
            system=system,
        )
        if recall_tokens:
            prompt = look_again(memory, prompt, recall_tokens=recall_tokens, answer=answer)
        model, pieces = memory.model, pieces_of(owned)
        stands = placeholders(pieces, vocabulary=model.lm.config.vocab_size, salt=self._salt)
        if (total := len(stands) + len(prompt.ids) + answer) > self.positions:
            raise PromptTooLong(
                f"{len(stands)} slots, {len(prompt.ids)} prompt tokens and {answer} for the answer are {total}, vLLM "
                f"serves {self.positions}: shorten the question, give the session a budget, or raise --max-model-len"
            )
        session = session_id if version else None
        asked = Asked(len(stands), model.fingerprint, session, version, tuple(contexts))
        return Question((*stands, *prompt.ids), asked, prompt.stop)

    def ask(
        self,
        session_id: str,
        text: str,
        *,
        system: str | None = None,
        contexts: Sequence[str] = (),
        recall_tokens: int = 0,
        create: bool = False,
        **sampling: Any,
    ) -> str:
        """An answer from memory; nothing is remembered. `create` is as for `question`.

        `sampling` is as for `Session.ask`, but for `repetition_penalty`. Raises what `question`
        raises, ConfigError, and ModelError where vLLM cannot answer.
        """
        how = Sampling.of(sampling)
        made: dict[str, Any] = {"system": system, "contexts": contexts, "recall_tokens": recall_tokens}
        made["create"] = create
        for left in reversed(range(TRIES)):
            question = self._made(session_id, text, answer=how.max_new_tokens, **made)
            try:
                return self.complete(question, how)
            except ModelError:
                # A session that was changed since the prompt was made is read again.
                if not left or self.memory.store.version(session_id) == question.asked.version:
                    raise
        raise AssertionError("unreachable")

    def chat(self, session_id: str, text: str, **how: Any) -> str:
        """An answer from memory, and both turns remembered once it is whole; the session is made by its first turn."""
        answer = self.ask(session_id, text, create=True, **how)
        said = [{"role": "user", "content": text}]
        if spoken := self.memory.transcript.spoken(answer).strip():
            said.append({"role": "assistant", "content": spoken})
        self.memory.session(session_id).add(said, fold=self._fold)
        return answer

    def _made(self, session_id: str, text: str, **made: Any) -> Question:
        """The question. Where workers have left so much raw that it does not fit, some is folded here."""
        while True:
            try:
                return self.question(session_id, text, **made)
            except PromptTooLong:
                if not self.memory.store.version(session_id) or not self.memory.session(session_id).fold():
                    raise
                logger.warning("session %r waited too long for a fold worker: folded here", session_id)

    def complete(self, question: Question, sampling: Sampling) -> str:
        """The answer to a question that is made already. Raises InputError, ModelError."""
        how = self.vllm.body(self.memory.model, sampling, stop=question.stop)
        return str(self.vllm.complete(question.ids, question.asked, how)["text"])

    def close(self) -> None:
        """Close the connection; the memory stays open."""
        self.vllm.close()
