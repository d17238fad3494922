"""The self-contained HTML report. `render` is pure: from an `Outcome` to a string that loads nothing, links nowhere."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterable
from datetime import datetime
from html import escape
from importlib.metadata import version
from pathlib import Path

import psutil

from e2e.demo import plots
from e2e.demo.lanes import figures
from e2e.demo.outcome import AutoRun, Outcome, clock

STYLE = """
:root { color-scheme: light; --ink: #1d2127; --muted: #5b626d; --line: #e2e5ea; --pass: #1b7f3b; --fail: #c62828; }
body { font: 16px/1.55 system-ui, sans-serif; color: var(--ink); background: #fff; margin: 0 auto; max-width: 60rem;
  padding: 2rem 1.25rem 4rem; }
h1 { font-size: 1.7rem; margin: 0 0 .25rem; } h2 { font-size: 1.2rem; margin: 2.4rem 0 .5rem; }
h3 { font-size: 1rem; margin: 1.4rem 0 .25rem; } p { margin: .4rem 0; } .muted { color: var(--muted); }
table { border-collapse: collapse; width: 100%; font-size: .92rem; }
th, td { text-align: left; padding: .35rem .6rem .35rem 0; border-bottom: 1px solid var(--line); vertical-align: top; }
th { color: var(--muted); font-weight: 600; } td.number { font-variant-numeric: tabular-nums; text-align: right; }
.pass { color: var(--pass); font-weight: 700; } .fail { color: var(--fail); font-weight: 700; }
pre { background: #f6f7f9; border: 1px solid var(--line); border-radius: 6px; padding: .7rem .9rem; overflow-x: auto;
  font: 13px/1.45 ui-monospace, monospace; }
svg { max-width: 100%; height: auto; } figure { margin: .6rem 0; }
"""


def table(head: Iterable[str], rows: Iterable[Iterable[str]], *, numbers: Iterable[int] = ()) -> str:
    """An HTML table; cells are HTML already, `numbers` are the columns that hold figures."""
    right = set(numbers)

    def cell(index: int, text: str) -> str:
        return f'<td class="number">{text}</td>' if index in right else f"<td>{text}</td>"

    body = "".join(f"<tr>{''.join(cell(i, text) for i, text in enumerate(row))}</tr>" for row in rows)
    return f"<table><tr>{''.join(f'<th>{escape(name)}</th>' for name in head)}</tr>{body}</table>"


def render(outcome: Outcome, *, seconds: float, date: str) -> str:
    """The whole page. `seconds` is how long the demo took."""
    passed = sum(check.ok for check in outcome.checks)
    verdict = '<span class="fail">FAIL</span>' if outcome.failed else '<span class="pass">PASS</span>'
    parts = [
        f"<h1>SemiPD demo: {verdict}</h1>",
        f'<p class="muted">{escape(date)} · mode={escape(outcome.mode)} · '
        f"{passed} of {len(outcome.checks)} checks passed · {clock(seconds)} minutes</p>",
        checks(outcome),
        lane_pictures(outcome),
        *(auto_run(run) for run in outcome.auto_runs),
        transcript(outcome),
        machine(outcome),
        act_timings(outcome),
    ]
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><title>SemiPD demo</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<style>{STYLE}</style></head><body>{''.join(parts)}</body></html>\n"
    )


def checks(outcome: Outcome) -> str:
    rows = (
        (
            '<span class="pass">PASS</span>' if check.ok else '<span class="fail">FAIL</span>',
            escape(check.name),
            escape(check.detail).replace("\n", "<br>"),
        )
        for check in outcome.checks
    )
    return "<h2>Checks</h2>" + table(("", "what", "seen"), rows)


def lane_pictures(outcome: Outcome) -> str:
    if not outcome.scenes:
        return ""
    seconds = max(end - begin for begin, end in (scene.window for scene in outcome.scenes))
    text = [
        "<h2>The point: streams while a long prompt arrives</h2>",
        "<p>Each tick is a token of one of four running answers. A long prompt arrives; the red stretches are streams "
        "that stand still while it is worked on. Same machine, same model, same kernels.</p>",
    ]
    for scene in outcome.scenes:
        text.append(f"<h3>{escape(scene.title)}</h3><figure>{plots.lanes(scene, seconds)}</figure>")
        text.append(f'<p class="muted">{escape(figures(scene))}</p>')
    head = (
        "mode",
        "longest gap of a stream, ms",
        "a token each, ms",
        "meanwhile, ms",
        "the prompt's TTFT, ms",
        "tokens meanwhile",
    )
    rows = (
        (
            escape(scene.title),
            f"{max(scene.longest_gaps, default=0) * 1000:.0f}",
            f"{scene.quiet_gap * 1000:.0f}",
            f"{scene.gap_meanwhile * 1000:.0f}",
            f"{scene.prompt_ttft * 1000:.0f}" if scene.prompt_ttft is not None else "–",
            str(sum(scene.tokens_meanwhile)),
        )
        for scene in outcome.scenes
    )
    return "".join([*text, table(head, rows, numbers=(1, 2, 3, 4, 5))])


def auto_run(run: AutoRun) -> str:
    decided = "\n".join(f"{one.at:6.1f} s  {one.text}" for one in run.decisions) or "none"
    return (
        f"<h2>Auto under load ({escape(run.where)})</h2>"
        f"<p>The load turns from long prompts to long answers; the split follows the targets "
        f"(TTFT {run.target.ttft:.0f} ms, TPOT {run.target.tpot:.0f} ms). Points are requests; dotted lines decisions."
        "</p>"
        f"<figure>{plots.auto(run)}</figure><h3>Decisions</h3><pre>{escape(decided)}</pre>"
    )


def transcript(outcome: Outcome) -> str:
    blocks = (f"<h3>{escape(command)}</h3><pre>{escape(output)}</pre>" for command, output in outcome.transcript)
    return "<h2>What was said</h2>" + "".join(blocks) if outcome.transcript else ""


def machine(outcome: Outcome) -> str:
    rows = ((escape(name), escape(value)) for name, value in outcome.facts.items())
    return "<h2>This machine</h2>" + table(("", ""), rows) if outcome.facts else ""


def act_timings(outcome: Outcome) -> str:
    rows = ((escape(timing.act), f"{timing.seconds:.0f}") for timing in outcome.timings)
    return "<h2>Time taken</h2>" + table(("act", "seconds"), rows, numbers=(1,))


def machine_facts() -> dict[str, str]:
    """Names and values, in the order to be shown."""
    system = platform.freedesktop_os_release().get("PRETTY_NAME", platform.system())
    return {
        "processor": _processor(),
        "CPUs granted": str(len(os.sched_getaffinity(0))),
        "memory": f"{psutil.virtual_memory().total / 2**30:.0f} GiB",
        "system": f"{system}, Linux {platform.release()}",
        "programs": ", ".join(f"{name} {version(name)}" for name in ("semipd", "torch", "transformers")),
        "Python": platform.python_version(),
        "load average at the end": " ".join(f"{load:.1f}" for load in os.getloadavg()),
    }


def now() -> str:
    return datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z")


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()
