"""How answers are drawn and where they end, by the parts of transformers' `generate()`."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from math import inf
from numbers import Integral, Real
from typing import Any, Literal, Protocol, Self

import torch
from torch import Tensor
from transformers import (
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedTokenizerBase,
    RepetitionPenaltyLogitsProcessor,
    StoppingCriteriaList,
    StopStringCriteria,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from beacon_memory.errors import ConfigError
from beacon_memory.models.encoding import turn_end

Finish = Literal["stop", "length"]
COLDEST = 1e-6  # logits divided by less are infinite


class Constraint(Protocol):
    """What limits an answer's tokens, one by one (talk/structured.py has JSON and tool calls)."""

    def processor(
        self, tokenizer: PreTrainedTokenizerBase, *, ends: Sequence[int], rows: int, prompt: int, limit: int
    ) -> LogitsProcessor:
        """What masks the logits of `rows` answers of at most `limit` tokens after `prompt` columns."""


@dataclass(frozen=True)
class Answer:
    """One answer, its length in tokens, and how it ended."""

    text: str
    tokens: int  # generated, counting the end of the turn
    finish: Finish  # "length" when max_new_tokens cut it off


@dataclass(frozen=True)
class Sampling:
    """How an answer is drawn: greedy unless `temperature` is above 0. Raises ConfigError."""

    max_new_tokens: int = 256
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0  # 0 considers every token
    repetition_penalty: float = 1.0
    stop: str | Sequence[str] | None = ()  # the answer ends before the first of these
    seed: int | None = None  # each answer of a batch starts from it, as it would alone
    constraint: Constraint | None = None  # limits the answer's tokens

    def __post_init__(self) -> None:
        _check("max_new_tokens", self.max_new_tokens, whole=True, least=1)
        _check("temperature", self.temperature, least=0)
        _check("top_p", self.top_p, above=0, most=1)
        _check("top_k", self.top_k, whole=True, least=0)
        _check("repetition_penalty", self.repetition_penalty, least=0.01, most=100)
        if self.seed is not None:
            _check("seed", self.seed, whole=True, least=-(1 << 63), most=(1 << 64) - 1)
        if not isinstance(self.stop, str | Sequence | None) or not all(isinstance(s, str) and s for s in self.stops):
            raise ConfigError(f"stop is a text of at least one character, or a list of these, not {self.stop!r:.80}")
        if any("\ud800" <= letter <= "\udfff" for stop in self.stops for letter in stop):
            raise ConfigError("a stop string is valid unicode: no answer has half a letter")
        if self.constraint is not None and not callable(getattr(self.constraint, "processor", None)):
            raise ConfigError(f"constraint is a Grammar (talk.structured), not {self.constraint!r:.80}")

    @classmethod
    def of(cls, asked: Mapping[str, Any]) -> Self:
        """The settings by name. Raises ConfigError for a name that there is not, or a value that cannot be."""
        names = [field.name for field in fields(cls)]
        if unknown := sorted(set(asked) - set(names)):
            raise ConfigError(f"unknown option {', '.join(unknown)}: an answer takes {', '.join(names)}")
        return cls(**asked)

    @property
    def stops(self) -> tuple[str, ...]:
        """The stop strings, as a tuple."""
        return (self.stop,) if isinstance(self.stop, str) and self.stop else tuple(self.stop or ())

    def criteria(self, tokenizer: PreTrainedTokenizerBase, *, prompt: int) -> StoppingCriteriaList:
        """What ends an answer behind `prompt` ids, beside its end and its length."""
        return StoppingCriteriaList([_Said(tokenizer, self.stops, prompt=prompt)] if self.stops else [])

    def processors(
        self, tokenizer: PreTrainedTokenizerBase, ends: Sequence[int], *, prompt: int, device: torch.device
    ) -> LogitsProcessorList:
        """What makes of a model's logits those of the next token behind `prompt` ids, of which the highest is taken."""
        found = LogitsProcessorList()
        if self.repetition_penalty != 1:
            found.append(RepetitionPenaltyLogitsProcessor(float(self.repetition_penalty)))
        if self.constraint is not None:
            limit = self.max_new_tokens
            found.append(self.constraint.processor(tokenizer, ends=ends, rows=1, prompt=prompt, limit=limit))
        if self.temperature > 0:
            found.append(TemperatureLogitsWarper(max(float(self.temperature), COLDEST)))
            if self.top_k:
                found.append(TopKLogitsWarper(int(self.top_k)))
            if self.top_p < 1:
                found.append(TopPLogitsWarper(float(self.top_p)))
            found.append(_Draw(self.seed, device=device))
        return found


def _check(
    name: str, value: Any, *, whole: bool = False, least: float = -inf, above: float = -inf, most: float = inf
) -> None:
    """Raises ConfigError unless the value is a number of this range, or a whole one."""
    number = type(value) is not bool and isinstance(value, Integral if whole else Real)
    if not number or not (least <= value <= most and above < value < inf):
        low = f"above {above:g}" if above > -inf else f"{least:g} or more" if most == inf else f"from {least:g}"
        high = "" if most == inf else f" and at most {most:g}"
        raise ConfigError(f"{name} is a {'whole ' if whole else ''}number, {low}{high}, not {value!r:.80}")


def end_ids(lm: Any, tokenizer: PreTrainedTokenizerBase | None = None) -> list[int]:
    """The ids that end an answer of this model: its configuration's, and the end of a turn that its tokenizer and its
    chat template have, which many configurations do not name.
    """
    end = lm.generation_config.eos_token_id
    ends = [] if end is None else [int(i) for i in end] if isinstance(end, list) else [int(end)]
    if tokenizer is not None:
        ends += [i for i in (tokenizer.eos_token_id, turn_end(tokenizer)) if i is not None]
    return list(dict.fromkeys(ends))


def ended(ids: Sequence[int], ends: Sequence[int], *, stopped: bool) -> tuple[int, Finish]:
    """How many tokens an answer has, its end counted, and how it ended; `stopped` by a stop string."""
    at = next((n for n, i in enumerate(ids) if i in ends), None)
    return len(ids) if at is None else at + 1, "stop" if at is not None or stopped else "length"


class _Draw(LogitsProcessor):  # type: ignore[misc]
    """Draws a token from a random stream of its own. So what a seed gives depends neither on other answers nor on other
    threads, and the caller's random state is left alone.
    """

    def __init__(self, seed: int | None, *, device: torch.device) -> None:
        self._random = None if seed is None else torch.Generator(device).manual_seed(int(seed))

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        drawn = torch.multinomial(scores.softmax(dim=-1), 1, generator=self._random)
        return torch.full_like(scores, float("-inf")).scatter_(1, drawn, 0.0)


class _Said(StopStringCriteria):  # type: ignore[misc]
    """Stops at a stop string in the answer. One that begins in the prompt does not count."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, stops: Sequence[str], *, prompt: int) -> None:
        super().__init__(tokenizer, list(stops))
        self._prompt = prompt

    def __call__(self, input_ids: Tensor, scores: Tensor, **kwargs: Any) -> Tensor:
        done: Tensor = super().__call__(input_ids[:, self._prompt :], scores, **kwargs)
        return done


class StopFilter:
    """Text up to the first stop string, in pieces. What may be the start of one is held back."""

    def __init__(self, stop: Sequence[str]) -> None:
        self._stop = tuple(stop)
        self._held = ""
        self.stopped = False

    def feed(self, piece: str) -> str:
        """The text that is certain after this piece."""
        if self.stopped:
            return ""
        self._held += piece
        # The one that is complete first: so it does not matter how the text is cut into pieces.
        found = [(at + len(s), at) for s in self._stop if (at := self._held.find(s)) >= 0]
        if found:
            self.stopped = True
            certain, self._held = self._held[: min(found)[1]], ""
            return certain
        keep = max((n for s in self._stop for n in range(1, len(s)) if self._held.endswith(s[:n])), default=0)
        certain = self._held[: len(self._held) - keep]
        self._held = self._held[len(certain) :]
        return certain

    def end(self) -> str:
        """The text that was held back, now that nothing follows."""
        held, self._held = self._held, ""
        return held

    def cut(self, text: str) -> str:
        """A whole text, up to the first stop string."""
        return self.feed(text) + self.end()


class Pieces(Iterator[str]):
    """Text in pieces as it is generated. Closing it stops the generation, and waits until it has stopped."""

    _pieces: Generator[str, None, None]

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> str:
        return next(self._pieces)

    def close(self) -> None:
        self._pieces.close()
