"""A run's samples as a page of tables, a picture, and a JSON file: cpu.md, cpu.svg, cpu.json."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from bench.cpu.compare import OURS, PEER, SPEEDS, Comparison, Spread, Verdict, best_chunk, verdicts
from bench.cpu.schedule import Sample

INTERFERENCE = {
    "quiet_gap_ms": "quiet gap, ms",
    "longest_gap_ms": "longest gap, ms",
    "longest_gap_ratio": "× quiet",
    "p50_gap_ms": "p50 gap meanwhile, ms",
    "ttft_ms": "the prompt's TTFT, ms",
}
GOODPUT = {
    "attainment_percent": "met the targets, %",
    "goodput_per_s": "goodput, 1/s",
    "p90_ttft_ms": "p90 TTFT, ms",
    "p50_longest_gap_ms": "longest gap of a request, p50, ms",
    "worst_longest_gap_ms": "worst, ms",
}
COLUMNS = {
    "interference": INTERFERENCE,
    "back-to-back": INTERFERENCE,
    "long-mix": {**INTERFERENCE, "p999_gap_ms": "p99.9 gap, ms"},
    **dict.fromkeys(("poisson", "gamma", "trace"), GOODPUT),
}
MARKS = {True: "holds", False: "**falls short**", None: "open"}


def markdown(samples: Sequence[Sample]) -> str:
    comparison = Comparison(samples)
    lines = ["# `make bench-cpu`: the last run", "", *_preface(samples), ""]
    for model in comparison.models:
        lines += [f"## {model}", "", *_limits(comparison, model), *_speeds(comparison, model)]
        for part in comparison.parts(model):
            if part in COLUMNS:
                lines += _table(comparison, model, part)
    lines += ["## Verdicts", "", "| claim | measured | |", "|---|---|---|"]
    lines += [f"| {v.claim} | {v.found} | {MARKS[v.holds]} |" for v in verdicts(comparison)]
    return "\n".join(lines) + "\n"


def _preface(samples: Sequence[Sample]) -> list[str]:
    if not samples:
        return ["Nothing has been measured."]
    loads = sorted(sample.load for sample in samples)
    times = sorted(sample.at for sample in samples)
    return [
        f"{len(samples)} turns, {times[0]} to {times[-1]}; load of the machine {loads[0]:.0f} to {loads[-1]:.0f} "
        f"(median {loads[len(loads) // 2]:.0f}).",
        "Medians of the rounds, lowest and highest in brackets. A ratio is of turns of one round; above 1 is for us.",
    ]


def _limits(comparison: Comparison, model: str) -> list[str]:
    read, gemm = (comparison.limit(model, name) for name in ("read_gb_per_s", "gemm_gflop_per_s"))
    if not read or not gemm:
        return []
    return [f"The machine meanwhile: reads {_shown(read)} GB/s, multiplies {_shown(gemm)} GFLOP/s in bfloat16.", ""]


def _speeds(comparison: Comparison, model: str) -> list[str]:
    rows = []
    for part, name, _ in SPEEDS:
        ours, theirs = (comparison.figure(model, part, who, name) for who in (OURS, PEER))
        ratio = comparison.ratio(model, part, name)
        if ours and theirs and ratio:
            rows.append(f"| {part}, {name} | {_shown(ours)} | {_shown(theirs)} | {_shown(ratio)} |")
    return [f"| | ours | {PEER} | ratio |", "|---|---|---|---|", *rows, ""] if rows else []


def _table(comparison: Comparison, model: str, part: str) -> list[str]:
    columns = COLUMNS[part]
    lines = [f"### {part}", "", f"| | {' | '.join(columns.values())} |", f"|---|{'---|' * len(columns)}"]
    best = best_chunk(comparison, model, part)
    for name in comparison.contenders(model, part):
        cells = [comparison.figure(model, part, name, figure) for figure in columns]
        shown = " | ".join(_shown(cell) if cell else "" for cell in cells)
        lines.append(f"| {name}{' (its best)' if name == best else ''} | {shown} |")
    return [*lines, ""]


def _shown(spread: Spread) -> str:
    if spread.rounds == 1:
        return _number(spread.median)
    return f"{_number(spread.median)} ({_number(spread.low)}–{_number(spread.high)})"


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


def write(samples: Sequence[Sample], folder: Path) -> list[Verdict]:
    """Into `folder`; returns the verdicts."""
    comparison = Comparison(samples)
    found = verdicts(comparison)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "cpu.md").write_text(markdown(samples))
    content = {"samples": [asdict(s) for s in comparison.samples], "verdicts": [asdict(v) for v in found]}
    (folder / "cpu.json").write_text(json.dumps(content, indent=1, sort_keys=True) + "\n")
    if comparison.models:
        plot(comparison, folder / "cpu.svg")
    return found


def plot(comparison: Comparison, path: Path) -> None:
    """Left the ratios to the peer's default; right what each contender makes of a long prompt beside two streams."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    models = comparison.models
    figure, grid = pyplot.subplots(len(models), 2, figsize=(11, 4 * len(models)), squeeze=False, layout="constrained")
    for (left, right), model in zip(grid, models, strict=True):
        ratios = {part: comparison.ratio(model, part, name) for part, name, _ in SPEEDS}
        shown = {part: ratio.median for part, ratio in ratios.items() if ratio}
        left.barh(list(shown), list(shown.values()))
        left.axvline(1, color="black", linewidth=0.8)
        left.set(title=f"{model}: times {PEER}", xlabel="ours over theirs (TTFT: theirs over ours)")
        for name in comparison.contenders(model, "interference"):
            gap, ttft = (comparison.figure(model, "interference", name, f) for f in ("longest_gap_ms", "ttft_ms"))
            if gap and ttft:
                right.scatter(ttft.median, gap.median, color="tab:blue" if name.startswith("ours") else "tab:red")
                right.annotate(name, (ttft.median, gap.median), textcoords="offset points", xytext=(4, 4), fontsize=8)
        right.set(
            title="a 1,024-token prompt beside two streams", xlabel="its TTFT, ms", ylabel="their longest gap, ms"
        )
        right.set(xlim=(0, None), ylim=(0, None))
    figure.savefig(path)
    pyplot.close(figure)
