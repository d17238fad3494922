"""The report's pictures: what was measured beside what was predicted. What was not measured has no bar, and is named.

Pure but for `plots`: records of the parts and the rows of `verdicts.steps` in, SVG text out. Standard library only.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.gpu.check.bars import BLUE, ORANGE, PALE_BLUE, PALE_ORANGE, Group, Panel, svg

if TYPE_CHECKING:
    from tests.gpu.check.report import Record

Rows = Sequence[Mapping[str, Any]]
FLOOR = "floor: all bytes at the data sheet's rate, all products at its"
SERIES = {
    "measured": "measured ms",
    "measured as a graph": "as a graph ms",
    "expected": "expected ms",
    "expected in a graph": "in a graph ms",
}
COLOURS = dict(zip(SERIES, (ORANGE, BLUE, PALE_ORANGE, PALE_BLUE), strict=True))
MEASURED = ("measured", "measured as a graph")


@dataclass(frozen=True)
class Plot:
    file: str
    title: str
    panels: tuple[Panel, ...]
    """Empty: nothing of it was measured, and there is no picture."""
    lacks: tuple[str, ...]
    """What was not measured."""


def plots(records: Sequence[Record], steps: Rows, folder: Path) -> list[str]:
    """Writes the pictures into `folder`; the files' names. Those of an earlier call go. Raises OSError."""
    written = []
    for plot in drawn(records, steps):
        path = folder / plot.file
        if plot.panels:
            path.write_text(svg(plot.panels))
            written.append(plot.file)
        else:
            path.unlink(missing_ok=True)
    return written


def section(records: Sequence[Record], steps: Rows) -> list[str]:
    """Of report.md: the pictures, and what they lack."""
    found = drawn(records, steps)
    if not any(plot.panels for plot in found):
        return ["", "## Pictures", "", "None: nothing that they show was measured.", ""]
    lines = ["", "## Pictures", ""]
    for plot in found:
        lines += [f"![{plot.title}]({plot.file})", ""] if plot.panels else []
        lines += [f"{plot.title}, not measured: {', '.join(plot.lacks)}.", ""] if plot.lacks else []
    return lines


def drawn(records: Sequence[Record], steps: Rows) -> list[Plot]:
    figures = {record.name: record.figures for record in records}
    return [
        _steps(steps, "decode", "Decode steps", "batch {}"),
        _steps(steps, "prefill", "Prompts", "{} tokens"),
        _kernels(figures),
        _switches(figures),
        _goodput(figures),
    ]


def _steps(rows: Rows, kind: str, title: str, what: str) -> Plot:
    """A panel for each model of which a step was measured. Prompts are no graphs."""
    shown = dict(list(SERIES.items())[:: 1 if kind == "decode" else 2])
    panels, lacks = list[Panel](), list[str]()
    of_kind = [row for row in rows if str(row["step"]).startswith(f"{kind} ")]
    for model in dict.fromkeys(str(row["model"]) for row in of_kind):
        groups, missed = list[Group](), list[str]()
        for row in (row for row in of_kind if row["model"] == model):
            values = {name: value for name, key in shown.items() if (value := _number(row.get(key))) is not None}
            size = str(row["step"]).removeprefix(f"{kind} ")
            if any(name in values for name in MEASURED):
                groups.append(Group(what.format(size), values, _number(row.get("floor ms"))))
            else:
                missed.append(size)
        marked = any(group.mark is not None for group in groups)
        if groups:
            panels.append(Panel(f"{title}, {model}", "ms", COLOURS, groups, FLOOR if marked else ""))
            lacks += [f"{model} at {what.format(', '.join(missed))}"] if missed else []
            lacks += [] if marked else [f"{model}'s floor (no predictions of this card)"]
        else:
            lacks.append(model)
    return Plot(f"plots-{kind}.svg", title, tuple(panels), tuple(lacks))


def _kernels(figures: Mapping[str, Mapping[str, Any]]) -> Plot:
    rows = figures.get("kernels", {}).get("decode attention", [])
    groups = _groups(rows, lambda row: f"batch {row['sequences']}", {"decode attention": "of a copy"}, mark=1.0)
    floor = "floor: the rate of a copy on this card"
    panel = Panel("Rate of the kernels", "part of the floor's", {"decode attention": ORANGE}, groups, floor)
    return _one("plots-kernels.svg", "Kernels beside their floor", panel, () if groups else ("decode attention",))


def _switches(figures: Mapping[str, Mapping[str, Any]]) -> Plot:
    """By backend, from the parts that move between splits under load."""
    backend = "mps" if figures.get("mps", {}).get("rungs") else "without limits"
    moved = figures.get("switches", {}).get("moves, one after the other", [])
    served = figures.get("green", {}).get("served moves", [])
    groups = _groups(
        moved,
        lambda row: f"{backend}, {row['moves']} {row['move']} moves",
        {"longest gap": "worst gap ms", "median gap": "a step ms, median"},
    )
    green = {"longest gap": "longest ms", "median gap": "median ms"}
    more = _groups(served, lambda row: f"mps-green, {row['moves']} moves", green)
    lacks = [*([] if groups else ["mps"]), *([] if more else ["mps-green"])]
    colours = {"longest gap": ORANGE, "median gap": BLUE}
    panel = Panel("Gap between two tokens of a stream while the split moves", "ms", colours, [*groups, *more])
    return _one("plots-switches.svg", "Moves under load", panel, lacks)


def _goodput(figures: Mapping[str, Mapping[str, Any]]) -> Plot:
    rows = figures.get("goodput", {}).get("goodput by mode", [])
    groups = _groups(rows, lambda row: str(row["mode"]), {"goodput": "goodput, 1/s"})
    panel = Panel("Requests that met both targets, by mode", "1/s", {"goodput": ORANGE}, groups)
    return _one("plots-goodput.svg", "Goodput on the alternating trace", panel, () if groups else ("all modes",))


def _one(file: str, title: str, panel: Panel, lacks: Sequence[str]) -> Plot:
    """A picture of one panel, or of none where that has no bars."""
    return Plot(file, title, (panel,) if panel.groups else (), tuple(lacks))


def _groups(
    rows: Rows, label: Callable[[Mapping[str, Any]], str], series: Mapping[str, str], mark: float | None = None
) -> list[Group]:
    found = []
    for row in rows:
        values = {name: value for name, key in series.items() if (value := _number(row.get(key))) is not None}
        if values:
            found.append(Group(label(row), values, mark))
    return found


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) else None
