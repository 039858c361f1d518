"""vLLM in the model's place: a memory whose answers it makes, behind slots that it reads from the same store."""

from __future__ import annotations

import logging
import threading
import time
import uuid
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import Any

import torch

from beacon_memory.errors import (
    ConfigError,
    ModelError,
    ModelUnavailable,
    SessionNotFound,
    StoreError,
    UnsupportedModel,
)
from beacon_memory.models.generation import Answer, Sampling
from beacon_memory.models.running.stream import Stream
from beacon_memory.serving.folding import FoldWorker
from beacon_memory.sessions.repository import Repository
from beacon_memory.sessions.stored import CONTEXT, StoredSession
from beacon_memory.state.budget import check_prompt, default_budget
from beacon_memory.state.head import Entry, SessionHead
from beacon_memory.state.state import BeaconState, Segment
from beacon_memory.stores.names import LENT
from vllm_beacon.asked import Asked
from vllm_beacon.endpoint import Endpoint
from vllm_beacon.places import placeholders
from vllm_beacon.reading import pieces_of

logger = logging.getLogger(__name__)

LEFT = 3600.0  # seconds after which what was lent for an answer is nobody's any more
TEXT = "The lighthouse keeper wrote down every ship that passed, its flag, its cargo and the hour of the day. "
CLOSE = 0.5  # how far a log-probability of the self-test may be off: vLLM may round to 16 bits where we do not


class VLLMEngine:
    """Makes a memory's answers by vLLM. Sessions, documents and message lists are as ever; what is said stays raw, and
    is folded off the path of answers: by a thread of its own, or by fold workers.

    >>> memory = BeaconMemory.open("smollm2", store="sqlite:///memory.db")              # doctest: +SKIP
    >>> memory.elsewhere = VLLMEngine(memory, Endpoint("http://127.0.0.1:8001"))        # doctest: +SKIP
    >>> memory.session("ada").chat("My name is Ada.")                                   # doctest: +SKIP
    """

    def __init__(
        self,
        memory: Repository,
        vllm: Endpoint,
        *,
        salt: str = "",
        namespace: str | None = None,
        fold: bool = True,
    ) -> None:
        """A memory over the store that vLLM's connector reads, or over that of a `namespace` beside it. `salt` is the
        connector's. Without `fold` workers fold (`beacon-memory fold-worker`). Raises ConfigError for a store that no
        other process can read.
        """
        self._memory, self._vllm, self._namespace, self._salt = memory, vllm, namespace, salt.encode()
        self.positions = min(memory.model.positions, vllm.positions)
        if memory.store.queue() is None:
            raise ConfigError("vLLM reads sessions from the store: keep them in SQLite or Redis, not in memory://")
        if memory.model.finder is not None and memory.model.finder.heads:
            memory.recall_tokens = 0  # its heads would have our model read each question first
        memory.model.budget = min(memory.model.budget, default_budget(self.positions, memory.model.config))
        self._stop = threading.Event()
        self._folding = threading.Thread(target=self._fold, name="beacon-fold", daemon=True) if fold else None
        if self._folding is not None:
            self._folding.start()

    def stream(
        self, prompt: Sequence[int], segments: Sequence[Segment], *, named: tuple[str, ...], **how: Any
    ) -> Stream:
        """The answer to a prompt behind segments, in pieces, as `Elsewhere` says. What of the segments no session in
        the store names is lent to vLLM for this answer. Raises InputError, PromptTooLong.
        """
        sampling, slots = Sampling.of(how), sum(segment.slots for segment in segments)
        check_prompt(slots, len(prompt), sampling.max_new_tokens, positions=self.positions)
        body = self._vllm.body(self._memory.model, sampling)
        whole: list[Answer] = []
        return Stream(self._pieces(list(prompt), segments, named, body, whole), whole)

    def self_test(self) -> None:
        """Fold a window, and have vLLM read it: what it says next must be what our model says. Raises UnsupportedModel
        where it is not, ModelError where vLLM cannot read it.
        """
        model = self._memory.model
        ids = (model.encode(TEXT) * model.config.window)[: model.config.window + model.config.sink + 8]
        state, asking = model.compress(ids[:-8], close=True), ids[-8:]
        ours = model.logits(asking, state)[-1].float().log_softmax(-1)
        how = self._vllm.body(model, Sampling(max_new_tokens=1)) | {"logprobs": 5, "return_tokens_as_token_ids": True}
        how["stop_token_ids"] = []
        with self._lent(state.segments, ()) as (stands, asked):
            choice = self._vllm.complete([*stands, *asking], asked, how)
        theirs = {int(name.partition(":")[2]): p for name, p in choice["logprobs"]["top_logprobs"][0].items()}
        far = max(abs(float(ours[i]) - p) for i, p in theirs.items())
        if not far <= CLOSE:
            told = ", ".join(repr(model.decode([i])) for i in torch.topk(ours, 3).indices.tolist())
            raise UnsupportedModel(
                f"vLLM reads a folded window otherwise than our model: a log-probability is off by {far:.2f} (ours "
                f"begin with {told}); serve the same weights, with our connector over the same store"
            )

    def check(self) -> None:
        """Raises ModelUnavailable unless vLLM answers."""
        self._vllm.check()

    def close(self) -> None:
        """Stop folding: windows at hand are finished, the rest stays on the queue. The endpoint stays open."""
        self._stop.set()
        if self._folding is not None:
            self._folding.join()

    def _fold(self) -> None:
        try:
            for name in self._memory.store.sessions():
                if name.startswith(LENT) and time.time() - float(name.split(":")[1]) > LEFT:
                    with suppress(SessionNotFound):
                        self._memory.store.delete(name)  # whoever lent it has died
        except StoreError as exc:
            logger.warning("what was lent for answers is not looked through: %s", exc)
        FoldWorker(self._memory).run(self._stop)

    def _pieces(
        self,
        prompt: list[int],
        segments: Sequence[Segment],
        named: tuple[str, ...],
        body: dict[str, Any],
        whole: list[Answer],
    ) -> Generator[str, None, None]:
        if not segments:
            yield from self._vllm.stream(prompt, None, body, whole)
            return
        said: list[str] = []
        if (found := self._named(segments, named)) is not None:
            stands, asked = found
            try:
                for piece in self._vllm.stream([*stands, *prompt], asked, body, whole):
                    said.append(piece)
                    yield piece
                return
            except ModelUnavailable:
                raise
            except ModelError:
                if said or self._named(segments, named) == found:
                    raise
                logger.info("%s moved while vLLM was asked: what was read is lent", " behind ".join(reversed(named)))
        with self._lent(segments, named) as (stands, asked):
            yield from self._vllm.stream([*stands, *prompt], asked, body, whole)

    def _named(self, segments: Sequence[Segment], named: tuple[str, ...]) -> tuple[list[int], Asked] | None:
        """The placeholders of segments that sessions in the store begin with, and how vLLM is told; None where they do
        not.
        """
        entries, version = self._entries(named)
        if [entry.blob for _, entry in entries[: len(segments)]] != [segment.name for segment in segments]:
            return None
        contexts = [name for name in named if name.startswith(CONTEXT)]
        if named[: len(contexts)] != tuple(contexts) or len(named) > len(contexts) + 1:
            return None  # what stands in front is documents, and a session behind them
        about: dict[str, Any] = {"contexts": tuple(name.removeprefix(CONTEXT) for name in contexts)}
        if version and len(named) > len(contexts):
            about |= {"session": named[-1], "version": version}
        return self._told([(owner, one) for (owner, _), one in zip(entries, segments, strict=False)], **about)

    def _entries(self, named: tuple[str, ...]) -> tuple[list[tuple[str, Entry]], int]:
        """What sessions in the store name, each with whose it is, and the last one's version; 0 for none."""
        found, version = list[tuple[str, Entry]](), 0
        for name in named:
            try:
                head, version = self._memory.load(name)
            except SessionNotFound:
                version = 0
            else:
                found += [(name, entry) for entry in head.entries]
        return found, version

    def _told(self, owned: Sequence[tuple[str, Segment]], **about: Any) -> tuple[list[int], Asked]:
        model, pieces = self._memory.model, pieces_of(owned)
        slots = sum(piece.slots for piece in pieces)
        asked = Asked(slots, model.fingerprint, namespace=self._namespace, **about)
        salt = asked.salted(self._salt)
        return placeholders(pieces, vocabulary=model.lm.config.vocab_size, salt=salt), asked

    @contextmanager
    def _lent(self, segments: Sequence[Segment], named: tuple[str, ...]) -> Iterator[tuple[list[int], Asked]]:
        """The same for any segments: while inside, a session of their own names them in the store."""
        memory, name = self._memory, f"{LENT}{time.time():.0f}:{uuid.uuid4().hex}"
        empty = SessionHead(memory.model.fingerprint, memory.model.config.ratio)
        known = replace(empty, entries=tuple(entry for _, entry in self._entries(named)[0]))
        state = BeaconState(tuple(segments))
        StoredSession(memory, name).write(known, empty.with_state(state), state, {}, expected=0)
        try:
            yield self._told([(name, segment) for segment in segments], session=name)
        finally:
            with suppress(StoreError):  # it is swept later
                memory.store.delete(name)
