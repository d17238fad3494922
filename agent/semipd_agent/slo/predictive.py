"""ModelPredictive: the split under which the most requests would meet both targets. Pure: `decide` has no memory.

Every few seconds each split in reach is played against the same future: what is there now, then the arrivals of the
present regime once more (`load`, `replay`). A request counts by how surely it meets both targets, which is between 0
and 1 because a model errs; so there is a slope where plain attainment is flat.

Stability comes from comparing incumbent and challenger *on the same requests*: their difference, request by request,
has a standard error that the noise of the traffic does not enter, and the challenger must lead by more than a minimum
and by `z` of these errors, at two evaluations in a row. Each move within one regime raises z, so a constant load
comes to rest whatever its noise; a change of the load, beyond chance, starts a new regime with a free hand.

What a move made of its promise is kept as a bias of that split: where reality stays behind the prediction the next
comparison knows it, and the split goes back (regret).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

from semipd_agent.contract import SLO, Bounds, DecisionReason
from semipd_agent.contract import Prediction as Promise
from semipd_agent.slo.feasibility import Judge, unloaded
from semipd_agent.slo.future import Constants, Future, Pair, Prediction, Setting, candidates, score, seconds_of
from semipd_agent.slo.grid import Grid
from semipd_agent.slo.load import Load
from semipd_agent.slo.policy import Metric, Move, Verdict
from semipd_agent.slo.replay import Outcome
from semipd_agent.slo.window import Evidence
from semipd_engine.contract import Observation, Split


@dataclass(frozen=True)
class Decision:
    to: Split
    reason: str
    metric: str
    before: Prediction
    after: Prediction
    gain: float
    error: float


@dataclass(frozen=True)
class Hold:
    reason: str
    best: Prediction | None = None
    here: Prediction | None = None


@dataclass(frozen=True)
class State:
    """All that is remembered between two decisions."""

    evaluated_at: float = -math.inf
    regime: float = -math.inf
    """`Load.regime_since` of the last evaluation."""
    moves: int = 0
    """Within this regime."""
    moved_at: float = -math.inf
    challenger: Pair | None = None
    confirmed: int = 0
    bias: dict[Pair, tuple[float, float]] = field(default_factory=dict)
    """Split -> (realised less predicted score, when that was last seen)."""
    promised: tuple[float, float, float] | None = None
    """Of the last move: since when, the predicted score, and by how much reality lay above predictions before it."""


def decide(o: Observation, load: Load, state: State, s: Setting) -> tuple[Decision | Hold, State]:
    c, now = s.constants, o.at
    if load.regime_since > state.regime:
        state = replace(state, regime=load.regime_since, moves=0, challenger=None, confirmed=0)
    window = load.window(now)
    if not window or (not o.queue and not o.running and window[-1].at < now - 30):
        return Hold("Idle"), state
    if len(window) < c.least_requests or not load.lengths:
        return Hold("InsufficientTraffic"), state
    hurried = now - state.regime < 60 or len(o.queue) > 4
    if now - state.evaluated_at < (c.hurried if hurried else c.period) - 1e-6:
        return Hold("Evaluated"), state
    state = replace(state, evaluated_at=now)
    future = Future.of(o, load, s)
    here = (s.split.prefill, s.split.decode)
    splits = {(split.prefill, split.decode): split for split in (s.split, *candidates(s))}
    glances = {pair: future.play(split, c.glance).mean for pair, split in splits.items()}
    best_few = sorted(glances, key=lambda pair: -glances[pair])[: c.finalists]
    tried = {pair: future.play(splits[pair], c.longest) for pair in {here: 0} | dict.fromkeys(best_few)}
    mine = tried[here]
    state = _held_against_reality(state, load, here, s)

    def value(pair: Pair) -> float:
        cost = c.cold_cost if s.warm is not None and pair not in s.warm else 0.0
        return tried[pair].mean + _bias(state, pair, now, c) - (cost if pair != here else 0.0)

    best = max(tried, key=lambda pair: (value(pair), pair == here, pair[0] + pair[1]))
    here_told, best_told = mine.told(here, s), tried[best].told(best, s)
    if best == here:
        return Hold("Best", best_told, here_told), replace(state, challenger=None, confirmed=0)
    gain = value(best) - value(here)
    error = tried[best].error(mine, future.blocks)
    emergency = gain >= c.emergency_gain and gain >= 2 * error
    needed = c.min_gain + (c.z + c.z_per_move * state.moves) * error
    if gain < needed:
        return Hold("TooLittleGain", best_told, here_told), replace(state, challenger=None, confirmed=0)
    confirmed = state.confirmed + 1 if state.challenger is not None else 1
    state = replace(state, challenger=best, confirmed=confirmed)
    young = now - max(load.since, load.regime_since) < c.least_span
    if (confirmed < c.confirmations or young) and not emergency:
        return Hold("Confirming", best_told, here_told), state
    dwell = c.cold_dwell if s.warm is not None and best not in s.warm else c.dwell
    if now - state.moved_at < dwell:
        return Hold("Dwell", best_told, here_told), state
    worse_ttft = here_told.ttft / seconds_of(s.slo.ttft_milliseconds) >= here_told.tpot / seconds_of(
        s.slo.tpot_milliseconds
    )
    regretted = here in state.bias and gain + state.bias[here][0] < needed
    decision = Decision(
        to=Split(prefill=best[0], decode=best[1]),
        reason="Regret" if regretted else "Emergency" if emergency else "Gain",
        metric="ttft" if worse_ttft else "tpot",
        before=here_told,
        after=best_told,
        gain=gain,
        error=error,
    )
    return decision, replace(
        state,
        moves=state.moves + 1,
        moved_at=now,
        challenger=None,
        confirmed=0,
        promised=(now, tried[best].mean, _realised(load, state.moved_at, now, s)[0] - mine.mean),
    )


def _realised(load: Load, since: float, now: float, s: Setting) -> tuple[float, int]:
    """Mean score, and number, of the requests of the last minute received after `since` that are over."""
    c = s.constants
    done = [
        Outcome(one.ttft, one.tpot or 0.0)
        for one in load.seen.values()
        if one.ttft is not None and one.at >= max(since, now - 60)
    ]
    if not done:
        return 0.0, 0
    slo = s.slo
    return score(done, seconds_of(slo.ttft_milliseconds), seconds_of(slo.tpot_milliseconds), c.softness).mean, len(done)


def _held_against_reality(state: State, load: Load, here: Pair, s: Setting) -> State:
    """Once enough requests of the split in force are over: what it gave below what was promised. An error that the
    predictions had before the move already is none of this split."""
    if state.promised is None:
        return state
    since, predicted, before = state.promised
    real, n = _realised(load, since, load.at, s)
    if n < s.constants.least_realised or load.at - since < 10:
        return state
    short = real - predicted - min(before, 0.0)
    bias = dict(state.bias)
    if short < -s.constants.regret:
        bias[here] = (max(short, -s.constants.most_bias), load.at)
    else:
        bias.pop(here, None)
    return replace(state, promised=None, bias=bias)


def _bias(state: State, pair: Pair, now: float, c: Constants) -> float:
    value, at = state.bias.get(pair, (0.0, now))
    return value * math.pow(0.5, (now - at) / c.forget_bias)


class ModelPredictive:
    """`decide` with its state, as the control loop's policy."""

    def __init__(
        self,
        slo: SLO,
        grid: Grid = Grid(),  # noqa: B008  it is frozen
        constants: Constants = Constants(),  # noqa: B008
        *,
        since: float = -math.inf,
    ) -> None:
        self._slo, self._grid, self._constants = slo, grid, constants
        self.state = State(moved_at=since)
        self._judge = Judge()

    def observe(self, evidence: Evidence, split: Split, bounds: Bounds, now: float) -> Verdict:
        o, load = evidence.observation, evidence.load
        if o is None or load is None:
            return Verdict(feasible_reason="NoObservation", message="the engine does not tell what it observes")
        setting = Setting(self._slo, split, bounds, self._grid, constants=self._constants)
        choice, self.state = decide(o, load, self.state, setting)
        best = choice.after if isinstance(choice, Decision) else choice.best
        if best is not None or choice.reason in ("Idle", "InsufficientTraffic"):
            self._judge = self._judge.told(self._trouble(best, o, load), known=best is not None, now=now)
        move = self._move(choice) if isinstance(choice, Decision) else None
        return Verdict(move, self._judge.feasible, self._judge.reason)

    def _trouble(self, best: Prediction | None, o: Observation, load: Load) -> str:
        if best is None:
            return ""
        ttft = best.ttft / seconds_of(self._slo.ttft_milliseconds)
        tpot = best.tpot / seconds_of(self._slo.tpot_milliseconds)
        if max(ttft, tpot) <= 1:
            return ""
        if unloaded(load, o, self._slo):
            return "TargetBelowServiceTime"
        full = o.max_num_seqs and len(o.running) >= o.max_num_seqs and o.queue
        if ttft > 1 and (full or (o.kv_tokens and o.kv_used_tokens > 0.9 * o.kv_tokens and o.queue)):
            return "KVBound"
        return "TTFTBound" if ttft >= tpot else "TPOTBound"

    def _move(self, d: Decision) -> Move:
        metric: Metric = "ttft" if d.metric == "ttft" else "tpot"
        target = self._slo.ttft_milliseconds if metric == "ttft" else self._slo.tpot_milliseconds
        message = (
            f"{100 * d.after.attainment:.1f} % of the requests expected within both targets instead of "
            f"{100 * d.before.attainment:.1f} % (gain {100 * d.gain:.1f} ± {100 * d.error:.1f} points)"
        )
        reason = DecisionReason.REGRET if d.reason == "Regret" else DecisionReason.BETTER_SPLIT_PREDICTED
        return Move(
            d.to,
            reason,
            metric,
            d.before.ttft if metric == "ttft" else d.before.tpot,
            target / 1000 if target else None,
            message,
            Promise(
                attainment_percent=round(100 * d.after.attainment, 1),
                ttft_milliseconds=round(1000 * d.after.ttft, 1),
                tpot_milliseconds=round(1000 * d.after.tpot, 2),
            ),
        )
