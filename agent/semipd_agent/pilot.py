"""What decides where the split goes: the policy in force, all that it may look at, and how full the pod is. Pure.

Observations in, verdicts out. It knows no epoch, no generation of a configuration and no device: `SplitController` says
what may be chosen, and puts moves in force. Nothing that fails in here ends a stream.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from semipd_agent.contract import SLO, Admission, Bounds, Policy
from semipd_agent.decisions import LEAST_REQUESTS, DecisionLog
from semipd_agent.slo.admission import Gatekeeper
from semipd_agent.slo.advance import advance
from semipd_agent.slo.algorithm1 import Algorithm1
from semipd_agent.slo.attainment import Attainment, attainment
from semipd_agent.slo.candidates import candidates, mixed_choices
from semipd_agent.slo.future import Setting
from semipd_agent.slo.grid import Grid
from semipd_agent.slo.load import Load
from semipd_agent.slo.policy import SplitPolicy, Verdict, ask
from semipd_agent.slo.predictive import ModelPredictive
from semipd_agent.slo.preparation import Preparation
from semipd_agent.slo.profiles import Profiles, ProfileUsed
from semipd_agent.slo.recording import Recorder
from semipd_agent.slo.step_model import ShareLaw
from semipd_agent.slo.utilization import Utilization
from semipd_agent.slo.window import Evidence, RequestWindow
from semipd_agent.tasks import Faults
from semipd_engine.contract import Gate, ModelInfo, Observation, ProfileKey, Split

POLICY_SECONDS = 120.0
"""Finished requests that a policy may look back on."""


@dataclass(frozen=True)
class Leeway:
    """What may be chosen now."""

    slo: SLO
    split: Split
    """As requested."""
    bounds: Bounds
    grid: Grid
    mixes: bool
    """No isolation is a choice, too."""
    settled: bool
    """The split is in force: before that nothing is decided."""
    admission: Admission = Admission.OFF
    preparation: Preparation | None = None
    """What a move takes before it is in force; None: nothing."""

    def in_reach(self, o: Observation) -> Sequence[Split]:
        """Splits that a policy may choose, and the present one."""
        setting = Setting(self.slo, self.split, self.bounds, self.grid, mixes=self.mixes, preparation=self.preparation)
        return list(dict.fromkeys((self.split, *candidates(setting), *mixed_choices(o, setting))))


class Pilot:
    def __init__(self, faults: Faults, log: DecisionLog, slo: SLO | None, profiles: Profiles = Profiles()) -> None:
        self.recorder = Recorder()
        self.window = RequestWindow(_kept(slo))
        self.verdict = Verdict()
        self.policy: SplitPolicy | None = None
        """None: nothing moves the split."""
        self._faults, self.log = faults, log
        self._load, self._before = Load(), Load()
        self._profiles, self._law = profiles, ShareLaw.PACED
        self._model: ModelInfo | None = None
        self.profile = ProfileUsed()
        """What step times are believed from before any is seen, and whether somebody measured it."""
        self._utilization = Utilization()
        self._gatekeeper = Gatekeeper()

    # ---- what holds -------------------------------------------------------------------------------------------------

    def runs_on(self, law: ShareLaw) -> None:
        """Another device, or one that deals out shares by another law: what was learned of steps holds no more."""
        self._law = law
        self._begin_anew()

    def serves(self, model: ModelInfo | None) -> None:
        """The model that the engine has loaded; another than before has other step times. None: no word."""
        if model is None:
            return
        # A resident that was restarted has another KV pool, perhaps, and the same step times.
        other = self._model is None or bool(ProfileKey.of(self._model, 0).objection(ProfileKey.of(model, 0)))
        self._model = model
        if other:
            self._begin_anew()

    def _begin_anew(self) -> None:
        self.profile = self._profiles.of(self._model, self._law)
        self._load = Load.of(self.profile.steps)

    def promises(self, slo: SLO | None) -> None:
        if _kept(slo) != self.window.seconds:
            self.window.seconds = _kept(slo)

    def follow(
        self, policy: Policy | None, slo: SLO | None, grid: Grid, home: Split, *, since: float, mixes: bool
    ) -> None:
        """A new policy of this name, which has decided nothing yet. `since`: of the split in force."""
        self.policy, self.verdict = None, Verdict()
        if policy is None or slo is None:
            return
        if policy == Policy.ALGORITHM1:
            self.policy = Algorithm1(slo, home, grid=grid, since=since)
        else:
            opened = bool(self._load.lengths)  # other targets, or Auto once more: the pod is no young one for that
            self.policy = ModelPredictive(slo, grid, home=home, since=since, mixes=mixes, opened=opened)

    @property
    def policy_in_force(self) -> Policy | None:
        if self.policy is None:
            return None
        return Policy.ALGORITHM1 if isinstance(self.policy, Algorithm1) else Policy.MODEL_PREDICTIVE

    # ---- what it makes of it ----------------------------------------------------------------------------------------

    def take(self, o: Observation, bounds: Bounds) -> None:
        """What the engine saw. Comes before `decided`, whether or not anything is."""
        self._before = self._load
        with self._faults.contained("recorder"):
            self.recorder.begin(self.policy, self._before, bounds)
        with self._faults.contained("observation"):
            self.window.add(o)
            self._load = advance(self._load, o)

    def decided(self, o: Observation, leeway: Leeway, now: float) -> Verdict | None:
        """What the policy says to `o`, of which `take` was told. None: it was not asked."""
        slo = leeway.slo
        with self._faults.contained("utilization"):
            splits = leeway.in_reach(o) if self.policy is not None else [leeway.split]
            self._utilization = self._utilization.advanced(o, self._load, slo, splits)
        with self._faults.contained("realised attainment"):
            self._hold_against(o, slo, now)
        verdict, late = None, self.gate.ttft_seconds or math.inf
        if self.policy is not None and leeway.settled:
            finished = self.window.requests(now, POLICY_SECONDS)
            evidence = Evidence.of(o, finished, self._load, late, leeway.preparation)
            verdict, failed = ask(self.policy, evidence, leeway.split, leeway.bounds, leeway.grid, now)
            self.verdict = verdict
            if failed is not None:
                self._faults.note("policy", failed)
        self._keep_gate(o, leeway)
        with self._faults.contained("recorder"):
            self.recorder.tick(self._before, self._load, o, leeway.split, now, verdict, late, leeway.preparation)
        return verdict

    def _hold_against(self, o: Observation, slo: SLO, now: float) -> None:
        """What came of the last decision, beside what it predicted."""
        since = self.log.due(now)
        if since is None:
            return
        came = tuple(r for r in self.window.requests(now, POLICY_SECONDS) if r.received_at >= since)
        queue = tuple(one for one in o.queue if one.received_at >= since)
        running = tuple(one for one in o.running if one.received_at >= since)
        found = attainment(came, o.model_copy(update={"queue": queue, "running": running}), slo)
        if found.joint is not None and found.requests >= LEAST_REQUESTS:
            self.log.realise(100 * found.joint, found.requests, now - since)

    def _keep_gate(self, o: Observation, leeway: Leeway) -> None:
        """A keeper that fails leaves the gate open."""
        before, self._gatekeeper = self._gatekeeper, Gatekeeper()
        with self._faults.contained("admission"):
            full = self.verdict.feasible is False if self.policy is not None else (self.utilization_ratio or 0.0) > 1
            self._gatekeeper = before.advanced(o, self._load, leeway.slo, leeway.split, leeway.admission, full=full)

    @property
    def gate(self) -> Gate:
        """Whom the engine is to refuse for the targets."""
        return self._gatekeeper.gate

    def rest(self) -> None:
        """Without targets nothing can be full, and nobody too late."""
        self._utilization = Utilization()
        self._gatekeeper = Gatekeeper()

    @property
    def utilization_ratio(self) -> float | None:
        """How full the pod is; None: unknown (no SLO, or not watched for long enough). Held while the engine is silent
        for a moment."""
        return self._utilization.ratio

    @property
    def utilization_rate(self) -> float:
        """Requests a second that `utilization_ratio` speaks of."""
        return self._utilization.rate

    @property
    def arrivals(self) -> int:
        """Requests that were asked for, refused ones included: it only grows, until step times are learned anew."""
        return self._load.total

    def attained(self, slo: SLO, o: Observation | None, now: float) -> Attainment:
        """Of the SLO's window, and of what is there now."""
        return attainment(self.window.requests(now, slo.window_seconds), o, slo)


def _kept(slo: SLO | None) -> float:
    return max(POLICY_SECONDS, float(slo.window_seconds) if slo else 0.0)
