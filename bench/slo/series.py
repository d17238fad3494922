"""The runs of a folder: what is there of each, and how one is registered again whose line a kill has cut short."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from bench.cpu import schedule
from bench.slo import log, steps
from bench.slo.plan import Plan
from bench.slo.prediction import ChangedError, unsealed
from bench.slo.verdicts import Run

LOG = "runs.jsonl"
PLAN = "prediction.json"


def folder(out: Path, number: int) -> Path:
    return out / f"run-{number}"


def mend(out: Path, say: Callable[[str], None]) -> None:
    """A run whose plan is sealed is registered: a kill has left half of its line, or none. One that was registered and
    has no plan any more is given up: under another plan it would be another run. Raises `ChangedError`."""
    entries = log.read(out / LOG)
    number = log.number(entries)
    mine, path = [entry for entry in entries if entry.number == number], folder(out, number) / PLAN
    whole = any(entry.event == log.BEGUN for entry in mine)
    wrong = "" if whole else f"the line that registers it is {'half written' if mine else 'missing'}: "
    about = f"{out / LOG}: run {number}: {wrong}"
    if path.exists() and not whole:
        content, digest = unsealed(path)
        planned = Plan.of_json(content)
        log.append(out / LOG, log.Entry(number, log.BEGUN, digest, planned.commit, planned.at))
        say(f"{about}registered again by its plan, sha256 {digest}; bench-slo goes on with it, --give-up ends it")
    elif mine and not path.exists():
        log.append(out / LOG, replace(mine[-1], event=log.GIVEN_UP, at=now()))
        say(f"{about}{path} is gone: it stays in the list as given up, and run {number + 1} is next")


def give_up(out: Path) -> None:
    """The run that goes on counts as one that never ended."""
    for entry in log.last(log.read(out / LOG)):
        if entry.event == log.BEGUN:
            log.append(out / LOG, replace(entry, event=log.GIVEN_UP, at=now()))


def read(out: Path) -> tuple[list[log.Entry], list[Run]]:
    """The runs of which there is a plan, in order. Raises `ChangedError`."""
    entries = log.read(out / LOG)
    folders = [folder(out, number) for number in sorted({entry.number for entry in entries})]
    return entries, [load(place) for place in folders if (place / PLAN).exists()]


def load(folder: Path) -> Run:
    """What is there of a registered run. Raises `ChangedError`."""
    content, digest = unsealed(folder / PLAN)
    planned = Plan.of_json(content)
    if hashlib.sha256((folder / "profile.json").read_bytes()).hexdigest() != planned.profile:
        raise ChangedError(f"{folder / 'profile.json'} is not the profile that was predicted from: --give-up the run")
    held = steps.read(folder / "held.json") if (folder / "held.json").exists() else []
    samples = [sample for sample in schedule.read(folder / "samples.jsonl") if sample.key == digest]
    return Run(planned, digest, held, samples)


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
