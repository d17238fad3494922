"""What came of rules for the number of pods: a table, and a picture of pods and attainment over time. Plays nothing."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from rich.table import Table

from semipd_cli.simulator.scaling.run import MINUTE, Scaled


def peak_pool(outcomes: Sequence[Scaled], enough: float) -> str | None:
    """The smallest fixed pool of those played whose joint attainment is `enough` (0-1): the name of it; None: none is.

    It knows the whole load beforehand, so a rule is held against the cheapest pool that is never changed.
    """
    fixed = {o.scaler for o in outcomes if o.scaler.endswith(" pods")}
    able = [name for name in fixed if mean(outcomes, name) >= enough]
    return min(able, key=lambda name: int(name.split()[0]), default=None)


def mean(outcomes: Sequence[Scaled], scaler: str) -> float:
    """Attainment, over the seeds."""
    mine = [o.attainment for o in outcomes if o.scaler == scaler]
    return sum(mine) / len(mine)


def cost(outcomes: Sequence[Scaled], scaler: str) -> float:
    """Replica-seconds, over the seeds."""
    mine = [o.replica_seconds for o in outcomes if o.scaler == scaler]
    return sum(mine) / len(mine)


def table(outcomes: Sequence[Scaled], enough: float) -> Table:
    shown = Table("scaled by", "requests", "both targets", "minutes under 90 %", "replica-seconds", "of the peak pool")
    for header in ("most pods", "changes", "moves of splits", "p90 TTFT, ms", "p90 TPOT, ms"):
        shown.add_column(header, justify="right")
    peak = peak_pool(outcomes, enough)
    for name in dict.fromkeys(o.scaler for o in outcomes):
        mine = [o for o in outcomes if o.scaler == name]
        n, paid = len(mine), cost(outcomes, name)
        shown.add_row(
            name,
            str(sum(o.requests for o in mine)),
            f"{100 * mean(outcomes, name):.1f} %",
            f"{sum(map(bad_minutes, mine)) / n:.1f}",
            f"{paid:,.0f}",
            "" if peak is None else f"{100 * paid / cost(outcomes, peak):.0f} %",
            str(max(o.most for o in mine)),
            f"{sum(o.changes for o in mine) / n:.1f}",
            f"{sum(o.moves for o in mine) / n:.1f}",
            f"{1000 * sum(o.ttft[1] for o in mine) / n:.0f}",
            f"{1000 * sum(o.tpot[1] for o in mine) / n:.1f}",
        )
    return shown


def bad_minutes(o: Scaled) -> int:
    """Minutes in which fewer than nine requests of ten met both targets."""
    return sum(met < 0.9 * came for came, met in o.minutes)


def draw(outcomes: Sequence[Scaled], path: Path, seconds: float) -> None:
    """Above: requests a second and pods over time, of the first seed; below: attainment by the minute; right:
    attainment against cost. Raises ImportError without matplotlib."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplot_mosaic(
        [["pods", "cost"], ["met", "cost"]], figsize=(13, 6), width_ratios=[2.2, 1], height_ratios=[1.4, 1]
    )
    names = list(dict.fromkeys(o.scaler for o in outcomes))
    colours = {name: f"C{k % 10}" for k, name in enumerate(names)}
    firsts = [next(o for o in outcomes if o.scaler == name) for name in names]
    scaled = [o for o in firsts if o.changes]
    for o in scaled:
        times = [*(at for at, _, _ in o.pods if at <= seconds), seconds]
        counts = [count for at, count, _ in o.pods if at <= seconds]
        axes["pods"].step(times, [*counts, counts[-1]], where="post", color=colours[o.scaler], label=o.scaler)
        minutes = [MINUTE * (k + 0.5) for k in range(len(o.minutes))]
        met = [100 * good / came if came else math.nan for came, good in o.minutes]
        axes["met"].plot(minutes, met, color=colours[o.scaler], lw=1)
    load = axes["pods"].twinx()
    first = firsts[0]
    load.fill_between(
        [MINUTE * (k + 0.5) for k in range(len(first.minutes))],
        [came / MINUTE for came, _ in first.minutes],
        color="0.85",
        zorder=0,
    )
    load.set_ylabel("requests a second (grey)")
    load.set_ylim(bottom=0)
    axes["pods"].set_zorder(load.get_zorder() + 1)
    axes["pods"].patch.set_visible(False)
    axes["pods"].set_ylim(bottom=0)
    axes["pods"].set_ylabel("pods, as set")
    if scaled:
        axes["pods"].legend(fontsize=7, loc="upper left")
    axes["met"].set_ylabel("within both targets, % of a minute")
    axes["met"].set_xlabel("second")
    for axis in (axes["pods"], axes["met"]):
        axis.set_xlim(0, seconds)
    for name in names:
        x, y = cost(outcomes, name) / seconds, 100 * mean(outcomes, name)
        axes["cost"].plot(x, y, "s" if name.endswith(" pods") else "o", color=colours[name])
        axes["cost"].annotate(name, (x, y), fontsize=7, xytext=(4, 3), textcoords="offset points")
    axes["cost"].set_xlabel("pods paid for, mean over the time")
    axes["cost"].set_ylabel("within both targets, %")
    axes["cost"].margins(x=0.2)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
