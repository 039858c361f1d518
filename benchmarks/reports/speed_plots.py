"""The results of speed and size as pictures, made by speed_tables.py: docs/time.png and docs/bytes.png."""

from __future__ import annotations

from collections.abc import Container, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt

Row = dict[str, Any]
COLOURS = {
    "plain prefill": "black",
    "reading again": "black",
    "bare matmuls": "tab:grey",
    "bare GET": "tab:grey",
    "eviction (Expected Attention)": "tab:green",
    "raw KV restored": "tab:blue",
    "truncation (newest, read again)": "tab:olive",
    "plain cache": "tab:purple",
}


def time(rows: Sequence[Row], folder: Path) -> None:
    """Seconds against the length of the history: reading it once, and coming back to it."""
    figure, panels = plt.subplots(1, 2, figsize=(11, 4.5), sharey=True)
    reading = [(row, int(row["case"])) for row in rows if row["line"] == "fold"]
    _lines(panels[0], reading, {"beacon fold": "beacon fold, 8x"})
    panels[0].set(title="reading a text", xlabel="tokens", ylabel="seconds")
    documents = [row for row in rows if row["case"].endswith("document")]
    turns = [(row, int(row["case"].split()[0])) for row in documents if row["line"] == "cold turn"]
    _lines(panels[1], turns, {"beacon": "beacon, cold from Redis"})
    hot = [(row, int(row["case"].split()[0])) for row in documents if row["line"] == "hot turn"]
    names = {"beacon": "beacon, hot", "plain cache": "plain cache, as many entries"}
    _lines(panels[1], hot, names, only=names, style="--")
    panels[1].set(title="a question to the first word", xlabel="tokens of history")
    _save_log(figure, panels, folder / "time.png")


def size(rows: Sequence[Row], folder: Path) -> None:
    """Bytes kept against the length of the history."""
    figure, panel = plt.subplots(figsize=(6, 4.5))
    found: dict[str, dict[int, float]] = {}
    for row in rows:
        if row["line"] == "bytes" and row["case"].endswith("talk"):
            tokens = row["facts"]["tokens"]
            found.setdefault(f"beacon, {row['facts']['slot_dtype']}", {})[tokens] = row["facts"]["bytes"]
            found.setdefault("raw KV, bfloat16", {})[tokens] = row["medians"]["raw KV, bfloat16"] * tokens
    for name, by_tokens in found.items():
        panel.plot(list(by_tokens), [value / 2**20 for value in by_tokens.values()], marker="o", label=name)
    panel.set(title="a talk in Redis, everything counted", xlabel="tokens of history", ylabel="MiB")
    _save_log(figure, [panel], folder / "bytes.png")


def _lines(
    panel: Any, rows: Sequence[tuple[Row, int]], names: dict[str, str], *, only: Container[str] = (), style: str = "-"
) -> None:
    """A line for everyone who was measured, over the lengths."""
    found: dict[str, dict[int, float]] = {}
    for row, length in sorted(rows, key=lambda pair: pair[1]):
        for name, median in row["medians"].items():
            if not only or name in only:
                found.setdefault(name, {})[length] = median
    for name, by_length in found.items():
        ours = name.startswith("beacon")
        how = {"linewidth": 2.5, "color": "tab:red"} if ours else {"linewidth": 1.2, "color": COLOURS.get(name)}
        label = names.get(name, name)
        panel.plot(list(by_length), list(by_length.values()), style, marker="o", label=label, **how)


def _save_log(figure: Any, panels: Sequence[Any], path: Path) -> None:
    for panel in panels:
        panel.set(xscale="log", yscale="log")
        panel.set_xticks([1024, 8192, 32768], ["1K", "8K", "32K"])
        panel.minorticks_off()
        panel.grid(alpha=0.3)
        panel.legend(fontsize="small")
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)
