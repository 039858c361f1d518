"""How the examples are started: their options, a server where none is named, one process after another."""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from typing import Any

from transformers.utils import logging

from beacon_memory.testing import redis_server


def options(doc: str | None, **defaults: Any) -> argparse.Namespace:
    """The command's options; the model is quiet about its loading."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in {"model": "smollm2", **defaults}.items():
        parser.add_argument(f"--{name}", default=default)
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    return parser.parse_args()


def server(url: str | None) -> Any:
    """A Redis by its URL, or a Valkey server started for the example."""
    return nullcontext(url) if url else redis_server("valkey")


def processes(doc: str | None, file: str, stages: Iterable[str], talk: Callable[[str, str, str], None]) -> None:
    """Run `talk(model, url, stage)` in a process of its own for each stage, over one server."""
    args = options(doc, redis=None, stage=None)
    if args.stage:
        talk(args.model, args.redis, args.stage)
        return
    with server(args.redis) as url:
        for stage in stages:
            print(f"\n---- process {stage} ----", flush=True)
            how = ["--stage", stage, "--redis", url, "--model", args.model]
            subprocess.run([sys.executable, file, *how], check=True)
