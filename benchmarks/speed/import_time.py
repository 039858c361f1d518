"""What it takes to begin: the import, and the command's --help."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

from benchmarks.bench import Bench
from benchmarks.record import Against, Result
from benchmarks.timing import Act, times

IMPORT = "import time; began = time.perf_counter(); import beacon_memory; print(time.perf_counter() - began)"


def lines(bench: Bench) -> Iterator[Result]:
    """The import by itself; --help as a user runs it, beside a Python that does nothing."""

    def run(*args: str) -> str:
        return subprocess.run([sys.executable, *args], check=True, capture_output=True, text=True).stdout

    bench.told("import")
    run("-c", IMPORT)
    taken = [float(run("-c", IMPORT)) for _ in range(5)]
    yield Result("import", "import beacon_memory", "import", {"import": taken}, [Against(None, most=0.15)])
    acts = {
        "--help": Act(lambda _: run("-m", "beacon_memory.cli", "--help")),
        "python -c pass": Act(lambda _: run("-c", "pass")),
    }
    values = times(acts, repeats=5, told=bench.told)
    yield Result("import", "beacon-memory --help", "--help", values, [Against(None, most=0.5)])
