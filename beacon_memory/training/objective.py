"""What training minimises: how far a model behind folded windows is from the same model with the full context.

The windows of an example are folded in turn, each at its own ratio, by the `fold` that also serves. Then each tail is
read raw behind the slots, by itself. Gradients flow through all windows into the beacons; the base is frozen. Where
anchors are learned, tails read the newest window through `gates`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from beacon_memory.config import BeaconConfig
from beacon_memory.errors import ConfigError
from beacon_memory.fold.attention import Beacons
from beacon_memory.fold.fold import Folded, embed, fold, predicted, read, stacked
from beacon_memory.fold.passes import TailPass
from beacon_memory.fold.prefix import Prefix
from beacon_memory.fold.projections import Pass
from beacon_memory.training.gates import Gated, GatedPass, gate


@dataclass(frozen=True)
class Weights:
    """How much each loss counts. Raises ConfigError.

    >>> Weights(next_token=1, teacher=0, hidden=0, context=None).taught  # the paper's own objective: no teacher
    False
    """

    next_token: float = 0.2  # cross entropy of the tokens that follow (paper, section 3.3)
    teacher: float = 1.0  # KL divergence from what the model predicts with the full context
    hidden: float = 0.0  # one minus the cosine of each layer's states and those it has with the full context
    # Cross entropy of the tokens that answer questions, on top. The teacher answers no better than the model does with
    # everything in sight, which for a small model is not well; other tokens it tells best.
    answers: float = 0.0
    # What tokens of later windows count together, those of tails being 1: the few of an answer would drown among
    # hundreds. None: every token counts alike (the paper).
    context: float | None = 0.25
    first_window: bool = False  # its own tokens count too: so in the authors' code, not in the paper

    def __post_init__(self) -> None:
        values = (self.next_token, self.teacher, self.hidden, self.answers)
        if min(values) < 0 or max(values) <= 0:
            raise ConfigError(f"loss weights are 0 or more and one is above, not {values}")
        if self.context is not None and self.context < 0:
            raise ConfigError(f"the weight of the context's tokens is 0 or more, or None, not {self.context}")

    @property
    def taught(self) -> bool:
        """Whether the full context has to be read as well."""
        return self.teacher > 0 or self.hidden > 0


@dataclass(frozen=True)
class Example:
    """A batch of contexts of one length, folded window by window, and what is read behind each of them."""

    windows: tuple[Tensor, ...]  # each (batch, tokens), folded in turn; the first one begins with the sinks
    ratios: tuple[int, ...]  # one per window
    tails: Tensor  # (batch, tails, tokens)
    scored: Tensor  # (batch, tails, tokens), bool: the tokens whose prediction counts
    answers: Tensor | None = None  # (batch, tails, tokens), bool: those of them that answer a question

    @property
    def tokens(self) -> int:
        """The tokens of its contexts and tails, each counted once."""
        return sum(window.numel() for window in self.windows) + self.tails.numel()

    def to(self, device: torch.device | str) -> Example:
        """The same example on a device."""
        windows = tuple(window.to(device) for window in self.windows)
        answers = None if self.answers is None else self.answers.to(device)
        return Example(windows, self.ratios, self.tails.to(device), self.scored.to(device), answers)


class Objective(nn.Module):
    """The loss of an example, as a module that transformers' Trainer can train: its weights are the beacons'."""

    def __init__(
        self,
        beacons: Beacons,
        *,
        config: BeaconConfig,
        weights: Weights,
        gated: bool = False,
        through: int | None = None,
    ) -> None:
        """`gated`: train the anchors' scorer. `through`: how many of the newest windows are read with gradients, which
        then flow back into the slots in front of them; None for all.
        """
        super().__init__()
        self.lm = beacons.lm
        self._config = config
        self._weights = weights
        self._gated = gated
        self._through = through
        self.embedding, self.offset = beacons.embedding, beacons.offset
        self._beacons = beacons

    def forward(self, example: Example) -> Tensor:
        """The weighted loss, in nats per scored token.  # ()

        Tokens of a window behind another count too: the pass that folds them also predicts them. Windows before the
        newest `through` are read without gradients, but their slots are made with gradients. So every slot of a long
        context learns from what is read behind it, for little more than a forward pass.
        """
        past, gated, older = self._empty, None, self._older(example)
        folds: list[Folded] = []
        for number, (window, ratio) in enumerate(zip(example.windows, example.ratios, strict=True)):
            again = self._again(example, number)
            rows, sink = torch.cat([again, window], dim=1), 0 if folds else self._config.sink
            how: dict[str, Any] = {"ratio": ratio, "sink": sink, "overlap": again.shape[1], "config": self._config}
            behind = past.detached() if number < older else past
            if self._gated and number == len(example.windows) - 1:
                folded, gated = gate(self._beacons, behind, rows, **how)
            else:
                folded = fold(self._beacons, behind, rows, **how)
                past = past.append(folded.keys, folded.values).read_to(folded.recurrent)
            folds.append(folded)
        hidden = torch.cat([folded.hidden for folded in folds], dim=1)
        states = self._read(gated or past, example.tails)
        logits: Tensor = predicted(self.lm, self._predicting(example, hidden, states[-1])).float()
        loss = logits.new_zeros(())
        if self._weights.next_token or self._weights.answers:
            missed = nn.functional.cross_entropy(logits, self._targets(example), reduction="none")
            loss = loss + self._weights.next_token * self._mean(missed, example)
            loss = loss + self._weights.answers * self._answered(missed, example)
        if not self._weights.taught:
            return loss
        with torch.no_grad():
            whole, hidden = self._whole(example, folds)
            full = self._read(whole, example.tails)
            told = predicted(self.lm, self._predicting(example, hidden, full[-1])).float().log_softmax(dim=-1)
        if self._weights.teacher:
            apart = nn.functional.kl_div(logits.log_softmax(dim=-1), told, reduction="none", log_target=True)
            loss = loss + self._weights.teacher * self._mean(apart.sum(dim=-1), example)
        if self._weights.hidden:
            pairs = zip(states, full, strict=True)
            turned = [1 - nn.functional.cosine_similarity(a.float(), b.float(), dim=-1).mean() for a, b in pairs]
            loss = loss + self._weights.hidden * torch.stack(turned).mean()
        return loss

    def _again(self, example: Example, number: int) -> Tensor:
        """The tokens of the window before that are read once more in front of a window.  # (batch, overlap)"""
        before = example.windows[number - 1] if number else example.windows[0][:, :0]
        return before[:, max(before.shape[1] - self._config.overlap, 0) :]

    def _predicting(self, example: Example, context: Tensor, tails: Tensor) -> Tensor:
        """The last states from which scored tokens are predicted, those of the windows first.  # (tokens, hidden)"""
        count = example.tails.shape[1]
        before = torch.cat([context[:, -1:].repeat_interleave(count, dim=0), tails[:, :-1]], dim=1)
        first = self._unscored(example)
        return torch.cat([context[:, first - 1 : -1].flatten(0, 1), before[example.scored.flatten(0, 1)]])

    def _targets(self, example: Example) -> Tensor:
        """The scored tokens.  # (tokens,)"""
        context = torch.cat(example.windows, dim=1)[:, self._unscored(example) :]
        tails: Tensor = example.tails[example.scored]
        return torch.cat([context.flatten(), tails])

    def _mean(self, losses: Tensor, example: Example) -> Tensor:
        """The mean loss of scored tokens (the windows' first), weighed as `Weights.context` says.  # (tokens,)"""
        context = losses[: len(losses) - int(example.scored.sum())]
        if self._weights.context is None or not len(context) or len(context) == len(losses):
            return losses.mean()
        return losses[len(context) :].mean() + self._weights.context * context.mean()

    def _answered(self, losses: Tensor, example: Example) -> Tensor:
        """The mean loss of the tokens that answer; 0 where nothing is asked."""
        if example.answers is None or not bool(example.answers.any()):
            return losses.new_zeros(())
        tails = losses[len(losses) - int(example.scored.sum()) :]
        return tails[example.answers[example.scored]].mean()

    def _unscored(self, example: Example) -> int:
        """How many tokens at the beginning of the context are not scored."""
        if self._weights.first_window:
            return 1
        return sum(int(window.shape[1]) for window in example.windows[: max(self._older(example), 1)])

    def _older(self, example: Example) -> int:
        """How many windows are read without gradients."""
        return 0 if self._through is None else max(len(example.windows) - self._through, 0)

    def _whole(self, example: Example, folds: list[Folded]) -> tuple[Prefix, Tensor]:
        """The context as the model itself keeps it, and its last states.  # (batch, tokens, hidden)"""
        first = folds[0]
        if len(folds) == 1 and first.raw is not None:  # the fold's own raw pass has read it
            read = self._empty.append(stacked(first.raw.keys), stacked(first.raw.values))
            return read.read_to(first.recurrent), first.hidden
        whole, hidden = self._empty, []
        for window in example.windows:  # in pieces: one call of thousands of rows takes longer (benchmarks/LOG.md)
            raw = fold(self._beacons, whole, window, ratio=1, sink=0, config=self._config)
            whole = whole.append(raw.keys, raw.values).read_to(raw.recurrent)
            hidden.append(raw.hidden)
        return whole, torch.cat(hidden, dim=1)

    def _read(self, past: Prefix | Gated, tails: Tensor) -> list[Tensor]:
        """The states of tails read raw behind a past, after each layer.  # layers x (batch * tails, rows, hidden)"""
        batch, count, rows = tails.shape
        states: list[Tensor] = []
        layers = self.lm.model.layers[:-1] if self._weights.hidden else []
        hooks = [layer.register_forward_hook(lambda _, __, out: states.append(_rows(out))) for layer in layers]
        try:
            embedded = embed(self.lm, tails.reshape(batch * count, rows))
            if isinstance(past, Gated):
                behind: Pass = GatedPass(past, rows, count=count)
            else:
                behind = TailPass(past.repeat(count), rows)
            states.append(read(self.lm, behind, embedded, torch.arange(rows) + past.slots))
        finally:
            for hook in hooks:
                hook.remove()
        return states

    @cached_property
    def _empty(self) -> Prefix:
        # Not before the first example: Trainer moves the model to its device after this is made.
        return Prefix.empty(self.lm)


def _rows(output: Any) -> Tensor:
    found: Tensor = output[0] if isinstance(output, tuple) else output
    return found
