"""The picture of a run of `auto_split`: prefill's share, and TTFT and TPOT of each request against the targets."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from bench.traffic import Record


class Sample(Protocol):
    @property
    def at(self) -> float: ...
    @property
    def prefill(self) -> int | None: ...
    @property
    def decode(self) -> int | None: ...


def plot(
    samples: Sequence[Sample],
    records: Sequence[Record],
    turns: Sequence[tuple[str, float]],
    slo: dict[str, Any],
    path: Path,
) -> None:
    """Writes a PNG. Times in seconds from the start of the replay, latencies in milliseconds."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (top, middle, bottom) = pyplot.subplots(3, 1, figsize=(11, 8), sharex=True, layout="constrained")
    known = [sample for sample in samples if sample.prefill and sample.decode]
    share = [100 * (s.prefill or 0) / ((s.prefill or 0) + (s.decode or 0)) for s in known]
    top.step([sample.at for sample in known], share, where="post", label="prefill's share x/(x+y)")
    top.set_ylabel("percent")
    top.set_ylim(0, 100)
    panels = ((middle, "ttft", "ttftMilliseconds", "TTFT, ms"), (bottom, "tpot", "tpotMilliseconds", "TPOT, ms"))
    for axes, name, target, label in panels:
        points = [(record.sent, 1e3 * value) for record in records if (value := getattr(record, name)) is not None]
        axes.scatter([at for at, _ in points], [value for _, value in points], s=9)
        axes.axhline(slo[target], color="tab:red", linestyle="--", label=f"target {slo[target]} ms")
        axes.set_yscale("log")
        axes.set_ylabel(label)
    for axes in (top, middle, bottom):
        for name, at in turns:
            axes.axvline(at, color="grey", linewidth=0.8)
            axes.text(at, 1.0, f" {name}", transform=axes.get_xaxis_transform(), va="bottom", fontsize=8)
        axes.legend(loc="upper right")
    bottom.set_xlabel("seconds")
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
