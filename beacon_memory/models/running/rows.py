"""Rows of many answers in one forward: each is read behind its own cache, which it lengthens."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate, pairwise
from threading import Event
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import DynamicCache, LogitsProcessorList, PreTrainedTokenizerBase, StoppingCriteriaList

from beacon_memory.fold.layout import causal
from beacon_memory.fold.projections import Attend, BeaconProjection
from beacon_memory.fold.recurrence import Read, states_of
from beacon_memory.models.generation import Sampling, end_ids
from beacon_memory.models.resident import ResidentPrefix, RoomLayer, cache_of

if TYPE_CHECKING:
    from beacon_memory.state.state import Segment

AHEAD = 4  # tokens that are made before they are asked for


@dataclass(eq=False)
class Row:
    """One answer that is being made: what is to be read next, and what has been said."""

    cache: DynamicCache
    resident: ResidentPrefix  # whose room the cache is in
    prompt: Sequence[int]  # of which the resident had not read these ids yet
    processors: LogitsProcessorList
    criteria: StoppingCriteriaList
    ends: Sequence[int]
    limit: int  # tokens
    gone: Event  # set when nobody wants the answer any more
    ids: Tensor  # (1, prompt + answer), as processors take them
    pending: list[int]  # to be read next
    made: list[int] = field(default_factory=list)
    unread: deque[int] = field(default_factory=deque)  # made, and not handed out yet
    ahead: int = AHEAD  # how many of these there may be
    over: bool = False
    failure: BaseException | None = None
    stepping: bool = False  # a pass of the model reads it now
    left: bool = False  # nobody waits for it any more

    @classmethod
    def behind(
        cls,
        lm: Any,
        tokenizer: PreTrainedTokenizerBase,
        resident: ResidentPrefix,
        segments: Sequence[Segment],
        prompt: Sequence[int],
        sampling: Sampling,
        *,
        gone: Event | None = None,
    ) -> Row:
        """The answer to a prompt behind segments; what the resident holds of both is not read again."""
        # A penalty looks at the ids that it is given: it needs all of them.
        again = sampling.repetition_penalty == 1
        new = len(prompt) + sampling.max_new_tokens
        shared = resident.stand(segments, prompt, room=new, raw=again, whole=True)
        room, left, ends = resident.roomy(lm, new), list(prompt[shared:]), end_ids(lm, tokenizer)
        row = cls(
            cache=cache_of(lm, resident.past, room),
            resident=resident,
            prompt=left,
            processors=sampling.processors(tokenizer, ends, prompt=len(left), device=resident.past.device),
            criteria=sampling.criteria(tokenizer, prompt=len(left)),
            ends=ends,
            limit=sampling.max_new_tokens,
            gone=gone or Event(),
            ids=torch.tensor([left], dtype=torch.long, device=resident.past.device),
            pending=left,
        )
        if not left and resident.next is not None:  # the whole prompt has been read already
            row.told(resident.next)
        return row

    @property
    def read(self) -> int:
        """How many entries its cache holds."""
        return int(self.cache.get_seq_length())

    @property
    def wanted(self) -> bool:
        """Whether the next pass may lengthen it."""
        if self.gone.is_set():
            self.over = True
        return not (self.over or self.failure or self.left) and len(self.unread) < self.ahead

    def told(self, logits: Tensor) -> None:
        """Take the next token, if that can be; what fails is this answer's own."""
        try:
            with torch.inference_mode():
                self.say(logits)
        except Exception as exc:
            self.failure = exc

    def say(self, logits: Tensor) -> None:
        """Take the next token from logits.  # (1, vocabulary)"""
        scores = self.processors(self.ids, logits.to(self.ids.device, torch.float32))
        token = scores.argmax(dim=-1)
        self.ids = torch.cat([self.ids, token[:, None]], dim=1)
        self.pending = token.tolist()
        self.made += self.pending
        self.over = self.made[-1] in self.ends or len(self.made) >= self.limit
        self.over = self.over or bool(self.criteria(self.ids, scores).all())
        self.unread.append(self.made[-1])

    def settle(self) -> None:
        """Hand what was read to the resident, once; what a pass failed in is let go."""
        if self.failure is not None:
            return
        layer = next(layer for layer in reversed(self.cache.layers) if isinstance(layer, RoomLayer))
        # A layer on another device has lengthened a copy of its own: the room holds nothing new.
        if layer.written == self.read:
            past = self.resident.past
            ids = [*self.prompt, *self.made][: self.read - past.slots]
            self.resident.read(ids, recurrent=states_of(self.cache, past.recurrences))
        self.resident.release(self.resident)


class RowsPass:
    """A forward over pieces of many rows, side by side as one: projections see all of them, attention each alone."""

    def __init__(self, rows: Sequence[Row], sizes: Sequence[int], *, dtype: torch.dtype) -> None:
        """`sizes`: how many rows each piece has."""
        self._pieces = [slice(start, end) for start, end in pairwise(accumulate(sizes, initial=0))]
        self._rows = list(rows)
        self._dtype = dtype
        self._pasts = [row.read for row in rows]
        self._masks: dict[tuple[int, int | None], Tensor | None] = {}

    @property
    def positions(self) -> Tensor:
        """Where the rows stand.  # (rows of all pieces,)"""
        sizes = [piece.stop - piece.start for piece in self._pieces]
        return torch.cat([torch.arange(n) + past for n, past in zip(sizes, self._pasts, strict=True)])

    def project(self, projection: BeaconProjection, hidden: Tensor) -> Tensor:
        projected: Tensor = projection.base(hidden)
        return projected

    def attend(self, module: Any, query: Tensor, key: Tensor, value: Tensor, attend: Attend) -> Tensor:
        layer, window = module.beacon_layer, module.beacon_layer.window
        outputs = []
        for n, (row, piece) in enumerate(zip(self._rows, self._pieces, strict=True)):
            held = row.cache.layers[layer.index]
            new = key[:, :, piece], value[:, :, piece]
            keys, values = (held.keys, held.values) if layer.shared else held.update(*new)
            if piece.stop - piece.start == 1 and window is not None:
                keys, values = keys[:, :, -window:], values[:, :, -window:]
            mask = self._mask(n, window)
            outputs.append(attend(query[:, :, piece], keys, values, None if mask is None else mask.to(query.device)))
        return torch.cat(outputs, dim=1)

    def recur(self, hidden: Tensor, read: Read) -> Tensor:
        pieces = zip(self._rows, self._pieces, strict=True)
        return torch.cat([read(hidden[:, piece], row.cache) for row, piece in pieces], dim=1)

    def _mask(self, n: int, window: int | None) -> Tensor | None:
        """What a piece's rows see in a layer of this window; None for all before them."""
        past, count = self._pasts[n], self._pieces[n].stop - self._pieces[n].start
        if count == 1 or (not past and window is None):
            return None
        if (n, window) not in self._masks:
            positions = torch.arange(count)
            self._masks[n, window] = causal(positions, positions, past=past, dtype=self._dtype, window=window)
        return self._masks[n, window]
