"""The report's plots as SVG text. Pure: what comes in is what is drawn; no pyplot state, no file."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from e2e.demo.lanes import Scene
from e2e.demo.outcome import AutoRun

PREFILL, DECODE, ALARM, MUTED = "#c2571a", "#2563a8", "#c62828", "#8a8f98"
CENTRE: dict[str, Any] = {"ha": "center", "va": "center", "fontsize": 8}
GAP_SHOWN = 5.0
"""A gap is shaded when it is this many times the quiet median."""


def svg(figure: Figure) -> str:
    """The figure as an <svg> element that may stand inside HTML (ids made unique per figure by matplotlib's salt)."""
    buffer = io.StringIO()
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": str(id(figure))}):
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    text = buffer.getvalue()
    return re.sub(r"(?s)^.*?(?=<svg)", "", text, count=1)


def _bare(axes: Axes) -> None:
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(MUTED)
    axes.tick_params(colors="#444", labelsize=9)


def lanes(scene: Scene, seconds: float) -> str:
    """Each token a tick; long gaps shaded and labelled; the prompt's time as a bar above. `seconds` is the width."""
    figure = Figure(figsize=(9.2, 2.3), layout="constrained")
    axes = figure.subplots()
    _lanes(axes, scene, seconds)
    axes.set_xlabel("seconds", fontsize=9)
    return svg(figure)


def lanes_of_both(scenes: Sequence[Scene]) -> str:
    """The modes one above the other on one scale, as a picture that stands for itself."""
    seconds = max(scene.window[1] - scene.window[0] for scene in scenes)
    figure = Figure(figsize=(9.2, 2.3 * len(scenes)), layout="constrained")
    for axes, scene in zip(figure.subplots(len(scenes), sharex=True), scenes, strict=True):
        _lanes(axes, scene, seconds)
        axes.set_title(scene.title, fontsize=10, loc="left")
    axes.set_xlabel("seconds", fontsize=9)
    return svg(figure)


def _lanes(axes: Axes, scene: Scene, seconds: float) -> None:
    begin, _ = scene.window
    axes.eventplot(
        [[time - begin for time in stream] for stream in scene.streams],
        lineoffsets=range(len(scene.streams)),
        linelengths=0.7,
        linewidths=1.0,
        colors=DECODE,
    )
    limit = max(scene.quiet_gap * GAP_SHOWN, 0.1)
    for lane, stream in enumerate(scene.streams):
        for before, after in pairwise(stream):
            if after - before >= limit and before >= begin:
                middle = (before + after) / 2 - begin
                axes.barh(lane, after - before, left=before - begin, height=0.7, color=ALARM, alpha=0.18)
                axes.text(middle, lane, f"{(after - before) * 1000:.0f} ms", color=ALARM, **CENTRE)
    if scene.prompt_first is not None:
        sent = scene.prompt_sent - begin
        axes.barh(-1, scene.prompt_first - scene.prompt_sent, left=sent, height=0.5, color=PREFILL, alpha=0.75)
        note = f" first token after {(scene.prompt_ttft or 0) * 1000:.0f} ms"
        axes.text(scene.prompt_first - begin, -1, note, va="center", fontsize=8, color=PREFILL)
    axes.set_yticks(range(-1, len(scene.streams)))
    names = [f"stream {number}" for number in range(1, len(scene.streams) + 1)]
    axes.set_yticklabels([f"{scene.prompt_tokens:,}-token prompt", *names])
    axes.invert_yaxis()
    axes.set_xlim(0, seconds)
    _bare(axes)


def auto(run: AutoRun) -> str:
    """Split over time above TTFT and TPOT against their targets; the load's turns as bands, decisions as lines."""
    figure = Figure(figsize=(9.2, 6.2), layout="constrained")
    split, ttft, tpot = figure.subplots(3, 1, sharex=True, height_ratios=(1.2, 1, 1))
    times = [sample.at for sample in run.samples]
    split.step(times, [sample.prefill for sample in run.samples], where="post", color=PREFILL, label="prefill %", lw=2)
    split.step(
        times,
        [sample.decode for sample in run.samples],
        where="post",
        color=DECODE,
        label="decode %",
        lw=2,
        ls=(0, (4, 1)),
    )
    split.set_ylim(0, 105)
    split.set_ylabel("applied split, %", fontsize=9)
    split.legend(loc="lower right", fontsize=8, frameon=False, ncols=2)
    for axes, name, colour in ((ttft, "ttft", PREFILL), (tpot, "tpot", DECODE)):
        seen = [(record.token_times[-1], getattr(record, name)) for record in run.records if record.token_times]
        points = [(at, seconds * 1000) for at, seconds in seen if seconds is not None]
        _points(axes, points, getattr(run.target, name), colour)
        axes.set_ylabel(f"{name.upper()}, ms", fontsize=9)
    for axes in (split, ttft, tpot):
        for number, turn in enumerate(run.turns):
            axes.axvspan(turn.begin, turn.end, color=MUTED, alpha=0.06 if number % 2 else 0.14, lw=0)
        for decided in run.decisions:
            axes.axvline(decided.at, color=MUTED, lw=0.8, ls=":")
        _bare(axes)
    for turn in run.turns:
        split.text((turn.begin + turn.end) / 2, 102, turn.label, ha="center", va="top", fontsize=8, color="#444")
    tpot.set_xlabel("seconds", fontsize=9)
    return svg(figure)


def _points(axes: Axes, points: Sequence[tuple[float, float]], target: float, colour: str) -> None:
    axes.scatter([at for at, _ in points], [value for _, value in points], s=9, color=colour, alpha=0.7, lw=0)
    axes.axhline(target, color=ALARM, lw=1, ls="--")
    place = axes.get_yaxis_transform()  # x as a fraction of the axes, y in data units
    axes.text(0.995, target, f"target {target:.0f}", transform=place, ha="right", va="bottom", fontsize=8, color=ALARM)
    axes.set_ylim(0, max([target, *(value for _, value in points)]) * 1.15)
