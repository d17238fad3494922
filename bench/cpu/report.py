"""A run's samples as a page of tables, a picture, and a JSON file: cpu.md, cpu.svg, cpu.json."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from bench.cpu.compare import OURS, PEER, Comparison, Spread
from bench.cpu.machine import BUSY
from bench.cpu.parts import BUDGET_GAP, BUDGET_THROUGHPUT, UNDISTURBED
from bench.cpu.schedule import Sample
from bench.cpu.verdicts import SPEEDS, Verdict, at_budgets, best_chunk, verdicts

INTERFERENCE = {
    "quiet_gap_ms": "quiet gap, ms",
    "longest_gap_ms": "longest gap, ms",
    "longest_gap_ratio": "× quiet",
    "p50_gap_ms": "p50 gap meanwhile, ms",
    "ttft_ms": "the prompt's TTFT, ms",
    "prompts": "prompts",
    "failed_prompts": "failed",
    "late_prompts": "late",
}
UNDISTURBED_STREAMS = {
    "quiet_gap_ms": "gap, ms",
    "longest_gap_ms": "longest gap, ms",
    "longest_gap_ratio": "× the usual",
    "p999_gap_ms": "p99.9 gap, ms",
}
GOODPUT = {
    "attainment_percent": "met the targets, %",
    "goodput_per_s": "goodput, 1/s",
    "p90_ttft_ms": "p90 TTFT, ms",
    "p50_longest_gap_ms": "longest gap of a request, p50, ms",
    "worst_longest_gap_ms": "worst, ms",
}
COUNTS = ("prompts", "failed_prompts", "late_prompts")
"""Summed over the rounds."""
COLUMNS = {
    "interference": INTERFERENCE,
    "back-to-back": INTERFERENCE,
    UNDISTURBED: UNDISTURBED_STREAMS,
    "long-mix": {**INTERFERENCE, "p999_gap_ms": "p99.9 gap, ms"},
    **dict.fromkeys(("poisson", "gamma", "trace"), GOODPUT),
}
MARKS = {True: "holds", False: "**falls short**", None: "open"}


def markdown(samples: Sequence[Sample], about: Mapping[str, object]) -> str:
    """`about`: the machine, the versions, and a remark on the peer's number type, for the reader."""
    comparison = Comparison(samples)
    lines = ["# `make bench-cpu`: the last run", "", *_preface(comparison, about), ""]
    for model in comparison.models:
        lines += [f"## {model}", "", *_limits(comparison, model), *_speeds(comparison, model)]
        for part in comparison.parts(model):
            if part in COLUMNS:
                lines += _table(comparison, model, part)
        lines += _budgets(comparison, model)
    lines += _lost(comparison)
    lines += ["## Verdicts", "", "| claim | measured | |", "|---|---|---|"]
    lines += [f"| {v.claim} | {v.found} | {MARKS[v.holds]} |" for v in verdicts(comparison)]
    return "\n".join(lines) + "\n"


def _preface(comparison: Comparison, about: Mapping[str, object]) -> list[str]:
    samples = [*comparison.samples, *comparison.lost]
    if not samples:
        return ["Nothing has been measured."]
    times = sorted(sample.at for sample in samples)
    commits = ", ".join(sorted({sample.commit or "unknown" for sample in samples}))
    first = sum(sample.foremost for sample in samples)
    busy = sum(sample.disturbed for sample in samples)
    others = [sample.others for sample in samples if sample.others is not None]
    versions = about.get("versions")
    shown = ", ".join(f"{k} {v}" for k, v in versions.items() if v) if isinstance(versions, Mapping) else ""
    return [
        f"{len(samples)} turns of commit {commits} (a + is a changed tree), {times[0]} to {times[-1]}, "
        f"{sum(sample.seconds for sample in samples) / 60:.0f} minutes of measuring.",
        *([f"Machine: {about['machine']}. Versions: {shown}."] if about else []),
        *(str(about[name]) for name in ("note", "peer") if about.get(name)),
        f"Tasks of others that ran meanwhile: {f'{statistics.median(others):.1f}' if others else 'unknown'} (median of "
        f"the turns). In {busy} of these there were over {BUSY}, or nobody counted: what rests on one is marked †.",
        *([f"In {first} turns ours and the servers' processes weighed 86 times as much as others'."] if first else []),
        "Medians of the rounds, lowest and highest in brackets. A ratio is of two turns of one round in one run; above "
        "1 is for us: of times it is theirs over ours.",
    ]


def _limits(comparison: Comparison, model: str) -> list[str]:
    read, gemm = (comparison.limit(model, name) for name in ("read_gb_per_s", "gemm_gflop_per_s"))
    if not read or not gemm:
        return []
    text = f"The machine meanwhile: reads {_shown(read)} GB/s, multiplies {_shown(gemm)} GFLOP/s in bfloat16."
    if share := comparison.bandwidth_share(model):
        text += f" Our lone stream at context 128 reads weights with {_shown(share)} % of that bandwidth."
    return [text, ""]


def _speeds(comparison: Comparison, model: str) -> list[str]:
    """Ours, and a column of figures and one of ratios for each peer that was asked."""
    peers = sorted(
        {name for part, *_ in SPEEDS for name in comparison.contenders(model, part) if not name.startswith("ours")}
    )
    rows = []
    for part, name, _ in SPEEDS:
        ours = comparison.figure(model, part, OURS, name)
        cells = [_shown(ours) if ours else "lost"] if comparison.contenders(model, part) else []
        for peer in peers if cells else ():
            theirs, ratio = comparison.figure(model, part, peer, name), comparison.ratio(model, part, name, peer=peer)
            missing = "lost" if comparison.losses(model, part, peer) else ""
            cells += [_shown(theirs) if theirs else missing, _shown(ratio) if ratio else ""]
        if cells:
            rows.append(f"| {part}, {name} | {' | '.join(cells)} |")
    if not rows:
        return []
    head = " | ".join(f"{peer} | ours to {peer}" for peer in peers)
    return [f"| | ours | {head} |", "|---|---|" + "---|---|" * len(peers), *rows, ""]


def _budgets(comparison: Comparison, model: str) -> list[str]:
    """The one-process mode beside the peer, a row for each budget that both were asked at."""
    rows = []
    for each in at_budgets(comparison, model):
        cells = [str(each.budget)]
        for part, figure, ratio in (
            (BUDGET_THROUGHPUT, "tokens_per_s", each.throughput),
            (BUDGET_GAP, "longest_gap_ms", each.gap),
        ):
            both = (comparison.figure(model, part, f"{name}-{each.budget}", figure) for name in ("unified", PEER))
            cells += [*(_shown(spread) for spread in both if spread), _shown(ratio)]
        rows.append(f"| {' | '.join(cells)} |")
    if not rows:
        return []
    columns = [
        *("tokens/s, ours", f"tokens/s, {PEER}", f"ours over {PEER}"),
        *("longest gap, ms, ours", f"longest gap, ms, {PEER}", f"{PEER} over ours"),
    ]
    head = f"| budget | {' | '.join(columns)} |"
    return ["### one process, at equal budgets", "", head, "|---|" + "---|" * len(columns), *rows, ""]


def _table(comparison: Comparison, model: str, part: str) -> list[str]:
    columns = COLUMNS[part]
    lines = [f"### {part}", "", f"| | {' | '.join(columns.values())} |", f"|---|{'---|' * len(columns)}"]
    best = best_chunk(comparison, model, part) if "ttft_ms" in columns else best_split(comparison, model, part)
    for name in comparison.contenders(model, part):
        cells = [comparison.figure(model, part, name, figure) for figure in columns]
        shown = [_shown(cell) if cell else "" for cell in cells]
        for place, figure in enumerate(columns):
            if figure in COUNTS and cells[place]:
                asked = comparison.of(model, part, name)
                shown[place] = f"{sum(sample.figures.get(figure, 0) for sample in asked):.0f}"
        if lost := comparison.losses(model, part, name):
            shown[0] = f"{shown[0]} ({lost} of the samples lost)".strip()
        lines.append(f"| {name}{' (the best)' if name == best else ''} | {' | '.join(shown)} |")
    return [*lines, ""]


def best_split(comparison: Comparison, model: str, part: str) -> str | None:
    """The fixed split that met the most targets."""
    met = {
        name: found.median
        for name in comparison.contenders(model, part)
        if name.startswith("ours ") and (found := comparison.figure(model, part, name, "attainment_percent"))
    }
    return max(met, key=met.__getitem__, default=None)


def _lost(comparison: Comparison) -> list[str]:
    if not comparison.lost:
        return []
    lines = ["## Lost samples", "", "| turn | why |", "|---|---|"]
    for sample in comparison.lost:
        turn = sample.turn
        reason = " ".join(sample.error.split()).replace("|", "/")
        shown = reason if len(reason) < 240 else f"{reason[:80]} … {reason[-150:]}"
        lines.append(f"| {turn.model} {turn.part} {turn.contender} #{turn.round} | {shown} |")
    return [*lines, ""]


def _shown(spread: Spread) -> str:
    mark = "†" if spread.disturbed else ""
    if spread.rounds == 1:
        return _number(spread.median) + mark
    return f"{_number(spread.median)}{mark} ({_number(spread.low)}–{_number(spread.high)})"


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


def write(samples: Sequence[Sample], folder: Path, about: Mapping[str, object]) -> list[Verdict]:
    """Into `folder`; returns the verdicts."""
    comparison = Comparison(samples)
    found = verdicts(comparison)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "cpu.md").write_text(markdown(samples, about))
    every = [asdict(sample) for sample in (*comparison.samples, *comparison.lost)]
    content = {**about, "samples": every, "verdicts": [asdict(verdict) for verdict in found]}
    (folder / "cpu.json").write_text(json.dumps(content, indent=1, sort_keys=True) + "\n")
    drawn = {"interference", *(part for part, *_ in SPEEDS)}
    if any(drawn & {*comparison.parts(model)} for model in comparison.models):
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
