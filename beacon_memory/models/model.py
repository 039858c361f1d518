"""A language model that folds what it reads into beacon slots, and answers from them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property
from math import prod
from pathlib import Path
from threading import Event
from typing import Any, Self

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from beacon_memory.config import BeaconConfig, check_finder, check_ratio
from beacon_memory.errors import InputError, ModelError
from beacon_memory.fold.attention import Beacons
from beacon_memory.fold.family import positions_of, slot_shape, slot_shapes
from beacon_memory.fold.fold import fold
from beacon_memory.fold.prefix import Prefix
from beacon_memory.fold.segment import segment_of
from beacon_memory.models.adapter import (
    adapter_config,
    load_adapter,
    load_published,
    packaged_adapter,
    published_config,
    settings_for,
)
from beacon_memory.models.families import check_settings, check_supported, inner
from beacon_memory.models.finder import finder_by, read_finder
from beacon_memory.models.generation import Answer, Sampling, StopFilter, ended
from beacon_memory.models.given import check_budget, check_called, given_prompts, given_segments, given_state, token_ids
from beacon_memory.models.loading import (
    checkpoint_files,
    hash_tensors,
    load,
    model_fingerprint,
    one_thread_after_fork,
    plain_ids,
    read_config,
    resolve,
    tokenizer_fingerprint,
)
from beacon_memory.models.resident import CACHE, ResidentPrefix, cache_of
from beacon_memory.models.running.rows import Row
from beacon_memory.models.running.running import Running
from beacon_memory.models.running.stream import Stream
from beacon_memory.state.budget import check_prompt, check_room, default_budget, next_refold
from beacon_memory.state.state import BeaconState, Fingerprint, Segment, chain, overlapped, segment_digest

Known = Callable[[str], "Segment | None"]


class BeaconModel:
    """A supported causal LM of transformers with beacons attached. It holds weights, never a session.

    >>> model = BeaconModel.from_pretrained("smollm2")                    # doctest: +SKIP
    >>> state = model.compress(model.encode("I live in Lyon. " * 200))    # doctest: +SKIP
    >>> model.generate([model.encode("I live in")], [state])              # doctest: +SKIP
    """

    def __init__(
        self,
        lm: Any,
        tokenizer: PreTrainedTokenizerBase,
        config: BeaconConfig | None = None,
        *,
        adapter: str | Path | None = None,
        published: list[str] | None = None,
        finder: str = "attention",
    ) -> None:
        """Attach beacons to a loaded model; `detach` gives it back.

        Without `adapter` (an adapter's folder) or `published` (a paper checkpoint's safetensors files) the memory is
        untrained. `config` may change an adapter's settings, except its layout. Raises UnsupportedModel, AdapterError.
        """
        self._given, lm = lm, inner(lm)
        check_supported(lm.config)
        one_thread_after_fork()
        self.lm, self.tokenizer = lm, tokenizer
        model = model_fingerprint(lm)
        self.beacons = Beacons(lm)
        try:
            settings = config or BeaconConfig()
            if adapter is not None:
                settings = settings_for(load_adapter(self.beacons, adapter, model=model), config)
            if published is not None:
                load_published(self.beacons, published)
            self.fingerprint = Fingerprint(model, "none", tokenizer_fingerprint(tokenizer), settings.layout)
            self.adapted(settings)
            shape: dict[str, Any] = dict(zip(("layers", "kv_heads"), slot_shape(lm.config), strict=False))
            fitted = read_finder(adapter, model=model, **shape) if adapter is not None else None
            self.finder = finder_by(finder, fitted)  # of the passages that a question is about
        except Exception:
            self.beacons.detach()
            raise
        self.empty = Prefix.empty(lm)  # what stands before the first window
        self.running = Running(lm)  # the answers that are made now

    @classmethod
    def from_pretrained(
        cls,
        name: str | Path,
        config: BeaconConfig | None = None,
        *,
        adapter: str | Path | None = "auto",
        finder: str = "attention",
        dtype: Any = "auto",
        device_map: Any = None,
        attn_implementation: str = "sdpa",
        **options: Any,
    ) -> Self:
        """A model by directory, hub id, GGUF file or the alias "smollm2"; published beacon checkpoints load too.

        `adapter` is an adapter's folder, None for an untrained memory, or "auto": the one that this package has for
        "smollm2" if it was made for exactly the weights that are loaded, else none. `dtype` and `device_map` are
        transformers' own; on a CPU a 16-bit model is loaded in float32, which is faster there. More `options`
        (revision, token, …) go to transformers. Raises ModelError, UnsupportedModel, ConfigError.
        """
        check_finder(finder)
        where, extra = resolve(name)
        if adapter is not None and adapter != "auto":
            adapter_config(adapter)  # a damaged adapter is refused before gigabytes are read
        published = None
        if not extra:
            try:
                about = read_config(name, **options)
            except ModelError:
                if not Path(where).is_dir():
                    raise  # the hub has been asked, and waited for
                about = None  # `load` says what is wrong
            found = published_config(about) if about is not None else None
            if found is not None and adapter in (None, "auto"):
                config = settings_for(found, config)
                published = checkpoint_files(where, options)
        if dtype == "auto" and device_map is None:
            dtype = torch.float32
        lm, tokenizer = load(
            name, dtype=dtype, device_map=device_map, attn_implementation=attn_implementation, **options
        )
        if adapter == "auto":
            adapter = packaged_adapter(str(name), lm)
        return cls(lm, tokenizer, config, adapter=adapter, published=published, finder=finder)

    def adapted(self, config: BeaconConfig) -> None:
        """Use these settings and the beacon weights as they are now, after either has changed. Raises ConfigError."""
        check_settings(self.lm.config, config)
        trained = self.beacons.parameters()
        adapter = hash_tensors(dict(trained), samples=4096) if trained else "none"
        self.config = config
        self.budget = default_budget(self.positions, config)
        self.fingerprint = replace(self.fingerprint, adapter=adapter, layout=config.layout)

    @property
    def positions(self) -> int:
        """The number of positions of the model: memory, prompt and answer must fit."""
        return positions_of(self.lm.config)

    @property
    def recurrent(self) -> bool:
        """Whether some layers are recurrent: then a stream that stands behind another is folded again there."""
        return bool(self.empty.recurrences)

    @cached_property
    def recurrent_shapes(self) -> dict[str, tuple[int, ...]]:
        """The shapes of what recurrent layers have read, by name: those that reading one token leaves."""
        read = self.compress([0], close=True).segments[0].recurrent if self.recurrent else None
        return {} if read is None else read.shapes

    @property
    def raw_bytes_per_token(self) -> int:
        """The bytes of one token's raw keys and values in bfloat16: what a plain KV cache keeps."""
        return 2 * 2 * sum(map(prod, slot_shapes(self.lm.config)))

    def encode(self, text: str) -> list[int]:
        """The ids of plain text: no special token is added, and one that the text spells out is read as letters."""
        return plain_ids(self.tokenizer, text)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids, without special tokens. Raises InputError."""
        text: str = self.tokenizer.decode(self._checked(ids), skip_special_tokens=True)
        return text

    def compress(
        self,
        ids: Sequence[int],
        state: BeaconState | None = None,
        *,
        ratio: int | None = None,
        close: bool = False,
        document: bool = False,
        budget: int | None = None,
        known: Known | None = None,
        slot_dtype: str | None = None,
        progress: Callable[[int], None] | None = None,
        resident: ResidentPrefix | None = None,
    ) -> BeaconState:
        """The state after reading `ids` after `state`, which is not changed (paper, section 3.1).

        The stream alone decides where windows end, so feeding it in pieces gives the same segments. `close` ends the
        stream: its tail is folded too. A `document` is complete: it is closed, and folded in larger windows if the
        config says so. Above `budget` slots (default: the model's) the oldest segments are folded again at the next
        ratio. `known` may return the segment of a digest, which is then not folded. `slot_dtype` is the dtype of new
        slots (default: the config's). `progress` is called with the number of tokens of each window. `resident` is what
        an earlier call left on the device. Raises ConfigError, InputError, BudgetExceeded.
        """
        check_called(known=known, progress=progress)
        ratio = check_ratio(self.config.ratio if ratio is None else ratio, self.config.window)
        at_once, close = (self.config.document_window, True) if document else (self.config.window, close)
        state = given_state(state)
        how: dict[str, Any] = {"known": known, "slot_dtype": slot_dtype}
        # The budget may have shrunk since the last call, even if nothing is folded below.
        segments, tail = self.fit(state.segments, budget=budget, **how), [*state.tail, *self._checked(ids)]
        check_room(len(tail), [(len(s.ids), s.sink) for s in segments], budget or self.budget, self.config)
        resident, standing = resident or ResidentPrefix(self.empty), False
        while tail:
            sink = 0 if segments else self.config.sink
            size = sink + at_once
            if len(tail) < size + self.config.keep_last and not close:
                break
            window, tail = tail[:size], tail[size:]
            if not standing:
                windows = len(tail) // at_once + 1
                rows = 2 * (self.config.overlap + size)
                ahead = windows * (at_once // ratio) + rows
                resident.stand(segments, room=min(ahead, max(budget or self.budget, size) + rows))
            segment = self._fold(window, lambda: resident.past, segments, ratio=ratio, sink=sink, **how)
            segments.append(segment)
            resident.folded(segment)
            fitted = self.fit(segments, budget=budget, **how)
            standing = fitted == segments
            segments = fitted
            if progress:
                progress(len(window))
        return BeaconState(tuple(segments), tuple(tail))

    def fit(
        self,
        segments: Sequence[Segment],
        *,
        budget: int | None = None,
        known: Known | None = None,
        slot_dtype: str | None = None,
    ) -> list[Segment]:
        """The segments in `budget` slots: old ones are folded again from their ids, coarser. Raises BudgetExceeded."""
        check_budget(budget)
        budget = self.budget if budget is None else budget
        fitted = given_segments(segments)
        while sum(segment.slots for segment in fitted) > budget:
            index, ratio = next_refold(fitted, budget)
            old = fitted[index]
            fitted[index] = self.refold(
                old.ids, fitted[:index], ratio=ratio, sink=old.sink, known=known, slot_dtype=slot_dtype
            )
        return fitted

    def tail(self, state: BeaconState, *, opens: bool = False) -> list[int]:
        """The ids that are read raw after a state's slots: those that overlap, then its tail. Nothing overlaps where
        the tail `opens` a stream of its own.
        """
        before = state.segments if state.tail and not opens else ()
        return [*overlapped(before, config=self.config), *state.tail]

    def refold(
        self,
        ids: Sequence[int],
        before: Sequence[Segment],
        *,
        ratio: int,
        sink: int,
        known: Known | None = None,
        slot_dtype: str | None = None,
    ) -> Segment:
        """One window folded again after the segments `before` it. What follows it is not looked at."""

        def past() -> Prefix:
            resident = ResidentPrefix(self.empty)
            resident.stand(before, room=self.config.overlap + len(ids))
            return resident.past

        return self._fold(ids, past, before, ratio=ratio, sink=sink, known=known, slot_dtype=slot_dtype)

    def generate(
        self, prompts: Sequence[Sequence[int]], states: Sequence[BeaconState] | None = None, **sampling: Any
    ) -> list[str]:
        """One answer per prompt, each from its own state. States are not changed.

        `sampling`: max_new_tokens, temperature, top_p, top_k, repetition_penalty, stop, seed, constraint. Raises
        PromptTooLong.
        """
        return [answer.text for answer in self.answers(prompts, states, **sampling)]

    def answers(
        self,
        prompts: Sequence[Sequence[int]],
        states: Sequence[BeaconState] | None = None,
        *,
        residents: Sequence[ResidentPrefix | None] | None = None,
        left: Sequence[Event] | None = None,
        **sampling: Any,
    ) -> list[Answer]:
        """The same answers with their numbers of tokens and how they ended. `residents` are what earlier turns left on
        the device: one per prompt, or None. `left` are events, one per prompt: a set one ends its answer early.
        Raises PromptTooLong.
        """
        how = Sampling.of(sampling)
        prompts, states = given_prompts(prompts, states)
        kept, gone = residents or [None] * len(prompts), left or [Event() for _ in prompts]
        each = zip(prompts, states, kept, gone, strict=True)
        rows = [self._row(prompt, state, how, resident, one) for prompt, state, resident, one in each]
        self.running.whole(rows)
        answers = []
        for row in rows:
            certain = StopFilter(how.stops)
            text = certain.cut(self.decode(row.made))
            answers.append(Answer(text, *ended(row.made, row.ends, stopped=certain.stopped)))
        return answers

    def stream(
        self,
        prompt: Sequence[int],
        state: BeaconState | None = None,
        *,
        resident: ResidentPrefix | None = None,
        **sampling: Any,
    ) -> Stream:
        """The answer to one prompt in pieces, as they come. Closing the iterator stops the model. `resident` is what an
        earlier turn left on the device. Raises PromptTooLong.
        """
        how = Sampling.of(sampling)
        row = self._row(prompt, given_state(state), how, resident)
        return Stream.of(self.running, row, self.tokenizer, how.stops)

    def logits(self, ids: Sequence[int], state: BeaconState | None = None) -> Tensor:
        """The next-token logits at each of `ids`, read after a state and its tail.  # (ids, vocabulary)"""
        if not (ids := self._checked(ids)):
            raise InputError("logits take at least one token id")
        state = given_state(state)
        rows = [*self.tail(state), *ids]
        resident = ResidentPrefix(self.empty)
        resident.stand(state.segments, room=len(rows))
        cache = cache_of(self.lm, resident.past, resident.roomy(self.lm, len(rows)))
        with self.running.line, torch.inference_mode():
            read = torch.tensor([rows], device=self.empty.device)
            output = self.lm(read, **{CACHE: cache}, use_cache=True, logits_to_keep=len(ids))
        logits: Tensor = output.logits[0]
        return logits

    def detach(self) -> Any:
        """The base model, as it was given."""
        self.running.line.detach()
        self.beacons.detach()
        return self._given

    def _fold(
        self,
        ids: Sequence[int],
        past: Callable[[], Prefix],
        before: Sequence[Segment],
        *,
        ratio: int,
        sink: int,
        known: Known | None,
        slot_dtype: str | None,
    ) -> Segment:
        sink = min(sink, len(ids))
        ratio = 1 if len(ids) == sink else ratio
        config = self.config if slot_dtype is None else self.config.replace(slot_dtype=slot_dtype)
        parent, again = chain(segment.name for segment in before), overlapped(before, config=config)
        named: dict[str, Any] = {"ratio": ratio, "sink": sink, "overlap": len(again)}
        digest = segment_digest(ids, **named, parent=parent, config=config, fingerprint=self.fingerprint)
        if known is not None and (segment := known(digest)) is not None:
            return segment
        rows = torch.tensor([[*again, *ids]], device=self.empty.device)
        standing = past()
        with self.running.line, torch.inference_mode():
            folded = fold(self.beacons, standing, rows, config=self.config, states=False, **named)
        return segment_of(folded, ids, digest=digest, parent=parent, slot_dtype=config.slot_dtype, **named)

    def _row(
        self,
        prompt: Sequence[int],
        state: BeaconState,
        sampling: Sampling,
        resident: ResidentPrefix | None,
        gone: Event | None = None,
    ) -> Row:
        ids = [*self.tail(state), *self._checked(prompt)]
        check_prompt(state.slots, len(ids), sampling.max_new_tokens, positions=self.positions)
        resident = resident or ResidentPrefix(self.empty)
        return Row.behind(self.lm, self.tokenizer, resident, state.segments, ids, sampling, gone=gone)

    def _checked(self, ids: Sequence[int]) -> list[int]:
        return token_ids(ids, vocabulary=self.lm.config.vocab_size)
