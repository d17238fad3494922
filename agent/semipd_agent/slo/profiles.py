"""Where the step profile comes from: a file that somebody measured for what is served, else the documented prior.

A measured profile is what the production step model learns from the sweep's sums: there is one way to read step times.
"""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from semipd_agent.slo.profile_fit import merged, with_bends, with_speeds
from semipd_agent.slo.step_model import ASSUMED, ShareLaw, StepModel, StepProfile
from semipd_engine.contract import Device, ModelInfo, Phase, ProfileError, ProfileKey, StepProfileFile, read_profile
from semipd_engine.cpu_grant import Grant

log = logging.getLogger(__name__)

REMEDY = "semipd-engine profile MODEL --out FILE on this machine measures one"
ROUNDS = 3
"""Contention, costs and the share's law are learned from one another; more of the same sums change nothing then."""


@dataclass(frozen=True)
class ProfileUsed:
    steps: StepProfile = ASSUMED
    source: str = ""
    """File; empty: the prior."""
    message: str = ""
    """Why it is assumed, or why a measured one may be wrong here."""


def folders() -> tuple[Path, ...]:
    """Of profiles that nobody named: the image's, and this user's cache."""
    image = Path("/usr/share/semipd/profiles")
    try:
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    except RuntimeError:  # a user without a name and without HOME, as a pod may run
        return (image,)
    return image, cache / "semipd" / "profiles"


@dataclass(frozen=True)
class Profiles:
    """Those that were read, in the order in which they are asked."""

    files: tuple[tuple[Path, StepProfileFile], ...] = ()
    grant: Grant = field(default_factory=Grant)
    """The engine's."""
    complaints: tuple[str, ...] = field(default=())
    """Of files in a folder that could not be read."""
    machine: str = ""
    """The processor's name; empty: unknown."""

    @classmethod
    def read(cls, named: Path | None, found_in: Sequence[Path], grant: Grant, machine: str = "") -> Profiles:
        """`named`: asked for by the user, and the only one then. Raises `ProfileError` for it, and for it alone: a
        file that happens to lie in a folder stops no agent."""
        if named is not None:
            return cls(((named, read_profile(named)),), grant, machine=machine)
        files, complaints = list[tuple[Path, StepProfileFile]](), list[str]()
        for path in (path for folder in found_in for path in sorted(folder.glob("*.json"))):
            try:
                files.append((path, read_profile(path)))
            except ProfileError as error:
                log.warning("%s", error)
                complaints.append(str(error))
        return cls(tuple(files), grant, tuple(complaints), machine)

    def of(self, model: ModelInfo | None, law: ShareLaw) -> ProfileUsed:
        """One that was measured for this model, device, dtype and kernels, on this machine before others; else the
        prior."""
        prior = replace(ASSUMED, law=law)
        if model is None:
            return ProfileUsed(prior, message="assumed: no model is loaded yet")
        served, why = ProfileKey.of(model, len(self.grant.cpus), self.grant.throttled), ""
        here = self.machine if model.device == Device.CPU else ""
        for path, file in sorted(self.files, key=lambda one: bool(here) and one[1].machine != here):
            objection = file.key.objection(served)
            if not objection:
                apart = here and file.machine and file.machine != here
                warning = f"measured on {file.machine}, and this is {here}; {REMEDY}" if apart else ""
                return ProfileUsed(learned(file, law), str(path), warning)
            why = why or f"{path} is of something else ({objection})"
        why = why or next(iter(self.complaints), "there is no profile of this model and device")
        return ProfileUsed(prior, message=f"assumed: {why}; {REMEDY}")


def learned(file: StepProfileFile, law: ShareLaw) -> StepProfile:
    """Costs, contention, where steps bend, and what a share does."""
    sums = merged(file.steps)
    model = StepModel(replace(ASSUMED, law=law))
    for _ in range(ROUNDS):
        model = model.learn({}, sums, 0.0)
    curves = {Phase.PREFILL: model.prefill_shares.curve, Phase.DECODE: model.decode_shares.curve}
    line = StepProfile(
        prefill=model.costs(Phase.PREFILL),
        decode=model.costs(Phase.DECODE),
        law=law,
        prefill_curve=curves[Phase.PREFILL] or ASSUMED.prefill_curve,
        decode_curve=curves[Phase.DECODE] or ASSUMED.decode_curve,
        contention=math.sqrt(model.contention(Phase.PREFILL) * model.contention(Phase.DECODE)),
        measured=True,
        curves_measured=all(curve is not None for curve in curves.values()),
    )
    bent = with_bends(line, file.steps)
    return with_speeds(bent, file.steps, file.key.cpus) if law is ShareLaw.PACED and file.key.cpus else bent
