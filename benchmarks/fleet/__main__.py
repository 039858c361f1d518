"""Where a fleet saturates, by simulation: the table and the picture of docs/vllm.md.

python -m benchmarks.fleet                    # all models and ways, a minute of a free core
python -m benchmarks.fleet --only qwen2-7b --share 20 --dry    # one model, a twentieth of everything, nothing written
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import matplotlib

from benchmarks.fleet.service import SERVICES, Service
from benchmarks.fleet.simulation import Fleet, Outcome, Simulation, Use
from benchmarks.reports.speed_tables import fill

matplotlib.use("Agg")
from matplotlib import pyplot as plt

ROOT = Path(__file__).parents[2]
MILLION = 1_000_000
LOADS = (0.1, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0)  # millions of sessions
# Replicas, fold workers, Redis nodes: workers and nodes enough for a million.
FLEETS = {
    "smollm2-cpu": (400, 64, 16),
    "smollm2": (16, 32, 16),
    "qwen2-7b": (32, 32, 16),
    "llama-3-70b": (128, 160, 48),
}
WAYS = {
    "folded": "tab:blue",
    "folded, read beside the steps": "tab:green",
    "the same, read 5x as fast": "tab:olive",
    "raw prompts": "tab:red",
}


@dataclass(frozen=True)
class Point:
    """One run: a model, a way, so many sessions."""

    model: str
    way: str
    load: float  # millions of sessions
    outcome: Outcome

    @property
    def service(self) -> Service:
        return SERVICES[self.model]

    @property
    def holds(self) -> bool:
        return self.outcome.holds(self.service.patience)


def fleet(model: str, way: str, *, share: int = 1) -> Fleet:
    """A fleet, or an n-th of it."""
    replicas, folders, nodes = (max(1, round(count / share)) for count in FLEETS[model])
    made = Fleet(SERVICES[model], replicas, folders, nodes)
    if way == "raw prompts":
        return made.raw()
    return replace(made, beside=way != "folded", reads=5.0 if "5x" in way else 1.0)


def sweep(models: Sequence[str], *, share: int, seed: int, loads: Sequence[float] = LOADS) -> Iterator[Point]:
    """Each model in each way, at growing loads, up to the first that is too much."""
    for model in models:
        for way in WAYS:
            for load in loads:
                use = Use(sessions=int(load * MILLION / share))
                outcome = Simulation(fleet(model, way, share=share), use, seed=seed).run()
                yield (point := Point(model, way, load, outcome))
                print(f"{model}, {way}: {load} million, {outcome.late():.2f} s", file=sys.stderr, flush=True)
                if not point.holds:
                    break


def saturated(point: Point) -> str:
    """What is full in a fleet that does not hold, or what takes too long in one that keeps up."""
    out = point.outcome
    if out.folders > 0.98:
        return "fold workers"
    if out.redis > 0.98:
        return "Redis"
    if out.late(0.5) < point.service.patience / 2:
        return "long prompts" if point.way == "raw prompts" else "reads of long sessions"
    return "replicas"


def table(points: Sequence[Point], *, share: int) -> Iterator[str]:
    """A row for each model and way."""
    yield (
        "| | GPUs | holds, sessions | above that: too much for | at that load: first token, half / 95 % "
        "| hot / folded since / cold | Redis, out | workers at work |"
    )
    yield "|---|---|---|---|---|---|---|---|"
    for model in dict.fromkeys(point.model for point in points):
        for way in WAYS:
            found = [point for point in points if (point.model, point.way) == (model, way)]
            held, first = [point for point in found if point.holds], found[-1]
            shown = held[-1] if held else first
            out, whole = shown.outcome, fleet(model, way)
            service = whole.service
            gpus = whole.replicas * service.gpus + whole.folders * service.folder_gpus
            machines = f"{gpus}" if gpus else f"{whole.replicas + whole.folders} machines"
            most = f"{shown.load * MILLION:,.0f}" if held else f"fewer than {first.load * MILLION:,.0f}"
            turns = out.hot + out.grown + out.cold
            kinds = " / ".join(f"{count / turns:.0%}" for count in (out.hot, out.grown, out.cold))
            full = saturated(first) if not first.holds else ""
            redis = f"{out.read * share / out.seconds / 1e9:.3g} GB/s" if whole.folded else ""
            work = f"{out.folders:.0%}" if whole.folders else ""
            times = f"{out.late(0.5):.2f} s / {out.late():.2f} s"
            yield f"| {service.name}: {way} | {machines} | {most} | {full} | {times} | {kinds} | {redis} | {work} |"


def session(models: Sequence[str], *, tokens: int = 8_192) -> Iterator[str]:
    """One session of so many tokens: by arithmetic alone."""
    yield (
        "| | sessions a replica holds, folded / raw | in the store | a million | cold: from Redis | cold: read raw "
        "| a window folded |"
    )
    yield "|---|---|---|---|---|---|---|"
    for model in models:
        whole = fleet(model, "folded")
        service, slots, tail = whole.service, tokens // whole.ratio, 384
        run = Simulation(whole, Use())
        size = slots * service.slot()
        cold = run.cost(slots) + service.prompt(tail, slots)
        held = f"{service.room // (slots + tail):,} / {service.room // (tokens + tail):,}"
        yield (
            f"| {service.name} | {held} | {size / 1e6:.0f} MB | {size / 1e6:.0f} TB | {_time(cold)} | "
            f"{_time(service.prompt(tokens + tail, 0))} | {_time(service.fold(slots))} |"
        )


def _time(seconds: float) -> str:
    return f"{seconds * 1000:.0f} ms" if seconds < 1 else f"{seconds:.1f} s"


def picture(points: Sequence[Point], path: Path) -> None:
    """The time to the first token against the number of sessions."""
    models = list(dict.fromkeys(point.model for point in points))
    figure, panels = plt.subplots(1, len(models), figsize=(3.6 * len(models), 4), squeeze=False)
    for panel, model in zip(panels[0], models, strict=True):
        for way, colour in WAYS.items():
            found = [point for point in points if (point.model, point.way) == (model, way)]
            seen = [min(max(point.outcome.late(), 0.01), 300.0) for point in found]
            panel.plot([point.load for point in found], seen, color=colour, marker="o", label=way)
            if not found[-1].holds:
                panel.plot(found[-1].load, seen[-1], color=colour, marker="x", markersize=12)
        panel.axhline(SERVICES[model].patience, color="black", linestyle=":", linewidth=1)
        panel.set(xscale="log", yscale="log", title=SERVICES[model].name, xlabel="million sessions")
        panel.set_xticks([0.1, 0.25, 1, 3], ["0.1", "0.25", "1", "3"])
        panel.minorticks_off()
        panel.grid(alpha=0.3)
        panel.title.set_fontsize("small")
    panels[0][0].set_ylabel("first token, s: 95 % come sooner")
    panels[0][0].legend(fontsize="x-small")
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=tuple(SERVICES), help="one model")
    parser.add_argument("--share", type=int, default=16, help="simulate an n-th of the fleet and of the sessions")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--dry", action="store_true", help="print the tables, write nothing")
    args = parser.parse_args()
    models = [args.only] if args.only else list(SERVICES)
    points = list(sweep(models, share=args.share, seed=args.seed))
    blocks = {"fleet session": list(session(models)), "fleet": list(table(points, share=args.share))}
    for lines in blocks.values():
        print("\n".join(lines) + "\n")
    if not args.dry and not args.only:
        picture(points, ROOT / "docs" / "images" / "fleet.png")
        fill(ROOT / "docs" / "vllm.md", {name: iter(lines) for name, lines in blocks.items()})


if __name__ == "__main__":
    main()
