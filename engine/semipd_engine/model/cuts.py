"""Cuts a list of stages into pieces of bounded time, which the pacer may interleave with the other phase's.

Where a cut falls is decided by a table of rates, and with compiled kernels, where a row's bits do not depend on the
cuts at all, by how fast this machine is beside it: a piece that takes longer than its budget holds up the other phase.
Without them nothing is measured: a plan is computed in the same pieces wherever its budgets are the same. Knows stages
and their costs; knows no layer, no thread and no peer.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from semipd_engine.kernels import CannotRecord, Kernels, Rates, RecordingKernels
from semipd_engine.model.stage import Stage, Step, Work
from semipd_engine.pacing.quantum import Pacer


def seconds(work: Work, rates: Rates) -> float:
    """Of one core: what is larger, reading or computing."""
    computing = work.products / rates.products + work.gathered / rates.gathered
    return max(work.read / rates.read, computing + work.scores / rates.scores + work.latent / rates.latent)


FORMS = 32
"""Kept at most: batch sizes come and go."""


class Pace:
    """How much CPU time a second of the table takes here, at present: machines differ, and who computes beside does."""

    LEAST_SECONDS = 5e-4
    """Of a piece that says something: the others are Python's, or a wake-up's."""
    WEIGHT = 1 / 8
    """Of the newest piece."""
    BOUNDS = (0.25, 4.0)

    def __init__(self) -> None:
        self.factor = 1.0

    def took(self, planned: float, seconds: float) -> None:
        """A piece for which the table says `planned`."""
        if planned >= self.LEAST_SECONDS:
            low, high = self.BOUNDS
            self.factor += self.WEIGHT * (min(max(seconds / planned, low), high) - self.factor)


class StageLoop:
    """Runs a list of stages, in order, in as many quanta as they need.

    With kernels that record, what a stage does over its whole axis is recorded once for each form of a step (same
    rows, same addresses) and replayed: a quantum is then one call, whatever number of stages it holds.
    """

    def __init__(
        self,
        stages: Sequence[Stage],
        kernels: Kernels,
        pacer: Pacer,
        rates: Rates,
        cpu_time: Callable[[], float] = time.process_time,
    ) -> None:
        """`cpu_time`: seconds that all threads of the process have computed."""
        self.stages = list(stages)
        self._pace = Pace()
        self._cpu_time = cpu_time
        self._recorder = kernels if isinstance(kernels, RecordingKernels) else None
        self._pacer = pacer
        self._rates = rates
        self._forms: dict[tuple[int, ...], tuple[dict[int, bytes], list[tuple[int, float]]]] = {}

    def run(self, step: Step) -> None:
        whole, costs = self._known(step)
        at, unit = 0, 0
        while at < len(self.stages):
            with self._pacer.quantum() as cpu_seconds:
                began, planned, left = self._cpu_time(), 0.0, cpu_seconds / self._pace.factor
                waiting = bytearray()
                fresh = True  # a quantum does one unit at least
                while at < len(self.stages):
                    units, each = costs[at]
                    count = units - unit
                    if count * each > left:
                        count = max(int(left / each), 1 if fresh else 0)
                        if count == 0:
                            break
                    if count == units and at in whole:
                        waiting += whole[at]
                    else:
                        self._piece(at, step, unit, unit + count, waiting, whole if count == units else None)
                    fresh, left, unit = False, left - count * each, unit + count
                    planned += count * each
                    if unit == units:
                        at, unit = at + 1, 0
                self._carry_out(waiting)
                if self._recorder is not None:
                    self._pace.took(planned, self._cpu_time() - began)

    def _piece(
        self, at: int, step: Step, begin: int, end: int, waiting: bytearray, whole: dict[int, bytes] | None
    ) -> None:
        """Record it behind the calls that are `waiting`, and keep it in `whole`; or carry them out, and it."""
        stage = self.stages[at]
        if self._recorder is not None and stage.recordable:
            try:
                with self._recorder.recording() as calls:
                    stage.run(step, begin, end)
                waiting += b"".join(calls)
                if whole is not None:
                    whole[at] = b"".join(calls)
                return
            except CannotRecord:
                pass
        self._carry_out(waiting)
        stage.run(step, begin, end)

    def _carry_out(self, waiting: bytearray) -> None:
        if waiting and self._recorder is not None:
            self._recorder.replay(waiting)
            waiting.clear()

    def _known(self, step: Step) -> tuple[dict[int, bytes], list[tuple[int, float]]]:
        """Of a step of this form: the calls of its stages as far as they are recorded, and each stage's units and
        seconds for a unit."""
        if self._recorder is None:
            return {}, self._costs(step)
        form = step.form
        if form not in self._forms:
            if len(self._forms) == FORMS:
                self._forms.clear()
            self._forms[form] = ({}, self._costs(step))
        return self._forms[form]

    def _costs(self, step: Step) -> list[tuple[int, float]]:
        found = []
        for stage in self.stages:
            units = stage.units(step)
            found.append((units, seconds(stage.work(step), self._rates) / max(1, units)))
        return found
