"""ModelPredictive: the split under which the most requests would meet both targets. Pure: `decide` has no memory.

Every few seconds each split in reach is played against the same future: what is there now, then the arrivals of the
present regime once more (`load`, `replay`). A request counts by how surely it meets both targets, which is between 0
and 1 because a model errs; so there is a slope where plain attainment is flat.

Stability comes from comparing incumbent and challenger *on the same requests*: their difference, request by request,
has a standard error that the noise of the traffic does not enter, and the challenger must lead by more than a minimum
and by `z` of these errors, at two evaluations in a row. Each move within one regime raises z, so a constant load
comes to rest whatever its noise; a change of the load, beyond chance, starts a new regime with a free hand, and so does
what was learned for the first time of the device (what a share does): a move that this corrects was no noise.

What a split gave is held against what the model says afterwards of the same requests (`hindsight`): where it stays
behind, that is kept as a bias against it, and the split goes back (regret). And a load that no longer needs a split
gives it back: where the configured one keeps the targets as well, that is the one in force.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

from semipd_agent.contract import SLO, Bounds, DecisionReason
from semipd_agent.contract import Prediction as Promise
from semipd_agent.slo.candidates import candidates, mixed_choices, within_knowledge
from semipd_agent.slo.choice import REASONS, Decision, Hold, said
from semipd_agent.slo.feasibility import Judge, unloaded
from semipd_agent.slo.future import Constants, Future, Prediction, Setting, seconds_of
from semipd_agent.slo.grid import Grid
from semipd_agent.slo.hindsight import LEAST_SECONDS, MOST_SECONDS, Watch
from semipd_agent.slo.load import Load
from semipd_agent.slo.opening import Opening, opening
from semipd_agent.slo.policy import Metric, Move, Verdict, clamp, prefill_share
from semipd_agent.slo.price import Price
from semipd_agent.slo.window import Evidence
from semipd_engine.contract import Observation, Split


@dataclass(frozen=True)
class State:
    """All that is remembered between two decisions."""

    evaluated_at: float = -math.inf
    regime: float = -math.inf
    """`Load.regime_since` of the last evaluation."""
    moves: int = 0
    """Within this regime."""
    moved_at: float = -math.inf
    intent: str = ""
    """What the last evaluations were about to do, and in which direction; empty: nothing."""
    confirmed: int = 0
    """How many of them in a row."""
    bias: dict[str, tuple[float, float]] = field(default_factory=dict)
    """Split -> (what it stays behind the model, when that was last seen)."""
    watch: Watch | None = None
    promised: Split | None = None
    """Where the last move went."""
    common: tuple[float, float] | None = None
    """What the split before it stayed behind the model under this load, and the standard error of that: no fault of
    the one that followed."""
    behind: tuple[float, float] | None = None
    """The same of the split in force, when that was last judged under this load."""
    blamed: float | None = None
    """What it stayed behind beyond `common`, by the last stretch alone: that may be a busy half minute."""
    laws_known: int = 0
    """`StepModel.laws_known` at the last evaluation."""
    opened: bool = False
    """There was a first move, or no need of one."""


def decide(o: Observation, load: Load, state: State, s: Setting) -> tuple[Decision | Opening | Hold, State]:
    c, now = s.constants, o.at
    if load.regime_since > state.regime:
        state = replace(
            state,
            regime=load.regime_since,
            moves=0,
            intent="",
            confirmed=0,
            common=None,
            behind=None,
            blamed=None,
            watch=None,
        )
    if load.model.laws_known > state.laws_known:  # the moves so far were made without knowing what a share does
        state = replace(state, laws_known=load.model.laws_known, moves=0)
    window = load.window(now)
    if not window or (not o.queue and not o.running and window[-1].at < now - 30):
        return Hold("Idle"), state
    if not state.opened and load.seen:
        state = replace(state, opened=True)
        if s.split == s.home and (first := opening(load, s)) is not None:
            return first, replace(state, moved_at=now)
    if len(window) < c.least_requests or not load.lengths:
        return Hold("InsufficientTraffic"), state
    hurried = now - max(state.regime, load.since) < 60 or len(o.queue) > 4
    wait = c.second_look if state.intent and hurried else c.hurried if hurried else c.period
    if now - state.evaluated_at < wait - 1e-6:
        return Hold("Evaluated"), state
    state = replace(state, evaluated_at=now)
    future = Future.of(o, load, s)
    price = Price.of(future)
    here = s.split
    home = clamp(s.home, s.bounds, s.grid) if s.home is not None else here
    home = home if s.may(home) else clamp(here, s.bounds, s.grid)
    state = _held_against_reality(state, here, o, load, s)
    splits = dict.fromkeys((here, home, *within_knowledge(candidates(s), load, c), *mixed_choices(o, s)))
    glances = {split: future.play(split, c.glance).mean for split in splits}
    best_few = sorted(glances, key=lambda split: -price.worth(split, glances[split], glances[here]))[: c.finalists]
    loads = future.loads
    tried = {split: future.play(split, c.longest, loads) for split in dict.fromkeys((here, home, *best_few))}

    def lasting(split: Split) -> float:
        return tried[split].mean + _bias(state, split, now, c)

    def value(split: Split) -> float:
        return price.worth(split, lasting(split), lasting(here))

    best = max(tried, key=lambda split: (value(split), split == here, split.prefill + split.decode))
    here_told, best_told = tried[here].told(here, s), tried[best].told(best, s)
    left = price.left(best)
    gain, error = value(best) - value(here), left * future.error(tried[best], tried[here])
    emergency = gain >= max(c.emergency_gain, (c.emergency_z + c.z_per_move * state.moves) * error)
    # A queue that is there is no matter of chance: what it gains is sure, once in a regime.
    queued = future.waiting >= c.long_queue and not state.moves
    emergency |= queued and gain > 0 and future.of_those_here(tried[best], tried[here], s.delay(best)) >= c.min_gain
    needed = c.min_gain + (c.z + c.z_per_move * state.moves) * error
    young = now - max(load.since, load.regime_since) < c.least_span
    to, reason = best, "Emergency" if emergency else "Gain"
    if best == here or (gain < needed and not emergency):
        apart = home != clamp(s.split, s.bounds, s.grid)  # the configured split may lie between two rungs
        settled = now - max(state.regime, load.since) >= c.home_after
        # It comes back for good, in a time without haste: what its preparation costs is once.
        unneeded = apart and settled and not state.moves and not o.queue and lasting(home) >= lasting(here) - c.as_good
        if not unneeded or tried[home].mean < c.content:
            why = "Best" if best == here else "TooLittleGain"
            return Hold(why, best_told, here_told), replace(state, intent="", confirmed=0)
        to, reason, emergency = home, "Headroom", False
    elif gain + left * _bias(state, here, now, c) < needed <= gain:
        reason = "Regret"
    intent = _intent(reason, here, to)
    state = replace(state, intent=intent, confirmed=state.confirmed + 1 if intent == state.intent else 1)
    if state.confirmed < c.confirmations or (young and not emergency):
        return Hold("Confirming", best_told, here_told), state
    dwell = c.cold_dwell if s.delay(to) and not emergency else c.dwell
    if now - state.moved_at < dwell:
        return Hold("Dwell", best_told, here_told), state
    worse_ttft = here_told.ttft / seconds_of(s.slo.ttft_milliseconds) >= here_told.tpot / seconds_of(
        s.slo.tpot_milliseconds
    )
    decision = Decision(
        to=to,
        reason=reason,
        metric="ttft" if worse_ttft else "tpot",
        before=here_told,
        after=tried[to].told(to, s),
        behind=-_bias(state, here, now, c),
    )
    return decision, replace(
        state,
        moves=state.moves + 1,
        moved_at=now,
        intent="",
        confirmed=0,
        promised=to,
        common=_behind(state, o, load, s),
        behind=None,
        blamed=None,
        watch=None,
    )


def _held_against_reality(state: State, here: Split, o: Observation, load: Load, s: Setting) -> State:
    """Once enough requests of a stretch are over: what the split in force stays behind the model. An error that the
    split before it showed already is none of this one."""
    watch, c = state.watch, s.constants
    if watch is None or watch.split != here:
        return replace(state, blamed=None, watch=Watch.began(here, o, load))
    if o.at - watch.since < LEAST_SECONDS:
        return state
    if (judged := watch.judged(o, load, s)) is None:
        return state if o.at - watch.since < MOST_SECONDS else replace(state, watch=Watch.began(here, o, load))
    behind, error = judged
    bias = dict(state.bias)
    blamed: float | None = None
    if here == state.promised and state.common is not None:
        common, of_common = state.common
        more = behind - min(common, 0.0)  # who gives what the model says is not to blame for another's good luck
        if more < -max(c.regret, c.regret_z * math.hypot(error, of_common)):
            blamed = more
    if blamed is None:
        bias.pop(str(here), None)
    elif state.blamed is not None:  # twice in a row
        bias[str(here)] = (max(blamed, state.blamed, -c.most_bias), o.at)
    return replace(state, behind=judged, blamed=blamed, bias=bias, watch=Watch.began(here, o, load))


def _behind(state: State, o: Observation, load: Load, s: Setting) -> tuple[float, float] | None:
    """What the split in force stays behind the model as of now, and its error; None: nobody can tell yet."""
    judged = state.watch.judged(o, load, s) if state.watch is not None else None
    return state.behind if judged is None else judged


def _bias(state: State, split: Split, now: float, c: Constants) -> float:
    value, at = state.bias.get(str(split), (0.0, now))
    return value * math.pow(0.5, (now - at) / c.forget_bias)


def _intent(reason: str, here: Split, to: Split) -> str:
    """What a second look must find again: the same sort of move towards the same phase, if not the same split."""
    towards = "prefill" if prefill_share(to) > prefill_share(here) else "decode"
    if bool(to.mixed_tokens) != bool(here.mixed_tokens):
        towards = "mixed steps" if to.mixed_tokens else "isolation"
    return f"{'give back' if reason == 'Headroom' else 'gain'} {towards}"


class ModelPredictive:
    """`decide` with its state, as the control loop's policy."""

    def __init__(
        self,
        slo: SLO,
        grid: Grid = Grid(),
        constants: Constants = Constants(),
        *,
        home: Split | None = None,
        since: float = -math.inf,
        mixes: bool = False,
        opened: bool = False,
    ) -> None:
        """`home`: the configured split, to which it goes back where that is as good. `since`: of the split in force.
        `mixes`: no isolation is a choice, too. `opened`: there is evidence already, so no first move without."""
        self.slo, self.grid, self._constants, self.home, self.mixes = slo, grid, constants, home, mixes
        self.state = State(moved_at=since, opened=opened)
        self.judge = Judge()

    def observe(self, evidence: Evidence, split: Split, bounds: Bounds, now: float) -> Verdict:
        o, load = evidence.observation, evidence.load
        if o is None or load is None:
            return Verdict(feasible_reason="NoObservation", message="the engine does not tell what it observes")
        setting = Setting(
            self.slo,
            split,
            bounds,
            self.grid,
            self.home,
            self.mixes,
            evidence.preparation,
            evidence.late,
            self._constants,
        )
        choice, self.state = decide(o, load, self.state, setting)
        if isinstance(choice, Opening):
            first = Move(choice.to, DecisionReason.BETTER_SPLIT_PREDICTED, "ttft", message=choice.said)
            return Verdict(first, self.judge.feasible, self.judge.said)
        best = choice.after if isinstance(choice, Decision) else choice.best
        if best is not None or choice.reason in ("Idle", "InsufficientTraffic"):
            trouble, pressure = self._trouble(best, o, load)
            self.judge = self.judge.told(trouble, known=best is not None, now=now, pressure=pressure)
        move = None if isinstance(choice, Hold) else self._move(choice)
        return Verdict(move, self.judge.feasible, self.judge.said)

    def _trouble(self, best: Prediction | None, o: Observation, load: Load) -> tuple[str, float]:
        """What speaks against feasibility, or nothing; and the larger latency over its target, at the best split."""
        if best is None:
            return "", 0.0
        ttft = best.ttft / seconds_of(self.slo.ttft_milliseconds)
        tpot = best.tpot / seconds_of(self.slo.tpot_milliseconds)
        pressure = max(ttft, tpot)
        if pressure <= 1:
            return "", pressure
        if unloaded(load, o, self.slo):
            return "TargetBelowServiceTime", pressure
        full = o.max_num_seqs and len(o.running) >= o.max_num_seqs and o.queue
        if ttft > 1 and (full or (o.kv_tokens and o.kv_used_tokens > 0.9 * o.kv_tokens and o.queue)):
            return "KVBound", pressure
        return "TTFTBound" if ttft >= tpot else "TPOTBound", pressure

    def _move(self, d: Decision) -> Move:
        metric: Metric = "ttft" if d.metric == "ttft" else "tpot"
        target = self.slo.ttft_milliseconds if metric == "ttft" else self.slo.tpot_milliseconds
        return Move(
            d.to,
            REASONS.get(d.reason, DecisionReason.BETTER_SPLIT_PREDICTED),
            metric,
            d.before.ttft if metric == "ttft" else d.before.tpot,
            target / 1000 if target else None,
            said(d),
            Promise(
                attainment_percent=round(100 * d.after.attainment, 1),
                ttft_milliseconds=round(1000 * d.after.ttft, 1),
                tpot_milliseconds=round(1000 * d.after.tpot, 2),
            ),
        )
