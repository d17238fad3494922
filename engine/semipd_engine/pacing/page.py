"""The pacing page: one small shared mapping between core and the phase workers. Nobody waits on it but for a turn.

Core writes the plan in force and the recall number; each worker writes a seat of its own (a phase has `SEATS` of them):
heartbeat, applied epoch, busy, virtual time, the end of its turn. 64-bit words, aligned, so a word is never seen half
written (x86-64 and AArch64). The plan is longer than a word and stands behind a sequence number: odd while it is being
written; a reader that meets a change keeps its old plan and looks again.

Knows no scheduling, no threads and no torch.
"""

from __future__ import annotations

import fcntl
import mmap
import os
from dataclasses import dataclass

from semipd_engine.contract import PartitionPlan, Phase
from semipd_engine.pacing.bell import Bell
from semipd_engine.pacing.stride import Customer

PAGE_BYTES = 65536
PLAN_OFFSET = 2048
"""Bytes; the words lie before, the plan's JSON text behind."""
MAGIC = 0x5345_4D49_5044_0005
SEATS = 6
"""Most workers of a phase that can be alive at once: two in force, two being prepared, two draining."""

(
    _WORD_MAGIC,
    _WORD_SEQUENCE,
    _WORD_PLAN_LENGTH,
    _WORD_EPOCH,
    _WORD_RECALL,
    _WORD_IDLE_VTIME,
    _WORD_BELL,
    _WORD_HOLDER,
) = range(8)
_SEAT_WORDS = 16
_SEAT_FIRST = {Phase.PREFILL: 32, Phase.DECODE: 32 + SEATS * _SEAT_WORDS}


@dataclass(frozen=True)
class PlanInForce:
    epoch: int
    plan: PartitionPlan


class _Word:
    """A 64-bit word of a seat, read and written as an attribute."""

    def __init__(self, index: int) -> None:
        self.index = index

    def __get__(self, seat: Seat, owner: type) -> int:
        return seat.words[seat.first + self.index]

    def __set__(self, seat: Seat, value: int) -> None:
        seat.words[seat.first + self.index] = value


def plan_text(plan: PartitionPlan) -> bytes:
    """What the page holds of a plan: what a worker executes. Raises ValueError if it does not fit."""
    text = plan.model_dump_json(exclude={"prefill": {"environment"}, "decode": {"environment"}, "whole": True}).encode()
    if len(text) > PAGE_BYTES - PLAN_OFFSET:
        raise ValueError(f"plan: it takes {len(text)} bytes, the pacing page has {PAGE_BYTES - PLAN_OFFSET}")
    return text


class Seat:
    """What one worker says about itself. Times are nanoseconds of CLOCK_MONOTONIC."""

    pid = _Word(0)
    generation = _Word(1)
    heartbeat_ns = _Word(2)
    applied_epoch = _Word(3)
    idle_since_ns = _Word(4)
    """0 while a plan is being executed."""
    vtime = _Word(5)
    """Wall time of the turns x granted CPUs x 100 / weight, in nanoseconds (`pacing.stride`)."""
    cpu_ns = _Word(6)
    """CPU time of the whole process."""
    steps = _Word(7)
    wide = _Word(8)
    """1 while a quantum runs on the peer's CPUs, too, because the peer rested when it began."""
    quantum_since_ns = _Word(9)
    """When the quantum began that runs, and is not in `vtime` yet; 0: none runs."""
    quantum_cpus = _Word(10)
    """That it holds."""
    turn_end = _Word(11)
    """How far ahead, in virtual time, its turn is to end with a step; 0: wherever half a turn is."""
    turn_limit = _Word(12)
    """How far ahead at most, if the step takes longer than the last ones. Written before `turn_end`, which says that it
    holds."""

    def __init__(self, words: memoryview, first: int) -> None:
        self.words = words
        self.first = first

    def clear(self) -> None:
        """For a worker that is gone. Its virtual time stays: the next one starts level with it."""
        self.pid = self.heartbeat_ns = self.idle_since_ns = self.cpu_ns = self.steps = 0
        self.applied_epoch = self.wide = self.quantum_since_ns = self.turn_end = self.turn_limit = 0


class PacingPage:
    def __init__(self, fd: int) -> None:
        """Map the page that lies in `fd`, made by `create` here or in another process."""
        self.fd = fd
        mapping = mmap.mmap(fd, PAGE_BYTES, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)
        self._bytes = memoryview(mapping)
        self._words = self._bytes.cast("Q")
        if self._words[_WORD_MAGIC] != MAGIC:
            raise ValueError("the descriptor is not a pacing page of this version")
        self.bell = Bell(self._bytes[_WORD_BELL * 8 : _WORD_BELL * 8 + 4])
        self.seats = {
            phase: tuple(Seat(self._words, first + seat * _SEAT_WORDS) for seat in range(SEATS))
            for phase, first in _SEAT_FIRST.items()
        }
        """Where a phase has one worker at a time, it keeps seat 0: two of them may then pace each other."""

    @classmethod
    def create(cls) -> PacingPage:
        """A fresh page whose size cannot change any more."""
        fd = os.memfd_create("semipd-pacing", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.ftruncate(fd, PAGE_BYTES)
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL)
        os.pwrite(fd, MAGIC.to_bytes(8, "little"), 0)
        return cls(fd)

    # ---- written by core -----------------------------------------------------------------------------------------

    def write_plan(self, epoch: int, plan: PartitionPlan) -> None:
        """Put a plan in force. Raises ValueError if it does not fit: who accepts one asks `plan_text`."""
        text = plan_text(plan)
        writing = self._words[_WORD_SEQUENCE] | 1  # a writer that died half-way left it odd
        self._words[_WORD_SEQUENCE] = writing
        self._bytes[PLAN_OFFSET : PLAN_OFFSET + len(text)] = text
        self._words[_WORD_PLAN_LENGTH] = len(text)
        self._words[_WORD_EPOCH] = epoch
        self._words[_WORD_SEQUENCE] = writing + 1

    def recall(self, step: int) -> None:
        """Decode plans whose first step is `step` or an earlier one end with the step they are in."""
        self._words[_WORD_RECALL] = step

    # ---- read by workers -----------------------------------------------------------------------------------------

    @property
    def plan_sequence(self) -> int:
        """Changes with every plan; cheap enough to look at in every quantum."""
        return self._words[_WORD_SEQUENCE]

    def read_plan(self) -> PlanInForce | None:
        """The plan in force; None if there is none yet or it is being written right now."""
        before = self._words[_WORD_SEQUENCE]
        text = bytes(self._bytes[PLAN_OFFSET : PLAN_OFFSET + self._words[_WORD_PLAN_LENGTH]])
        epoch = self._words[_WORD_EPOCH]
        if before == 0 or before % 2 or before != self._words[_WORD_SEQUENCE]:
            return None
        return PlanInForce(epoch, PartitionPlan.model_validate_json(text))

    def recalled(self, step: int) -> bool:
        return self._words[_WORD_RECALL] >= step

    @property
    def idle_vtime(self) -> int:
        """Virtual time of nobody, who owns the rest of a hundred where x + y < 100."""
        return self._words[_WORD_IDLE_VTIME]

    @idle_vtime.setter
    def idle_vtime(self, value: int) -> None:
        self._words[_WORD_IDLE_VTIME] = value

    @property
    def holder(self) -> Customer:
        """Whose turn it was when somebody last looked."""
        return Customer(self._words[_WORD_HOLDER])

    @holder.setter
    def holder(self, value: Customer) -> None:
        self._words[_WORD_HOLDER] = value
