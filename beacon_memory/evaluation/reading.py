"""Reading behind a memory: what answers are worth to the model, and which one it gives, without copying the memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from beacon_memory.evaluation.items import Item, Question
from beacon_memory.fold.fold import embed, fold, predicted, read
from beacon_memory.fold.passes import Sight, TailPass
from beacon_memory.fold.prefix import Prefix
from beacon_memory.fold.projections import Attend, BeaconProjection
from beacon_memory.models.generation import end_ids
from beacon_memory.models.model import BeaconModel


class BranchPass:
    """Tokens of several continuations of one past in one row: each sees the past and its own continuation.

    `before`: rotated keys and values by layer of rows that were read earlier; they stand between past and rows.
    """

    def __init__(
        self, past: Prefix, seen: Tensor, places: Tensor, before: dict[int, tuple[Tensor, Tensor]] | None = None
    ) -> None:
        """`seen`: the rows, earlier ones and these, that each of these sees; `places`: where all of them stand behind
        the past, which is what a layer's window counts.  # (rows, all rows), (all rows)
        """
        self.past = past
        self.rotated = before or {}
        columns = torch.cat([torch.arange(-past.slots, 0), places])
        own = places[-len(seen) :, None]

        def made(window: int | None) -> Tensor:
            hidden = torch.nn.functional.pad(~seen, (past.slots, 0))
            if window is not None:
                hidden = hidden | (columns[None, :] <= own - window)
            return torch.zeros(hidden.shape, dtype=past.dtype).masked_fill_(hidden, float("-inf"))[None, None]

        self._sight = Sight(made, past, plain=False)

    def project(self, projection: BeaconProjection, hidden: Tensor) -> Tensor:
        projected: Tensor = projection.base(hidden)
        return projected

    def attend(self, module: Any, query: Tensor, key: Tensor, value: Tensor, attend: Attend) -> Tensor:
        layer = int(module.beacon_index)
        if module.beacon_layer.shared:
            return attend(query, *self.past.join(layer, *self.rotated[layer]), self._sight.of(module))
        if layer in self.rotated:
            earlier = self.rotated[layer]
            key, value = torch.cat([earlier[0], key], dim=2), torch.cat([earlier[1], value], dim=2)
        self.rotated[layer] = (key, value)
        return attend(query, *self.past.join(layer, key, value), self._sight.of(module))


def answer_losses(model: BeaconModel, memory: Prefix, item: Item, question: Question) -> list[Tensor]:
    """The loss of each token of each answer, in nats, read behind the memory and the prompt."""
    prompt = (*(() if memory.slots else item.opening), *question.prompt)
    if memory.recurrences:
        return [_losses_alone(model, memory, prompt, answer) for answer in question.answers]
    heads = [answer[:-1] for answer in question.answers]
    ids = [*prompt, *(i for head in heads for i in head)]
    places = [*range(len(prompt)), *(len(prompt) + i for head in heads for i in range(len(head)))]
    # The branch each row belongs to; the prompt, 0, is seen by all.
    branch = torch.tensor([0] * len(prompt) + [n for n, head in enumerate(heads, 1) for _ in head])
    seen = ((branch[:, None] == branch[None, :]) | (branch[None, :] == 0)).tril()
    with torch.inference_mode():
        branches = BranchPass(memory, seen, torch.tensor(places))
        rows = torch.tensor([ids], device=model.empty.device)
        hidden = read(model.lm, branches, embed(model.lm, rows), torch.tensor(places) + memory.slots)[0]
        losses, start = [], len(prompt)
        for answer, head in zip(question.answers, heads, strict=True):
            predicting = torch.cat([hidden[len(prompt) - 1 : len(prompt)], hidden[start : start + len(head)]])
            start += len(head)
            logits = predicted(model.lm, predicting).float()
            target = torch.tensor(answer, device=logits.device)
            losses.append(torch.nn.functional.cross_entropy(logits, target, reduction="none").cpu())
    return losses


def _losses_alone(model: BeaconModel, memory: Prefix, prompt: Sequence[int], answer: Sequence[int]) -> Tensor:
    """The losses of one answer, for layers that read every token in one order."""
    rows = torch.tensor([[*prompt, *answer[:-1]]], device=model.empty.device)
    with torch.inference_mode():
        places = torch.arange(rows.shape[1]) + memory.slots
        hidden = read(model.lm, TailPass(memory, rows.shape[1]), embed(model.lm, rows), places)[0]
        logits = predicted(model.lm, hidden[len(prompt) - 1 :]).float()
        target = torch.tensor(answer, device=logits.device)
        return torch.nn.functional.cross_entropy(logits, target, reduction="none").cpu()


def _greedy_alone(model: BeaconModel, memory: Prefix, ids: Sequence[int], *, ends: set[int], limit: int) -> list[int]:
    """The likeliest next tokens of one prompt, for layers that read every token in one order."""
    past, written = memory.reserve(len(ids) + limit), list[int]()
    with torch.inference_mode():
        while len(written) < limit and not (written and written[-1] in ends):
            rows = torch.tensor([ids], device=model.empty.device)
            folded = fold(model.beacons, past, rows, ratio=1, sink=0, config=model.config)
            past = past.append(folded.keys, folded.values).read_to(folded.recurrent)
            ids = [int(model.lm.lm_head(folded.hidden[0, -1]).argmax())]
            written += ids
    return [token for token in written if token not in ends]


def greedy(
    model: BeaconModel, memory: Prefix, item: Item, questions: Sequence[Question], *, limit: int
) -> list[list[int]]:
    """The likeliest next tokens after what each question asks, all beside each other behind one memory.

    The rows of a step are written behind the memory, which is copied once.
    """
    prompts = [(*(() if memory.slots else item.opening), *question.asked) for question in questions]
    ends = {*end_ids(model.lm), model.tokenizer.eos_token_id}
    if memory.recurrences:
        return [_greedy_alone(model, memory, prompt, ends=ends, limit=limit) for prompt in prompts]
    memory = memory.reserve(sum(map(len, prompts)) + limit * len(prompts))
    owner = torch.tensor([n for n, prompt in enumerate(prompts) for _ in prompt])
    seen = (owner[:, None] == owner[None, :]).tril()
    ids = [i for prompt in prompts for i in prompt]
    places = torch.tensor([i for prompt in prompts for i in range(len(prompt))])
    stand = places
    last = torch.tensor([len(prompt) for prompt in prompts]).cumsum(0) - 1
    written: list[list[int]] = [[] for _ in prompts]
    before: dict[int, tuple[Tensor, Tensor]] = {}
    with torch.inference_mode():
        for step in range(limit):
            branches = BranchPass(memory, seen, stand, before)
            rows = torch.tensor([ids], device=model.empty.device)
            hidden = read(model.lm, branches, embed(model.lm, rows), places + memory.slots)[0]
            before = branches.rotated
            ids = model.lm.lm_head(hidden[last.to(hidden.device)]).argmax(dim=-1).tolist()
            for answer, token in zip(written, ids, strict=True):
                if not answer or answer[-1] not in ends:
                    answer.append(token)
            if all(answer[-1] in ends for answer in written):
                break
            places = torch.tensor([len(prompt) + step for prompt in prompts])
            stand = torch.cat([stand, places])
            newest = torch.arange(len(prompts))
            owner = torch.cat([owner, newest])
            seen, last = newest[:, None] == owner[None, :], newest
    return [[token for token in answer if token not in ends] for answer in written]
