"""The gate that follows the targets: what a prompt takes now, and how many sequences are too many. Pure.

`advanced` turns what was seen of the last seconds into the figures (`Gate`) by which the engine's api refuses who would
have its first token too late, and, after lasting pressure on TPOT, who would slow the others down. It judges no single
request: the api does, for it alone knows who waits at that moment. It moves no split.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from semipd_agent.contract import SLO, Admission
from semipd_agent.slo.load import Load
from semipd_engine.contract import Gate, Observation, Phase, Split

LOOK_SECONDS = 10.0
"""How a phase shared the device is taken over so long."""
MARGIN = 0.9
"""Of the TTFT target: figures are a second old and a model errs, and one who is late makes those behind it late."""
PRESSED_SECONDS = 10.0
"""The TPOT gate shuts after so long a pressure above `SHUT`, and opens below `OPEN`: shut for good it costs a load that
comes and goes more than it gives."""
SHUT, OPEN = 1.0, 0.9
MOST_HELD = 0.9
"""Part of the time in which prompts wait for a place and not for prefill, at most."""


@dataclass(frozen=True)
class Times:
    """Sums of one core at one moment, seconds."""

    at: float
    prefill: float
    decode: float
    shared: float
    held: float

    @classmethod
    def of(cls, o: Observation) -> Times:
        held = o.held_back_by_slots_seconds + o.held_back_by_kv_seconds
        busy = o.busy_seconds
        return cls(o.at, busy.get(Phase.PREFILL, 0.0), busy.get(Phase.DECODE, 0.0), o.shared_seconds, held)


@dataclass(frozen=True)
class Gatekeeper:
    """State between two ticks."""

    gate: Gate = Gate()  # noqa: RUF009  it is frozen
    core_id: str = ""
    seen: tuple[Times, ...] = ()
    """Of the last `LOOK_SECONDS`, oldest first."""
    pressed_since: float = math.inf
    shut: bool = False
    """For who would slow the others down."""

    def advanced(
        self, o: Observation, load: Load, slo: SLO, split: Split, mode: Admission, *, full: bool
    ) -> Gatekeeper:
        """`full`: no split in reach serves all that is asked for. `Auto` refuses nobody before."""
        seen = (*(self.seen if o.core_id == self.core_id else ()), Times.of(o))
        while len(seen) > 2 and seen[1].at <= o.at - LOOK_SECONDS:
            seen = seen[1:]
        pressed, shut = self.pressed_since, self.shut
        target = (slo.tpot_milliseconds or 0) / 1000
        most, pressure = 0, 0.0
        if target:
            pressure, most = _pace(o, load, split, seen, target)
        pressed = math.inf if pressure <= SHUT else min(pressed, o.at)
        shut = o.at - pressed >= PRESSED_SECONDS or (shut and pressure >= OPEN)
        closed = mode is Admission.ON or (mode is Admission.AUTO and full)
        token, square = _prompt(o, load, split, seen)
        gate = Gate(
            ttft_seconds=MARGIN * slo.ttft_milliseconds / 1000 if closed and slo.ttft_milliseconds else 0.0,
            token_seconds=token,
            square_seconds=square,
            most_in_work=most if closed and shut else 0,
        )
        return Gatekeeper(gate, o.core_id, seen, pressed, shut)


def _prompt(o: Observation, load: Load, split: Split, seen: tuple[Times, ...]) -> tuple[float, float]:
    """Seconds for each token of a prompt, and for the square of their number: work at the whole device, over how much
    of it prefill does in a second."""
    first, last = seen[0], seen[-1]
    chunk = max(1, o.prefill_chunk_tokens)
    if split.mixed_tokens:
        machine = load.machine(split, o)
        rows, context = _rows(o)
        fixed, row, position = load.model.costs(Phase.DECODE, rows)
        part = machine.chunk * max(0.05, 1 - rows / machine.chunk_tokens)
        done = part / (machine.mixed * (max(fixed, part) + row * rows + position * context))
    else:
        busy, shared = last.prefill - first.prefill, last.shared - first.shared
        beside = min(1.0, shared / busy) if busy > 0 else 1.0
        done = 1 - beside + beside * load.model.speed(Phase.PREFILL, split)
    held = (last.held - first.held) / (last.at - first.at) if last.at > first.at else 0.0
    done *= 1 - min(held, MOST_HELD)
    c0, c1, c2 = load.model.costs(Phase.PREFILL, chunk)
    new = load.uncached
    return max(0.0, (c0 / chunk + c1) * new / done), max(0.0, c2 / 2 * new * new / done)


def _pace(o: Observation, load: Load, split: Split, seen: tuple[Times, ...], target: float) -> tuple[float, int]:
    """Time per token over its target, as steps are now, and the rows for which the target is kept (1 at the least)."""
    rows, context = _rows(o)
    fixed, row, position = load.model.costs(Phase.DECODE, rows)
    if split.mixed_tokens:
        machine = load.machine(split, o)
        prompts = any(r.uncomputed_tokens for r in o.running)
        fixed = max(fixed, machine.chunk) if prompts else fixed
        speed = 1 / machine.mixed if prompts else 1.0
    else:
        first, last = seen[0], seen[-1]
        busy, shared = last.decode - first.decode, last.shared - first.shared
        beside = min(1.0, shared / busy) if busy > 0 else 1.0
        speed = 1 - beside + beside * load.model.speed(Phase.DECODE, split)
    if not rows:
        return 0.0, 0
    pressure = (fixed + row * rows + position * context) / speed / target
    each = row + position * context / rows
    return pressure, max(1, int((target * speed - fixed) / each)) if each > 0 else 0


def _rows(o: Observation) -> tuple[int, int]:
    """Sequences that decode, and positions that they read."""
    decoding = [r for r in o.running if not r.uncomputed_tokens]
    return len(decoding), sum(r.prompt_tokens + r.output_tokens for r in decoding)
