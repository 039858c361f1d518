"""The benchmarks' results as pictures: docs/quality.png and docs/speed.png.

python benchmarks/plot.py
"""

from __future__ import annotations

import json
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt

HERE = Path(__file__).parent
RESULTS, DOCS = HERE / "results", HERE.parent / "docs"


def quality() -> None:
    """Loss against ratio, a line per anchor rule, between full context and none."""
    rows: dict[str, dict[str, float]] = {}
    for file in sorted(RESULTS.glob("quality*.json")):
        rows |= json.loads(file.read_text())["rows"]
    rules: dict[str, dict[int, dict[str, float]]] = {}
    for name, row in rows.items():
        if name.endswith("x"):
            rule, ratio = name.rsplit(" ", 1)
            rules.setdefault(rule, {})[int(ratio[:-1])] = row
    figure, panels = plt.subplots(1, 2, figsize=(10, 4), sharex=True)
    for panel, task, title in zip(panels, ("prose", "copy"), ("the text that follows", "exact recall"), strict=True):
        for rule, by_ratio in rules.items():
            panel.plot(list(by_ratio), [row[task] for row in by_ratio.values()], marker="o", label=rule)
        panel.axhline(rows["none"][task], color="grey", linestyle=":", label="no context")
        panel.axhline(rows["full"][task], color="black", linestyle=":", label="full context")
        panel.set(title=title, xlabel="tokens per slot", ylabel="next-token loss, nats", xscale="log", xticks=[2, 4, 8])
        panel.set_xticklabels(["2x", "4x", "8x"])
        panel.minorticks_off()
    panels[1].legend(fontsize="small")
    save(figure, "quality")


def speed() -> None:
    """Seconds to fold against length, a line per anchor rule, with the plain prefill."""
    found = json.loads((RESULTS / "speed.json").read_text())["fold"]
    figure, panel = plt.subplots(figsize=(6, 4))
    for name in next(iter(found.values())):
        style = {"color": "black", "linestyle": ":"} if name == "prefill" else {}
        label = "plain prefill" if name == "prefill" else name
        panel.plot([int(n) for n in found], [row[name] for row in found.values()], marker="o", label=label, **style)
    panel.set(xlabel="tokens", ylabel="seconds", xscale="log", yscale="log", title="reading a text")
    panel.legend(fontsize="small")
    save(figure, "speed")


def save(figure: plt.Figure, name: str) -> None:
    """Write a picture to docs/."""
    figure.tight_layout()
    figure.savefig(DOCS / f"{name}.png", dpi=110)
    print(DOCS / f"{name}.png")


if __name__ == "__main__":
    quality()
    speed()
