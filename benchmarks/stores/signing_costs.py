"""What a key and encryption cost: a turn in Redis, and the bytes of one segment.

python -m benchmarks.stores.signing_costs
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable
from typing import Any

from beacon_memory.stores.signing import Signer
from beacon_memory.testing import redis_server
from benchmarks.stores.redis_costs import turns

KEY = os.urandom(32)
FORMS: dict[str, dict[str, Any]] = {
    "no key, alone": {"alone": True},
    "no key": {},
    "key": {"key": KEY},
    "key, encrypted": {"key": KEY, "encrypt": True},
}
BLOB = os.urandom(1_486_000)  # a window of 512 tokens of SmolLM2-135M at 8x


def main() -> None:
    """Print two tables."""
    print("| | segments named | sent, bytes | received | round trips | ms |\n|---|---|---|---|---|---|")
    with redis_server("valkey") as url:
        for form, signing in FORMS.items():
            for length in (10, 100, 1000):
                found = turns(url, length, ttl=None, count=60, **signing)
                facts, seconds = found.facts, statistics.median(found.values["turn"])
                cells = (form, length, facts["sent"], facts["received"], facts["round_trips"], f"{1000 * seconds:.1f}")
                print("|", " | ".join(map(str, cells)), "|")
    print("\n| 1.5 MB | signed, ms | read, ms |\n|---|---|---|")
    for form, signing in FORMS.items():
        if signing.get("alone"):
            continue
        signer = Signer("beacon:{default}", **signing)
        signed = signer.sign("blob", "d", BLOB)
        sign = _median(lambda signer=signer: signer.sign("blob", "d", BLOB))  # type: ignore[misc]
        read = _median(lambda signer=signer, signed=signed: signer.verify("blob", "d", signed))  # type: ignore[misc]
        print(f"| {form} | {sign:.2f} | {read:.2f} |")


def _median(act: Callable[[], object], times: int = 30) -> float:
    found = []
    for _ in range(times):
        start = time.perf_counter()
        act()
        found.append(1000 * (time.perf_counter() - start))
    return statistics.median(found)


if __name__ == "__main__":
    main()
