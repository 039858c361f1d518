"""The table of docs/vllm.md that sets our engine and vLLM side by side."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks.vllm.__main__ import OURS, RAW, SLOTS, table
from benchmarks.vllm.running import Cache

METRICS = """
# TYPE vllm:cache_config_info gauge
vllm:cache_config_info{block_size="32",cache_dtype="auto",engine="0",num_gpu_blocks="728"} 1.0
vllm:kv_cache_usage_perc{engine="0",model_name="m"} 0.0824175824175824
"""


def test_blocks_are_counted_by_what_vllm_says_of_its_cache() -> None:
    assert Cache.of(METRICS) == Cache(blocks=728, held=60)
    with pytest.raises(SystemExit, match="another release"):
        Cache.of("")


def test_each_way_stands_beside_raw_prompts_of_the_same_length() -> None:
    def row(way: str, ratio: int, **found: Any) -> dict[str, Any]:
        return {"tokens": 7500, "ratio": ratio, "way": way, "slots": 7500 // ratio, "all": 728, **found}

    rows = [
        row(OURS, 4, cold=[0.4, 0.2, 0.3], hot=[0.1], **{"rate 1": 4.0}),
        row(RAW, 1, cold=[30.0], hot=[0.2], blocks=236, **{"rate 1": 2.0}),
        row(SLOTS, 4, cold=[0.5], hot=[0.2], blocks=60, **{"rate 1": 3.0, "rate 8": 9.0}),
    ]
    head, _, *lines = table(rows)
    assert head.endswith("| tokens a second, 1 at once | tokens a second, 8 at once |")
    assert lines == [
        "| 7,500 | vLLM, raw prompts |  | 236 | 3.1 | 30.0 s | 200 ms | 2 |  |",
        "| 7,500 | our engine, 4x | 1,875 |  |  | 300 ms (100x) | 100 ms (2x) | 4 (2x) |  |",
        "| 7,500 | vLLM, our connector, 4x | 1,875 | 60 | 12.1 (3.93x) | 500 ms (60x) | 200 ms (1x) | 3 (1.5x) | 9 |",
    ]
