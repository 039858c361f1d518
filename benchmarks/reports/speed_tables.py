"""The tables and plots of the results: benchmarks/README.md, the first figures of README.md, docs/*.png.

Between two marks `<!-- generated: NAME -->` and `<!-- end -->` nothing is written by hand.

    python -m benchmarks.reports.speed_tables
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.record import HERE, newest, read
from benchmarks.reports import speed_plots

Row = dict[str, Any]
WORST = 3  # missed targets that the first page names
TITLES = {
    "read": "reading {} tokens plainly",
    "fold": "folding {} tokens",
    "cold turn": "a turn, cold from Redis: {}",
    "hot turn": "a turn, hot: {}",
    "decode": "decoding behind {} slots",
    "batched": "8 sessions of {} slots",
    "bytes": "bytes kept: {}",
    "growth": "a session as it grows: {}",
    "import": "{}",
    "peak": "peak memory of folding {} tokens",
}


def title(row: Row) -> str:
    """What a result is about, in words."""
    case = str(row["case"])
    if case.split(" ")[0].isdigit() and row["line"] in ("cold turn", "hot turn", "bytes"):
        tokens, *rest = case.split(" ")
        *forms, kind = rest
        case = f"{kind} of {int(tokens):,} tokens" + (f", {forms[0]} slots" if forms else "")
    elif case.isdigit():
        case = f"{int(case):,}"
    return TITLES[row["line"]].format(case)


def number(value: float, unit: str) -> str:
    """A number with as many digits as it is worth."""
    if unit == "s":
        return f"{value:.1f} s" if value >= 10 else f"{value:.2f} s" if value >= 1 else f"{1000 * value:.0f} ms"
    if unit == "s a token":
        return f"{1000 * value:.1f} ms"
    return f"{value:,.0f} {unit.replace(' a token', '')}"


def figure(one: Row, unit: str) -> str:
    """A comparison's figure: a factor, or ours alone."""
    if one["baseline"] is None:
        return number(one["figure"], unit)
    digits = 2 if one["figure"] < 10 else 1 if one["figure"] < 100 else 0
    return f"{one['figure']:.{digits}f}x"


def targets(rows: Sequence[Row]) -> Iterator[str]:
    """Every comparison that has a target."""
    yield "| | against | target | measured | | ours | theirs | repeats |"
    yield "|---|---|---|---|---|---|---|---|"
    for row, one in compared(rows):
        unit, baseline = row["unit"], one["baseline"]
        limit = f"{one['target']:g}x" if baseline else number(one["target"], unit)
        limit = f"{'≥' if one['faster'] else '≤'} {limit}"
        met = "met" if one["met"] else "**missed**"
        theirs = number(row["medians"][baseline], unit) if baseline else ""
        repeats = " / ".join(str(len(row["values"][name])) for name in (row["ours"], baseline) if name)
        yield (
            f"| {title(row)} | {baseline or ''} | {limit} | {figure(one, unit)} | {met} "
            f"| {number(row['medians'][row['ours']], unit)} | {theirs} | {repeats} |"
        )


def compared(rows: Sequence[Row]) -> Iterator[tuple[Row, Row]]:
    """Each result with each of its comparisons that has a target."""
    for row in rows:
        yield from ((row, one) for one in row["against"] if one["target"] is not None)


def every_number(rows: Sequence[Row]) -> Iterator[str]:
    """Every number, with its spread."""
    yield "| | median, and lowest to highest |"
    yield "|---|---|"
    for row in rows:
        if row["line"] not in TITLES:
            continue
        shown = []
        for name, values in row["values"].items():
            spread = f" ({number(min(values), row['unit'])} to {number(max(values), row['unit'])})"
            shown.append(f"{name} {number(row['medians'][name], row['unit'])}{spread if len(values) > 1 else ''}")
        yield f"| {title(row)} | {'; '.join(shown)} |"


def profiles(rows: Sequence[Row]) -> Iterator[str]:
    """The operators that take most of the time."""
    yield "| | seconds | share of the time: operator or function (calls) |"
    yield "|---|---|---|"
    for row in rows:
        if row["line"] == "profile":
            shares = [
                f"{share:.0%} {name} ({calls:,})"
                for name, (share, calls) in row["facts"]["operators"].items()
                if share >= 0.01
            ]
            yield f"| {row['case']} | {row['medians']['seconds']:.2f} | {', '.join(shares)} |"


def store_turns(rows: Sequence[Row]) -> Iterator[str]:
    """What a turn costs the store, by the segments that a session names."""
    yield "| segments named | ttl | sent, bytes | received | round trips | ms |"
    yield "|---|---|---|---|---|---|"
    for row in rows:
        if row["line"] == "store turn":
            facts = row["facts"]
            yield (
                f"| {facts['segments']:,} | {facts['ttl'] or 'none'} | {facts['sent']:,} | {facts['received']:,} "
                f"| {facts['round_trips']:g} | {1000 * row['medians']['turn']:.1f} |"
            )


def store_loads(rows: Sequence[Row]) -> Iterator[str]:
    """What a load costs, by the tokens of the session and the form of its slots."""
    yield "| raw tokens | kept | bytes | read and decoded | against raw KV in the same Redis |"
    yield "|---|---|---|---|---|"
    for row in rows:
        if row["line"] == "store load":
            size, seconds = row["facts"]["bytes"], row["medians"]
            for form, median in seconds.items():
                less, faster = size["raw"] / size[form], seconds["raw"] / median
                beside = "1" if form == "raw" else f"bytes {less:.1f}x less, {faster:.1f}x faster"
                yield (f"| {row['facts']['tokens']:,} | {form} | {size[form]:,} | {number(median, 's')} | {beside} |")


def measured_on(rows: Sequence[Row]) -> Iterator[str]:
    """Where the numbers come from."""
    last = rows[-1]
    machine, versions = last["machine"], last["versions"]
    gpu = machine["gpu"] or "no GPU"
    yield (
        f"{machine['cpu']}, {machine['cores']} cores, {machine['instructions']}, {machine['threads']} threads, {gpu}. "
        + ", ".join(f"{name} {value}" for name, value in versions.items())
        + "."
    )
    yield ""
    yield "```"
    commands = dict.fromkeys((row["at"][:10], row["commit"], row["command"]) for row in sorted(rows, key=_when))
    yield from (f"{command}    # {day}, commit {commit}" for day, commit, command in commands)
    yield "python -m benchmarks.reports.speed_tables"
    yield "```"


def _when(row: Row) -> str:
    return str(row["at"])


def first(rows: Sequence[Row]) -> Iterator[str]:
    """The three numbers that matter most, and every target that is missed."""
    found = newest(rows)
    cold, hot = found.get(("cold turn", "32768 document")), found.get(("hot turn", "32768 document"))
    kept = [found.get(("bytes", f"32768 {form} document")) for form in ("bfloat16", "int8", "int4")]
    folded = [found.get(("fold", str(length))) for length in (1024, 8192, 32768)]
    yield "| SmolLM2-135M, 2 cores, 8 tokens a slot | beacon-memory | what you would do instead |"
    yield "|---|---|---|"
    if cold and hot:
        m = cold["medians"]
        again = f"read them again: {number(m['reading again'], 's')}; " if "reading again" in m else ""
        yield (
            f"| first word on a session of 32K tokens | {number(m['beacon'], 's')} cold from Redis, "
            f"{number(hot['medians']['beacon'], 's')} hot | {again}restore raw KV from the same Redis: "
            f"{number(m['raw KV restored'], 's')} |"
        )
    if all(kept):
        sizes = " / ".join(f"{row['medians']['beacon']:,.0f}" for row in kept if row)
        times = " / ".join(f"{row['against'][0]['figure']:.1f}" for row in kept if row)
        yield f"| bytes kept a token, bf16 / int8 / int4 slots | {sizes}, {times} times less | raw KV, bf16: 23,040 |"
    shown = [row for row in folded if row and "plain prefill" in row["medians"]]
    if shown:
        ours = " / ".join(number(row["medians"]["beacon fold"], "s") for row in shown)
        theirs = " / ".join(number(row["medians"]["plain prefill"], "s") for row in shown)
        ratios = " / ".join(f"{row['against'][0]['figure']:.2f}x" for row in shown)
        lengths = " / ".join(f"{int(row['case']) // 1024}K" for row in shown)
        yield f"| reading {lengths} tokens once | {ours}: {ratios} | plain prefill: {theirs} |"
    judged = list(compared(rows))
    missed = sorted((pair for pair in judged if not pair[1]["met"]), key=lambda pair: _off(pair[1]), reverse=True)
    if missed:
        worst = "; ".join(
            f"{title(row)}{', against ' + one['baseline'] if one['baseline'] else ''}, {figure(one, row['unit'])} "
            f"({'≥' if one['faster'] else '≤'} {one['target']:g})"
            for row, one in missed[:WORST]
        )
        yield ""
        yield f"**Where we lose:** {len(missed)} of {len(judged)} targets of speed and size are missed, most: {worst}."


def _off(one: Row) -> float:
    """How far a target is missed, as a factor."""
    return float(one["target"] / one["figure"] if one["faster"] else one["figure"] / one["target"])


def fill(path: Path, blocks: dict[str, Iterator[str]]) -> None:
    """Write the blocks between their marks. Every block must have its marks in the file."""
    text = path.read_text(encoding="utf-8")
    for name, lines in blocks.items():
        mark = f"<!-- generated: {name} -->"
        pattern = re.compile(re.escape(mark) + r".*?<!-- end -->", re.DOTALL)
        block = "\n".join([mark, *lines, "<!-- end -->"])
        text, count = pattern.subn(lambda _, block=block: block, text)
        if count != 1:
            raise SystemExit(f"{path} has {count} places for {name!r}: it needs one {mark} … <!-- end -->")
    path.write_text(text, encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=HERE / "results" / "speed.jsonl")
    parser.add_argument("--table", type=Path, default=HERE / "README.md")
    parser.add_argument("--readme", type=Path, default=HERE.parent / "README.md")
    parser.add_argument("--redis", type=Path, default=HERE.parent / "docs" / "redis.md")
    parser.add_argument("--plots", type=Path, default=HERE.parent / "docs")
    args = parser.parse_args()
    found = newest(read(args.results))
    order = [*TITLES, "store turn", "store load", "profile"]
    rows = sorted(found.values(), key=lambda row: order.index(row["line"]))
    fill(
        args.table,
        {
            "targets": targets(rows),
            "measured on": measured_on(rows),
            "profiles": profiles(rows),
            "every number": every_number(rows),
        },
    )
    fill(args.readme, {"first": first(rows)})
    fill(args.redis, {"store turns": store_turns(rows), "store loads": store_loads(rows)})
    speed_plots.time(rows, args.plots)
    speed_plots.size(rows, args.plots)


if __name__ == "__main__":
    main()
