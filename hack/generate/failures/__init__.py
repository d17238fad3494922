"""docs/gpu/failures.md: what can fail while a pod serves on a GPU, who notices, who handles it, and what is left of it.

The table is data: a unit test imports each detector and handler, has pytest collect each test, and demands a row for
each process, each policy of the preflight and each reason by which a partition fails.
"""

from __future__ import annotations

from hack.generate.failures import green, mps, pod, workers
from hack.generate.failures.failure import Failure

TITLES = {
    "MPS": "MPS",
    "worker": "A worker",
    "rung": "The proof of a rung",
    "green": "Rungs as streams (mps-green)",
    "process": "The pod's other processes",
    "end": "Ends that are asked for",
    "GPU": "The device",
    "start": "Refused before anything starts",
}
"""Of the areas, in the order of the page."""
FAILURES: tuple[Failure, ...] = (*mps.ROWS, *workers.ROWS, *green.ROWS, *pod.ROWS)


def failures() -> str:
    lines = [
        "# What can fail on a GPU, and what is left of it then",
        "",
        "<!-- made by `make crd` from hack/generate/failures -->",
        "",
        "**Not executed on a GPU yet**: the tests provoke each failure with stand-ins for the driver's programs, and",
        "with real processes. *Detector* is the code that notices, *handler* the code that acts, *outcome* what users",
        "see and what is lost. No worker gets a signal from us before MPS was asked to end it and had its time; the",
        "kernel's own SIGKILL, by which processes follow a dead parent, cannot wait. A probe or self-test that hangs",
        "is killed, and its server looked at, or replaced.",
    ]
    for area, title in TITLES.items():
        lines += [
            "",
            f"## {title}",
            "",
            "| what fails | detector | handler | outcome | tests |",
            "|" + "---|" * 5,
        ]
        for one in FAILURES:
            if one.area == area:
                names = [f"`{symbol.partition(':')[2]}`" for symbol in (one.detector, one.handler)]
                tests = ", ".join(f"`{test.partition('::')[2]}`" for test in one.tests)
                lines.append(f"| {one.what} | {names[0]} | {names[1]} | {one.outcome} | {tests} |")
    return "\n".join(lines) + "\n"
