"""Folding a text, against reading it plainly, for each model family: models of random weights, small but deep.

Both run in turn in the same process on one thread; medians of the CPU seconds that the process took, so that others on
the machine count for less. The seconds are those of toys: take the last column, and compare it within one run.

    python -m benchmarks.families
"""

from __future__ import annotations

import argparse
import random
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from transformers.utils import logging

from beacon_memory.config import BeaconConfig
from beacon_memory.fold.family import FAMILIES
from beacon_memory.models.model import BeaconModel
from beacon_memory.testing.models import OF_FAMILY, tiny_lm, tiny_tokenizer
from benchmarks.baselines import prefill

RATIO = 8
WINDOW = 128  # of the layers that slide
EXPERT = 64  # channels of one expert


def deep_lm(family: str, *, layers: int) -> Any:
    """A family's language model with many narrow layers."""
    own = OF_FAMILY.get(family, {})
    changes: dict[str, Any] = {
        "num_hidden_layers": layers,
        "hidden_size": 128,
        "intermediate_size": EXPERT if "num_local_experts" in own else 384,
        "head_dim": 32,
        "max_position_embeddings": 8192,
    }
    wide = {"sliding_window": WINDOW, "moe_intermediate_size": EXPERT, "shared_expert_intermediate_size": EXPERT}
    return tiny_lm(family, **changes, **{name: size for name, size in wide.items() if name in own})


def lines(families: Sequence[str], *, layers: int, tokens: int, repeats: int) -> Iterator[str]:
    """A table: CPU seconds of a plain prefill and of a fold, and how many prefills a fold takes."""
    yield f"| family | plain prefill of {tokens} tokens, s | fold {RATIO}x, s | fold / prefill |"
    yield "|---|---:|---:|---:|"
    for family in families:
        plain, tokenizer = deep_lm(family, layers=layers), tiny_tokenizer()
        model = BeaconModel(deep_lm(family, layers=layers), tokenizer, BeaconConfig(ratio=RATIO))
        ids = random.Random(7).choices(range(3, len(tokenizer)), k=tokens)
        taken = []
        for _ in range(1 + repeats):
            read = seconds(lambda plain=plain, ids=ids: prefill(plain, ids))
            taken.append((read, seconds(lambda model=model, ids=ids: model.compress(ids, document=True))))
        read, fold = map(statistics.median, zip(*taken[1:], strict=True))  # the first ones warm up
        yield f"| `{family}` | {read:.2f} | {fold:.2f} | {fold / read:.2f} |"


def seconds(act: Callable[[], object]) -> float:
    """CPU seconds of all threads of this process."""
    began = time.process_time()
    act()
    return time.process_time() - began


def main() -> None:
    attending = [name for name, family in FAMILIES.items() if not family.recurrent]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--families", default=",".join(attending))
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--tokens", type=int, default=1024)
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    logging.disable_progress_bar()
    torch.set_num_threads(1)
    how = {"layers": args.layers, "tokens": args.tokens, "repeats": args.repeats}
    for line in lines(args.families.split(","), **how):
        print(line, flush=True)


if __name__ == "__main__":
    main()
