"""The page and the data of a series of runs. Each registered run has its row, the void ones, those given up and those
whose plan is gone, too."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bench.cpu.machine import BUSY
from bench.cpu.report import MARKS
from bench.slo import log, plan, series
from bench.slo.plan import ARMS, AUTO, ORDER, PREDICTED, SHIFT, STAGES
from bench.slo.verdicts import Run, in_a_row, outcome

UNCHECKED = "plan gone"
"""The outcome of a run that has ended, of which there is no plan any more: nobody can check what its line says."""


def markdown(entries: Sequence[log.Entry], runs: Sequence[Run]) -> str:
    """`runs`: those of which there is a plan, in order."""
    known = {run.plan.number: run for run in runs}
    lines = ["# The controller on a real engine: `make bench-slo`", "", *_series(entries, known)]
    for run in reversed(runs):
        lines += ["", *_run(run)]
    return "\n".join(lines) + "\n"


def _series(entries: Sequence[log.Entry], known: dict[int, Run]) -> list[str]:
    lasts = log.last(entries)
    words = [_word(entry, known) for entry in lasts]
    lines = [
        f"{len(lasts)} registered, the last {in_a_row(words)} in a row hold; all are here. A run's plan, with",
        "the predicted knees, targets and rates, was written and hashed before anything was measured under load.",
        "",
        "| run | registered | commit | plan, sha256 | outcome | Auto still, to the best fixed | Auto shift |",
        "|---|---|---|---|---|---|---|",
    ]
    for entry, word in zip(lasts, words, strict=True):
        run = known.get(entry.number)
        ahead = [_ahead(run, stage) for stage in STAGES] if run else ["", ""]
        at = run.plan.at if run else entry.at
        lines.append(
            f"| {entry.number} | {at} | {entry.commit} | `{entry.digest[:16]}` | {word} | {' | '.join(ahead)} |"
        )
    gone = [entry.number for entry, word in zip(lasts, words, strict=True) if word == UNCHECKED]
    if gone:
        paths = ", ".join(f"`{series.folder(Path(), number) / series.PLAN}`" for number in gone)
        lines += ["", f"Gone: {paths}. What nobody can check any more does not count as a run that holds."]
    return lines


def _word(entry: log.Entry, known: dict[int, Run]) -> str:
    if entry.event != log.ENDED:
        return entry.event
    return entry.outcome if entry.number in known else UNCHECKED


def _ahead(run: Run, stage: str) -> str:
    auto, fixed = run.attained(stage, AUTO), run.fixed(stage)
    return f"{auto - max(fixed.values()):+.1f} points" if auto is not None and fixed else "not measured"


def _run(run: Run) -> list[str]:
    said = run.plan
    minutes = sum(sample.seconds for sample in run.samples) / 60
    busy = sum(sample.disturbed for sample in run.samples)
    targets = f"TTFT {said.ttft_ms} ms, TPOT {said.tpot_ms} ms"
    alone = ", ".join(f"{name.removesuffix('_ms').upper()} {value:.1f} ms" for name, value in said.alone.items())
    rates = ", ".join(f"{name} {rate:.2f}/s" for name, rate in said.rates.items())
    lines = [
        f"## Run {said.number}: {outcome(run)}",
        "",
        f"Commit {said.commit}, {said.machine}; {len(run.samples)} trials, {minutes:.0f} minutes; beside {busy} of",
        f"them more than {BUSY} tasks of others ran, or nobody counted. Plan: sha256 `{run.digest}`.",
        "",
        said.rule,
        "",
        f"Alone: {alone}. Targets: {targets}. Rates: {rates}.",
        "",
        "| claim | found | |",
        "|---|---|---|",
        *(f"| {v.claim} | {v.found} | {MARKS[v.holds]} |" for v in run.verdicts()),
        "",
        "| knee | predicted | measured | trials: percent within both targets |",
        "|---|---|---|---|",
        *(_knee(run, split) for split in PREDICTED),
        "",
        *_arms(run),
    ]
    worst = sorted(run.held, key=lambda one: -abs(one.error))[:3]
    if worst:
        each = [f"{w.phase} at {w.point} ({w.predicted_ms:.1f} ms for {w.measured_ms:.1f})" for w in worst]
        lines += ["", f"Held-out steps furthest off: {'; '.join(each)}."]
    autos = [s for s in run.samples if s.turn.contender == AUTO and not s.error]
    if autos:
        moves = {
            stage: max((s.figures["moves"] for s in autos if s.turn.group == stage), default=0.0) for stage in STAGES
        }
        measured = all(s.figures["profile_measured"] for s in autos)
        words = ", ".join(f"{stage} {count:.0f}" for stage, count in moves.items())
        lines += ["", f"Auto's moves: {words}; its step times were {'measured' if measured else '**assumed**'}."]
    lost = [s for s in run.samples if s.error]
    lines += ["", *(f"Lost: {s.turn.group} {s.turn.contender}: {' '.join(s.error.split())[:200]}" for s in lost)]
    return lines if lost else lines[:-1]


def _knee(run: Run, split: str) -> str:
    mine = [s for s in run.samples if (s.turn.group, s.turn.contender) == (plan.KNEE, split) and not s.error]
    trials = ", ".join(f"{s.figures['rate']:.2f}/s: {s.figures['met_percent']:.0f}" for s in mine)
    knee = run.knee(split)
    return f"| {split} | {run.plan.knees[split]:.2f}/s | {f'{knee:.2f}/s' if knee else 'open'} | {trials} |"


def _arms(run: Run) -> list[str]:
    """Percent within both targets, and of the shift each stretch."""
    labels = [f"{turn + 1} {trace}" for turn, trace in enumerate(ORDER)]
    lines = ["| within both targets, % | still | shift | " + " | ".join(labels) + " | late P99, ms |"]
    lines.append("|---" * (4 + len(labels)) + "|")
    for arm in ARMS:
        totals = [run.attained(stage, arm) for stage in STAGES]
        mine = [s for s in run.samples if s.turn.contender == arm and s.turn.group in STAGES and not s.error]
        shift = next((s.figures for s in mine if s.turn.group == SHIFT), {})
        parts = [shift.get(f"met_percent {label}") for label in labels]
        late = max((s.figures["late_p99_ms"] for s in mine), default=None)
        cells = ["open" if value is None else f"{value:.1f}" for value in (*totals, *parts, late)]
        lines.append(f"| {arm} | {' | '.join(cells)} |")
    return lines


def content(entries: Sequence[log.Entry], runs: Sequence[Run]) -> dict[str, Any]:
    """All of it."""
    return {
        "log": [asdict(entry) for entry in entries],
        "runs": [
            {
                "plan": run.plan.as_json(),
                "sha256": run.digest,
                "outcome": outcome(run),
                "verdicts": [asdict(verdict) for verdict in run.verdicts()],
                "held": [asdict(one) for one in run.held],
                "samples": [asdict(sample) for sample in run.samples],
            }
            for run in runs
        ],
    }


def write(entries: Sequence[log.Entry], runs: Sequence[Run], place: Path) -> None:
    """slo.md, slo.json and slo.svg."""
    place.mkdir(parents=True, exist_ok=True)
    (place / "slo.md").write_text(markdown(entries, runs))
    (place / "slo.json").write_text(json.dumps(content(entries, runs), indent=1) + "\n")
    if runs:
        plot(runs[-1], place / "slo.svg")


def plot(run: Run, path: Path) -> None:
    """Of one run: attainment of each arm, knees beside the predicted ones, errors of held-out steps."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    figure, (arms, knees, held) = pyplot.subplots(1, 3, figsize=(13, 4), width_ratios=(2, 1, 1))
    for turn, stage in enumerate(STAGES):
        values = [run.attained(stage, arm) or 0.0 for arm in ARMS]
        bars = arms.bar([n + 0.4 * turn for n in range(len(ARMS))], values, 0.38, label=stage)
        arms.bar_label(bars, fmt="%.0f", fontsize=7)
    arms.set_xticks([n + 0.2 for n in range(len(ARMS))], ARMS, rotation=20, fontsize=8)
    arms.set_ylabel("% of requests within both targets")
    arms.legend()
    found = [run.knee(split) for split in PREDICTED]
    said = [run.plan.knees[split] for split in PREDICTED]
    knees.errorbar(PREDICTED, said, yerr=[0.1 * knee for knee in said], fmt="_", capsize=4, label="predicted, ±10 %")
    knees.plot(PREDICTED, [value if value else float("nan") for value in found], "o", label="measured")
    knees.set_ylabel("knee, requests a second")
    knees.set_ylim(bottom=0)
    knees.legend()
    for phase, colour in (("prefill", "tab:blue"), ("decode", "tab:orange")):
        mine = [one for one in run.held if one.phase == phase]
        held.plot([m.measured_ms for m in mine], [100 * m.error for m in mine], ".", color=colour, label=phase)
    held.axhline(0, color="grey", linewidth=0.8)
    if run.held:
        held.set_xscale("log")
    held.set_xlabel("a held-out step took, ms")
    held.set_ylabel("the model's word, % off")
    held.legend()
    figure.suptitle(f"run {run.plan.number}, commit {run.plan.commit}: {outcome(run)}", fontsize=10)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)
