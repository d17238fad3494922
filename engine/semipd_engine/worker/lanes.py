"""The rungs of one worker, where each is a stream: which SMs they have, which is chosen, and which have failed.

Rung 0 is the whole device, torch's own stream, and always there; the others are green contexts (`green.driver`), with
the numbers of `GREEN_RUNGS`. One is chosen at a time, here and nowhere else: what torch queues afterwards goes there. A
rung that does not prove itself is lost to this worker, with the reason; it is never replaced by another in silence.
**Not executed on a GPU yet.**
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field

import torch

from semipd_engine.contract import GREEN_RUNGS, Phase
from semipd_engine.green.driver import Groups, explained
from semipd_engine.green.ladder import WHOLE, Line, parsed
from semipd_engine.memory.driver import CudaError
from semipd_engine.worker.decode_graphs import Capture, Queue
from semipd_engine.worker.servable import UnfitError

BUDGET = 512 << 20
"""Bytes of the device that the programs of all rungs but the whole one may take together: two workers with so much, and
their contexts, fit what is kept for four (`memory.kv_size.GPU_RESERVED`), even while a daemon is replaced."""

log = logging.getLogger(__name__)


@dataclass
class Lanes:
    streams: dict[int, torch.cuda.Stream]
    """By number, `WHOLE` among them."""
    sm_counts: dict[int, int]
    """As the driver says of each."""
    percents: Mapping[int, int]
    """Of all that were asked for."""
    lost: dict[int, str] = field(default_factory=dict)
    """Why a rung is not held."""
    chosen: int = WHOLE

    def choose(self, number: int) -> None:
        """What is queued from now on runs on this rung, behind all that was queued before. Raises KeyError for one that
        is not held: core routes nothing to it."""
        if number == self.chosen:
            return
        stream = self.streams[number]
        stream.wait_stream(self.streams[self.chosen])  # one event
        torch.cuda.set_stream(stream)
        self.chosen = number

    def lose(self, number: int, why: str) -> None:
        log.error("the rung of %d %% is lost to this worker: %s", self.percents[number], why)
        self.lost[number] = why
        if number == self.chosen:
            self.choose(WHOLE)
        self.streams.pop(number, None)
        self.sm_counts.pop(number, None)

    def each(self, prove: Callable[[], None]) -> None:
        """Have each rung prove itself. One that raises `UnfitError`, or finds no memory, is lost. Raises `UnfitError`
        of the whole one, and (WarmUpFailed) of a rung that has taken the device from all."""
        for number in list(self.streams):
            try:
                self.choose(number)
                self._prove(number, prove)
                self.choose(WHOLE)
            except UnfitError:
                raise
            except Exception as error:
                said = f"the rung of {self.percents[number]} %: {type(error).__name__}: {error}"
                raise UnfitError("WarmUpFailed", said) from error

    def _prove(self, number: int, prove: Callable[[], None]) -> None:
        try:
            prove()
        except UnfitError as error:
            if number == WHOLE:
                raise
            self.lose(number, f"{error.reason}: {error}")
        except torch.OutOfMemoryError as error:
            if number == WHOLE:
                raise
            self.lose(number, f"OutOfMemory: {error}")


def open_lanes(phase: Phase, environment: Mapping[str, str], device: torch.device) -> Lanes | None:
    """Those that the environment names; None: it names none. What the driver refuses is lost. Raises `UnfitError`
    (GreenRungs) where the ladder cannot be read."""
    if not (text := environment.get(GREEN_RUNGS, "")):
        return None
    try:
        percents = dict(enumerate(parsed(text), start=WHOLE + 1))
    except ValueError as error:
        raise UnfitError("GreenRungs", str(error)) from error
    whole = torch.cuda.get_device_properties(device).multi_processor_count
    lanes = Lanes({WHOLE: torch.cuda.current_stream(device)}, {WHOLE: whole}, {WHOLE: 100, **percents})
    try:
        groups = Groups()
    except CudaError as error:
        for number in percents:
            lanes.lose(number, explained(error))
        return lanes
    line = Line(groups.sizes)
    coarse = line.coarse(list(percents.values()))
    for number, percent in percents.items():
        if percent in coarse:
            lanes.lose(number, coarse[percent])
            continue
        try:
            lane = groups.lane(line.groups(phase, percent))
        except CudaError as error:
            lanes.lose(number, explained(error))
            continue
        if lane.sm_count != line.sms(phase, percent):
            lanes.lose(number, f"it has {lane.sm_count} SMs, its groups have {line.sms(phase, percent)}")
            with suppress(CudaError):  # torch has not seen it; those that it has seen stay for the worker's life
                lane.close()
            continue
        lanes.streams[number] = torch.cuda.ExternalStream(lane.stream, device=device)  # type: ignore[no-untyped-call]
        lanes.sm_counts[number] = lane.sm_count
    return lanes


class LaneCapture:
    """A `Capture` that makes a program for each rung, since a captured kernel stays on the SMs of the stream on which
    it was captured; a replay is the chosen rung's. They share all buffers: one rung runs at a time."""

    def __init__(
        self,
        lanes: Lanes,
        make: Callable[[torch.cuda.Stream | None], Capture],
        free: Callable[[], int],
        budget: int = BUDGET,
    ) -> None:
        """`make`: a capture on a stream; None: one of its own, with all SMs. `free`: bytes that the device has left."""
        self._lanes, self._free, self._left = lanes, free, budget
        self._captures = {n: make(None if n == WHOLE else stream) for n, stream in lanes.streams.items()}
        self._made: list[dict[int, Queue]] = []

    def of_chosen(self, queue: Queue) -> Queue:
        """A program for the chosen rung alone."""
        return self._captures[self._lanes.chosen](queue)

    def __call__(self, queue: Queue) -> Queue:
        lanes, programs = self._lanes, dict[int, Queue]()
        self._made.append(programs)
        for number in list(lanes.streams):
            before = self._free()
            lanes.choose(number)
            try:
                programs[number] = self._captures[number](queue)
            except Exception as error:
                if number == WHOLE:
                    raise
                self._lose(number, f"WrongGraphs: a decode step cannot be captured: {type(error).__name__}: {error}")
                continue
            self._left -= before - self._free() if number != WHOLE else 0
            if self._left < 0 and number != WHOLE:
                self._lose(number, "OutOfMemory: the programs of all rungs take more than is kept for them")
        lanes.choose(WHOLE)
        return lambda: programs[lanes.chosen]()

    def _lose(self, number: int, why: str) -> None:
        """With its programs of the sizes before."""
        self._lanes.lose(number, why)
        before = self._free()
        for programs in self._made:
            programs.pop(number, None)
        self._captures.pop(number)
        self._left += self._free() - before
