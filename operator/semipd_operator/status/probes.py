"""Probes that keep a container from being ready, or for which the kubelet ends it again and again. Pure.

Which container waits for which probe the pod's status says; why the probe fails only its events do. A probe of the
engine's own is at fault once the agent says that the engine serves: see `causes`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

from semipd_operator.reasons import PodTrouble
from semipd_operator.render.names import ENGINE_CONTAINER
from semipd_operator.status.observed import PodView, Problem

Object = dict[str, Any]

_FAILED = re.compile(r"(Readiness|Liveness|Startup) probe (?:failed|errored[^:]*): ?(.*)", re.DOTALL)
_ENDED = re.compile(r"Container (\S+) failed (liveness|startup) probe")
_CONTAINER = re.compile(r"\{(.+)\}$")
"""In an event's ``fieldPath``: ``spec.containers{engine}``."""


@dataclass
class FailedProbes:
    """What the kubelet says of the probes of one container."""

    words: dict[str, str] = field(default_factory=dict)
    """Why it failed last, by kind: readiness, liveness or startup."""
    ended: tuple[str, datetime] | None = None
    """For which kind the kubelet ended the container last, and when, by the node's clock."""


def failed_probes(events: list[Object]) -> dict[str, FailedProbes]:
    """By container, from the events of one pod."""
    found: dict[str, FailedProbes] = {}
    for event in sorted(events, key=last_seen):
        said = str(event.get("message") or "")
        place = _CONTAINER.search((event.get("involvedObject") or {}).get("fieldPath") or "")
        if place and event.get("reason") == "Unhealthy" and (failed := _FAILED.match(said)):
            found.setdefault(place[1], FailedProbes()).words[failed[1].lower()] = failed[2].strip()
        if event.get("reason") == "Killing" and last_seen(event) and (killed := _ENDED.match(said)):
            found.setdefault(killed[1], FailedProbes()).ended = killed[2], datetime.fromisoformat(last_seen(event))
    return found


def last_seen(event: Object) -> str:
    series = event.get("series") or {}
    return str(series.get("lastObservedTime") or event.get("lastTimestamp") or event.get("eventTime") or "")


def asks_for_probes(view: PodView, *, serves: bool) -> bool:
    """Whether the pod's events may say why a container is not ready. While the engine loads its probes fail, as they
    should."""
    held = view.held is not None and view.held.reason == PodTrouble.PROBE_FAILING
    return held or bool(view.restarted) or bool(view.unproved and serves)


def explained(view: PodView, told: Mapping[str, FailedProbes]) -> PodView:
    """The pod with the kubelet's words."""
    if (engine := told.get(ENGINE_CONTAINER)) and view.unproved:
        view = replace(view, probe_words=engine.words.get(view.unproved, ""))
    held = view.held
    if held and held.reason == PodTrouble.PROBE_FAILING and (sidecar := told.get(held.detail)):
        words = next((sidecar.words[kind] for kind in ("startup", "readiness") if kind in sidecar.words), "")
        view = replace(view, held=replace(held, message=f"{held.message}: {words}") if words else held)
    for name, began in view.restarted:
        problem, ended = view.problem, (told.get(name) or FailedProbes()).ended
        crashes = problem is None or (problem.reason, problem.detail) == (PodTrouble.CRASH_LOOP, name)
        # Of an earlier run than the last one it says nothing; both times are the node's.
        if crashes and ended and (began is None or began <= ended[1]):
            said = f"the kubelet ended container {name}, as its {ended[0]} probe fails"
            view = replace(view, problem=_failing(name, ended[0], said, told[name].words.get(ended[0], "")))
    return view


def of_the_engine(view: PodView) -> Problem:
    """Of an engine that serves, and is not ready for all that."""
    said = f"the engine serves, and its {view.unproved} probe fails"
    return _failing(ENGINE_CONTAINER, view.unproved, said, view.probe_words)


def _failing(name: str, kind: str, said: str, words: str) -> Problem:
    remedy = f"Correct {kind}Probe of container {name} in spec.podTemplate, or what it asks, or remove it there"
    if name == ENGINE_CONTAINER:
        remedy += ": as rendered it asks port 9400, which a mesh or NetworkPolicy must leave open to the kubelet"
    return Problem(PodTrouble.PROBE_FAILING, ": ".join(filter(None, (said, words))), name, remedy=f"{remedy}.")
