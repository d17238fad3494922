"""What came of the study: a table, its JSON, and pictures to read at a glance. Plays nothing."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from bench.cpu.identity import commit
from bench.study import plan
from semipd_cli.simulator.study import Outcome, paired

AUTO, UNPROFILED, CHOICE = "auto", "auto-unprofiled", "auto+mixed"
CONSTANT, MIXED = "best constant", "best mixed"
NOT_PLAYED = "not played"


@dataclass(frozen=True)
class Played:
    """A run, and whose it is."""

    outcome: Outcome
    code: str
    """A digest of `plan.Code`."""
    commit: str = ""
    """Empty of one that was kept before commits were."""


@dataclass(frozen=True)
class Row:
    """One rule under one workload, over the held-out seeds."""

    workload: str
    rule: str
    policy: str
    """What it was: of the best constant, which."""
    attainment: tuple[float, ...]
    moves_an_hour: tuple[float, ...]
    """Of Auto under a constant load: in its hours; empty until they are played."""
    requests: int
    ahead: tuple[float, float]
    """Auto less this one, paired by seed: mean and half width of the 95 % band."""
    played_by: tuple[tuple[str, str], ...] = ()
    """Code and commit of its runs; several where a report has older ones too."""

    @property
    def mean(self) -> float:
        return sum(self.attainment) / len(self.attainment)


def rows(
    cases: Sequence[plan.Case], found: Callable[[plan.Unit], Played | None], seeds: Sequence[int] = plan.SEEDS
) -> list[Row]:
    """What was played on all of these seeds, of the workloads of which Auto and the constants were. `found`: a run, if
    there is one."""
    told = []
    for case in cases:
        kept = {
            (policy, seed): played
            for policy in (*plan.RULES, *plan.HINDSIGHT, *plan.BUDGETS)
            for seed in seeds
            if (played := found(plan.Unit(case, policy, seed))) is not None
        }
        done = [played.outcome for played in kept.values()]
        chosen = {rule: rule for rule in plan.RULES if plan.best(done, [rule], 1, seeds)}
        for rule, among in ((CONSTANT, plan.HINDSIGHT), (MIXED, plan.BUDGETS)):
            for policy in plan.best(done, among, 1, seeds):
                chosen[rule] = policy
        hours = [played for unit in plan.hour_units(case) if (played := found(unit)) is not None]
        if AUTO not in chosen or CONSTANT not in chosen:
            continue
        auto = [kept[AUTO, seed].outcome.attainment for seed in seeds]
        for rule, policy in chosen.items():
            mine = [kept[policy, seed] for seed in seeds]
            moving = hours if case.workload.stationary and rule == AUTO else mine
            attainment = tuple(played.outcome.attainment for played in mine)
            told.append(
                Row(
                    case.workload.name,
                    rule,
                    policy,
                    attainment,
                    tuple(played.outcome.moves_an_hour for played in moving),
                    sum(played.outcome.requests for played in mine),
                    paired(auto, attainment),
                    tuple(dict.fromkeys((played.code, played.commit) for played in (*mine, *moving))),
                )
            )
    return told


ORDER = (
    AUTO,
    "auto-unprofiled",
    CHOICE,
    CONSTANT,
    "100/100",
    "algorithm1",
    "algorithm1-printed",
    "decode-first",
    MIXED,
)


def table(found: Sequence[Row]) -> Table:
    """A line for each workload: what Auto attains, what each other rule does, and by how much Auto is ahead."""
    shown, others = Table("workload", "auto", "moves an hour (most)"), _others(found)
    for rule in others:
        shown.add_column(rule)
    for name in dict.fromkeys(row.workload for row in found):
        mine = {row.rule: row for row in found if row.workload == name}
        auto = mine[AUTO]
        moves = auto.moves_an_hour
        told = f"{sum(moves) / len(moves):.0f} ({max(moves):.0f})" if moves else NOT_PLAYED
        line = [name, f"{100 * auto.mean:.1f}", told]
        for rule in others:
            if rule not in mine:
                line.append(NOT_PLAYED)
                continue
            row = mine[rule]
            which = f"{row.policy.removeprefix('mixed/')}: " if rule in (CONSTANT, MIXED) else ""
            line.append(f"{which}{100 * row.mean:.1f} ({100 * row.ahead[0]:+.1f} ± {100 * row.ahead[1]:.1f})")
        shown.add_row(*line)
    return shown


def _others(found: Sequence[Row]) -> list[str]:
    """Rules beside Auto: an earlier study had fewer."""
    return [rule for rule in ORDER[1:] if any(row.rule == rule for row in found)]


def markdown(found: Sequence[Row]) -> str:
    """The same table, for a document."""
    return as_markdown(table(found))


def of_older_code(found: Sequence[Row], code: plan.Code) -> str:
    """What a reader of the table is told of rows that have runs of other code; nothing where none has."""
    todays = {code.engine, code.policies}
    older = [f"{row.workload} {row.rule}" for row in found if {made_by for made_by, _ in row.played_by} - todays]
    return f"\nWith runs of older code (`played_by` in study.json): {', '.join(older)}.\n" if older else ""


def as_markdown(source: Table) -> str:
    cells = [list(column.cells) for column in source.columns]
    lines = [" | ".join(str(column.header) for column in source.columns), " | ".join("---" for _ in cells)]
    lines += [" | ".join(str(column[i]) for column in cells) for i in range(len(cells[0]))]
    return "".join(f"| {line} |\n" for line in lines)


def write(
    found: Sequence[Row],
    runs: Sequence[Outcome],
    folder: Path,
    code: plan.Code,
    seeds: Sequence[int] = plan.SEEDS,
) -> None:
    """``study.json``, the table of its figures and, where matplotlib is, ``study.svg``. `runs`: Auto's."""
    folder.mkdir(parents=True, exist_ok=True)
    told: dict[str, Any] = {
        "code": code.policies,
        "commit": commit(),
        "training_seeds": list(plan.TRAINING),
        "held_out_seeds": list(seeds),
        "band": "95 % of the mean difference, paired by seed (Student)",
        "rows": [
            {
                "workload": row.workload,
                "rule": row.rule,
                "policy": row.policy,
                "requests": row.requests,
                "attainment": [round(a, 4) for a in row.attainment],
                "moves_an_hour": [round(m, 1) for m in row.moves_an_hour],
                "auto_ahead_points": [round(100 * v, 2) for v in row.ahead],
                "played_by": [{"code": code, "commit": at} for code, at in row.played_by],
            }
            for row in found
        ],
        "splits_of_auto": [
            {"workload": o.workload, "seed": o.seed, "splits": o.splits}
            for o in runs
            if o.workload in {row.workload for row in found}
        ],
    }
    (folder / "study.json").write_text(json.dumps(told, indent=1) + "\n")
    (folder / "study.md").write_text(markdown(read(told)) + of_older_code(found, code))
    draw(found, runs, folder / "study.svg")


def read(told: Mapping[str, Any]) -> list[Row]:
    """The rows of a ``study.json``; its figures are rounded."""
    return [
        Row(
            row["workload"],
            row["rule"],
            row["policy"],
            tuple(row["attainment"]),
            tuple(row["moves_an_hour"]),
            row["requests"],
            (row["auto_ahead_points"][0] / 100, row["auto_ahead_points"][1] / 100),
        )
        for row in told["rows"]
    ]


def draw(found: Sequence[Row], runs: Sequence[Outcome], path: Path) -> None:
    """Left: how far Auto is ahead of each rule, with bands. Right: prefill's share over time where the mix changes."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    names = list(dict.fromkeys(row.workload for row in found))
    moving = [n for n in names if n.count("-") == 2]
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(13, 0.55 * len(names) + 2))
    for k, rule in enumerate(_others(found)):
        mine = {row.workload: row.ahead for row in found if row.rule == rule}
        at = [i + 0.12 * (k - 2.5) for i in range(len(names))]
        there = [(n, y) for n, y in zip(names, at, strict=True) if n in mine]
        left.errorbar(
            [100 * mine[n][0] for n, _ in there],
            [y for _, y in there],
            xerr=[100 * mine[n][1] for n, _ in there],
            fmt="o",
            ms=4,
            label=rule,
        )
    left.axvline(0, color="black", linewidth=0.8)
    left.set_yticks(range(len(names)), names)
    left.invert_yaxis()
    left.set_xscale("symlog", linthresh=5)
    left.set_xlabel("Auto ahead, points of requests within both targets (95 % band)")
    left.legend(fontsize=7)
    for k, name in enumerate(moving):
        for o in [o for o in runs if o.workload == name]:
            times = [t for t, _, _ in o.splits] + [360]
            shares = [100 * x / max(100, x + y) for _, x, y in o.splits]
            right.step(times, [*shares, shares[-1]], where="post", color=f"C{k}", alpha=0.6, label=name)
    handles, labels = right.get_legend_handles_labels()
    unique = dict(zip(labels, handles, strict=True))
    right.legend(unique.values(), unique.keys(), fontsize=7)
    right.set_ylim(0, 100)
    right.set_xlabel("second (the mix changes at 120 and 240)")
    right.set_title("Auto: prefill's share while both are busy, %, each held-out seed", fontsize=9)
    figure.tight_layout()
    figure.savefig(path)
    pyplot.close(figure)
