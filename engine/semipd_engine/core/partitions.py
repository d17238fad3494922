"""Which partition is in force, which one is being prepared, and on which rung each phase's next step runs. Pure.

A rung is a limit that a worker has for life, as its only one or (a green context) beside others. A partition names one
for each phase and, for a phase that is alone, the 100 % rung. A partition whose rungs have workers already is in force
at once; otherwise it is pending: its cold rungs are prepared beside the workers that serve, and it is put in force for
both phases in one go when they have proved themselves. If they do not, nothing has changed: rollback is free.

On the CPU a limit changes during a worker's life, so there is one rung for all partitions. Knows no processes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from semipd_engine.contract import PacingMode, PartitionPlan, Phase, PhaseLimit, Refusal, SetPartition


@dataclass(frozen=True)
class Rung:
    """A limit: the environment of the worker that holds it, and its number among the limits which that worker holds.

    Nothing else makes two limits of a phase differ.
    """

    environment: tuple[tuple[str, str], ...] = ()
    index: int = 0
    percent: int | None = field(default=None, compare=False)
    """None where a worker's limit may change during its life."""
    alone: bool = field(default=True, compare=False)
    """Does its worker hold no other?"""
    sm_count: int | None = field(default=None, compare=False)
    terminate_seconds: float = field(default=0.0, compare=False)

    @classmethod
    def of(cls, limit: PhaseLimit, mode: PacingMode) -> Rung:
        if mode is not PacingMode.RUNGS:
            return cls(tuple(sorted(limit.environment.items())))
        environment = tuple(sorted(limit.environment.items()))
        index, alone = limit.rung or 0, limit.rung is None
        return cls(environment, index, limit.percent, alone, limit.sm_count, limit.terminate_seconds)


@dataclass(frozen=True)
class _Rungs:
    """One partition's rungs for one phase."""

    limited: Rung
    whole: Rung | None

    @property
    def all(self) -> tuple[Rung, ...]:
        return (self.limited,) if self.whole is None or self.whole == self.limited else (self.limited, self.whole)


class Partitions:
    def __init__(
        self, phases: Sequence[Phase], initial: SetPartition, prepare_seconds: float, await_first: bool
    ) -> None:
        """`phases`: those that have workers. `initial` is in force, but with `await_first` no worker is wanted until
        another one is."""
        self.in_force = initial
        self.pending: SetPartition | None = None
        self.refused: Refusal | None = None
        self._phases = tuple(phases)
        self._prepare_seconds = prepare_seconds
        self._deadline = 0.0
        self.awaiting = await_first
        self._newest = initial.split_epoch

    # ---- what is asked for ---------------------------------------------------------------------------------------

    def propose(self, request: SetPartition, now: float) -> None:
        """The agent asks for a partition; `tick` puts it in force. A newer one takes the place of one that is pending.

        Anything but a new epoch is ignored: a refused one is not tried again.
        """
        if request.split_epoch > self._newest:
            self._newest = request.split_epoch
            self.pending = request
            self._deadline = now + self._prepare_seconds

    def restart(self, now: float) -> None:
        """A new resident: every rung is cold, and what is pending has its full time again."""
        self._deadline = now + self._prepare_seconds

    def tick(self, now: float, ready: Callable[[Phase, Rung], bool]) -> SetPartition | None:
        """The partition that is in force from now on, if it has just changed."""
        pending = self.pending
        if pending is None:
            return None
        missing = [] if self.awaiting else [phase for phase in self._phases if not self._prepared(phase, ready)]
        if missing:
            if now >= self._deadline:
                who = " and ".join(f"{p} worker under {_name(self._of(pending, p).limited)}" for p in missing)
                self._refuse("PrepareTimeout", f"no {who} became ready within {self._prepare_seconds:g} s")
            return None
        self.in_force, self.pending, self.refused, self.awaiting = pending, None, None, False
        return pending

    def unfit(self, phase: Phase, rung: Rung, reason: str, message: str) -> None:
        """A worker of this rung cannot serve. A pending partition that needs it is refused, one in force goes on."""
        message = f"{phase} worker under {_name(rung)}: {message}"
        if rung in self._of(self.in_force, phase).all:
            self.refused = Refusal(split_epoch=self.in_force.split_epoch, reason=reason, message=message)
        elif self.pending is not None and rung == self._of(self.pending, phase).limited:
            self._refuse(reason, message)

    def recovered(self) -> None:
        """All workers of the partition in force are ready after all."""
        if self.refused is not None and self.refused.split_epoch == self.in_force.split_epoch:
            self.refused = None

    # ---- what follows from it ------------------------------------------------------------------------------------

    def wanted(self, phase: Phase) -> tuple[Rung, ...]:
        """Rungs for which a worker is started. While a partition is pending these are its own only: a worker that dies
        under the old one meanwhile is not replaced, for the old environment may be the reason (a dead MPS daemon)."""
        if self.pending is not None:
            return self._of(self.pending, phase).all
        return () if self.awaiting else self._of(self.in_force, phase).all

    def kept(self, phase: Phase) -> tuple[Rung, ...]:
        """Rungs whose workers stay."""
        return self._of(self.in_force, phase).all + (self._of(self.pending, phase).all if self.pending else ())

    def route(self, phase: Phase, alone: bool) -> tuple[Rung, ...]:
        """Where the next step runs: the first of these rungs that has a ready worker. A phase that is `alone` has the
        whole device (L0). A phase without its own worker uses what there is rather than nothing."""
        kept = self.kept(phase)
        whole = self._of(self.in_force, phase).whole
        return (whole, *kept) if alone and whole is not None else kept

    # ---- inside --------------------------------------------------------------------------------------------------

    def _of(self, partition: SetPartition, phase: Phase) -> _Rungs:
        plan = partition.plan
        whole = Rung.of(plan.whole, plan.mode) if plan.whole is not None and plan.mode is PacingMode.RUNGS else None
        limited = Rung.of(plan.limit(phase), plan.mode)
        if len(self._phases) == 1:  # one process for both phases: nobody shares the device with it
            return _Rungs(whole or limited, None)
        return _Rungs(limited, whole)

    def _prepared(self, phase: Phase, ready: Callable[[Phase, Rung], bool]) -> bool:
        assert self.pending is not None
        rung = self._of(self.pending, phase).limited
        return rung == self._of(self.in_force, phase).limited or ready(phase, rung)

    def _refuse(self, reason: str, message: str) -> None:
        assert self.pending is not None
        self.refused = Refusal(split_epoch=self.pending.split_epoch, reason=reason, message=message)
        self.pending = None


def contradiction(rung: Rung, seen: int | None, device: int | None) -> str | None:
    """What is wrong with the SM count that a worker of `rung` sees; None: nothing. The expected one was measured.

    `device`: SMs of the whole GPU. A worker under a limit that sees all of them has slipped past MPS, which says
    nothing when a client cannot reach it.
    """
    expected = rung.sm_count
    if expected is None:
        return None
    if seen is None:
        return f"it sees no streaming multiprocessors, {expected} are expected"
    if seen == device != expected:
        return f"it sees all {seen} SMs of the GPU where {expected} are its share: it is not a client of MPS"
    return f"it sees {seen} SMs, {expected} are expected" if seen != expected else None


def _name(rung: Rung) -> str:
    return f"{rung.percent} %" if rung.percent is not None else "the limit in force"


def initial_partition(plan: PartitionPlan) -> SetPartition:
    """What is in force before the agent speaks: epoch 0, which nobody can ask for."""
    return SetPartition.model_construct(split_epoch=0, plan=plan)
