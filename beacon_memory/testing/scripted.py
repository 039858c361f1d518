"""A model that says what a script says: everything about it is real except its judgement."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor
from transformers import LogitsProcessor, PreTrainedTokenizerBase

from beacon_memory.config import BeaconConfig
from beacon_memory.models.generation import Constraint, Sampling
from beacon_memory.models.model import BeaconModel
from beacon_memory.models.running.rows import Row
from beacon_memory.serving.engine import BeaconEngine
from beacon_memory.state.state import BeaconState
from beacon_memory.stores import StateStore
from beacon_memory.testing.models import tiny_lm, tiny_tokenizer

Script = Callable[[str], str]


class ScriptedModel(BeaconModel):
    """A tiny model whose logits follow a script: text it can see (memory, then prompt) -> what it wants to say.

    It folds, streams, stops and is constrained as any other; a grammar wins over the script's word.

    >>> model = ScriptedModel(lambda seen: "Rex." if "dog" in seen else "?")
    >>> model.generate([model.encode("My dog")])
    ['Rex.']
    """

    def __init__(self, script: Script, config: BeaconConfig | None = None, **changes: Any) -> None:
        super().__init__(tiny_lm(**{"max_position_embeddings": 16384, **changes}), tiny_tokenizer(), config)
        self.script = script

    def _row(self, prompt: Sequence[int], state: BeaconState, sampling: Sampling, *more: Any) -> Row:
        ids = [*(i for segment in state.segments for i in segment.ids), *state.tail, *prompt]
        line = [*self.encode(self.script(self.tokenizer.decode(ids))), self.lm.config.eos_token_id]
        return super()._row(prompt, state, replace(sampling, constraint=_Script(line, sampling.constraint)), *more)


def scripted_engine(
    script: Script,
    store: str | StateStore | None = "memory://",
    *,
    config: BeaconConfig | None = None,
    name: str = "scripted",
    **changes: Any,
) -> BeaconEngine:
    """An engine whose model says what a script says.

    >>> engine = scripted_engine(lambda seen: "Hello!")
    >>> engine.session("ada").chat("Hi")
    'Hello!'
    """
    config = config or BeaconConfig(window=64, keep_last=16, anchors="last")
    return BeaconEngine(ScriptedModel(script, config, **changes), store, name=name)


@dataclass(frozen=True)
class _Script:
    """A script's words, and what may forbid them."""

    line: list[int]
    within: Constraint | None = None

    def processor(
        self, tokenizer: PreTrainedTokenizerBase, *, ends: Sequence[int], rows: int, prompt: int, limit: int
    ) -> LogitsProcessor:
        within = self.within and self.within.processor(tokenizer, ends=ends, rows=rows, prompt=prompt, limit=limit)
        return _Led(self.line, within, prompt=prompt)


class _Led(LogitsProcessor):  # type: ignore[misc]
    def __init__(self, line: list[int], within: LogitsProcessor | None, *, prompt: int) -> None:
        self._line, self._within, self._prompt = line, within, prompt

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        step = input_ids.shape[1] - self._prompt
        scores = scores * 1e-3
        scores[:, self._line[min(step, len(self._line) - 1)]] += 1e4
        return scores if self._within is None else self._within(input_ids, scores)


def sensible(seen: str) -> str:
    """A script with judgement: it calls a tool that it was given, answers in the form asked for, and greets."""
    last = seen.split("<|im_start|>")[-2]
    role, _, words = last.partition("\n")
    if "Answer with JSON of this schema" in seen:
        schema = json.loads(seen.rpartition("nothing else:\n")[2].partition("<|im_end|>")[0])
        return json.dumps(_instance(schema, words), ensure_ascii=False)
    if "</tools>" in seen and role == "user":
        told = seen.rpartition("XML tags:\n<tools>\n")[2].partition("\n</tools>")[0]
        tools = [json.loads(line)["function"] for line in told.splitlines()]
        tool = next((t for t in tools if t["name"] in words), tools[0])
        call = {"name": tool["name"], "arguments": _instance(tool.get("parameters", {}), words)}
        return f"<tool_call>\n{json.dumps(call, ensure_ascii=False)}\n</tool_call>"
    return "It was 7." if role == "tool" else "Hello there, how do you do?"


def _instance(schema: dict[str, Any], words: str) -> Any:
    """A value of a simple schema, made of what the words say."""
    for key in ("anyOf", "allOf", "oneOf"):
        if schema.get(key):
            return _instance(schema[key][0], words)
    if schema.get("type", "object") == "object":
        required = schema.get("required", [])
        return {name: _instance(of, words) for name, of in schema.get("properties", {}).items() if name in required}
    if schema["type"] == "integer":
        return int((re.findall(r"\d+", words) or ["3"])[0])
    if schema["type"] == "array":
        return []
    quoted = re.findall(r"'([^']+)'", words)
    return quoted[0] if quoted else "San Francisco, CA"
