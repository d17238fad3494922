"""A picture of a study: attainment by workload and policy, and the split over time. Needs matplotlib."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from semipd_cli.simulator.study import Outcome


def draw(outcomes: Sequence[Outcome], path: Path, seconds: float) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    workloads = list(dict.fromkeys(o.workload for o in outcomes))
    figure, axes = pyplot.subplots(len(workloads), 2, figsize=(12, 2.4 * len(workloads) + 0.6), squeeze=False)
    for row, workload in zip(axes, workloads, strict=True):
        mine = [o for o in outcomes if o.workload == workload]
        policies = list(dict.fromkeys(o.policy for o in mine))
        for k, policy in enumerate(policies):
            values = [100 * o.attainment for o in mine if o.policy == policy]
            row[0].barh(k, sum(values) / len(values), color=f"C{k}", alpha=0.6)
            row[0].plot(values, [k] * len(values), "k.", markersize=4)
            first = next(o for o in mine if o.policy == policy)
            if len(first.splits) > 1 or policy == "auto":
                times = [t for t, _, _ in first.splits] + [seconds]
                shares = [100 * x / max(100, x + y) for _, x, y in first.splits]
                row[1].step(times, [*shares, shares[-1]], where="post", color=f"C{k}", label=policy)
        row[0].set_yticks(range(len(policies)), policies)
        row[0].set_xlim(0, 100)
        row[0].set_title(f"{workload}: requests within both targets, %", fontsize=9)
        row[1].set_ylim(0, 100)
        row[1].set_xlim(0, seconds)
        row[1].set_title("prefill's share while both are busy, %", fontsize=9)
        if row[1].lines:
            row[1].legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
