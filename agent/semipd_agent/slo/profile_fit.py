"""What a profile's sums say beyond the line: where steps bend, and how fast each part of the CPUs is. Pure.

The line through all sums (`StepModel.learn`) errs by a fifth in between: a batch of six rows takes little more than
one, and from there each row is work. Steps alone say where it bends. Under `ShareLaw.PACED` those beside the other
phase say then what a phase does in its part of the CPUs: decode's few rows wait for memory, which one core fetches at
more than half of the speed of two.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from semipd_agent.slo.knots import Knots, Steps, bent, rising
from semipd_agent.slo.step_model import Kind, StepModel, StepProfile, Vector, kinds
from semipd_engine.contract import Phase, StepTimes
from semipd_engine.cpu_plan import held

ALONE, BESIDE = 0.9, 0.5
"""Part of the time that steps ran alone, or beside the other phase, to be counted as such."""


SUMMED = (
    *("steps", "tokens", "context_tokens", "alone_seconds", "shared_seconds"),
    *("prompt_tokens", "prompt_context_tokens"),
)


def merged(sums: Sequence[StepTimes]) -> dict[Kind, StepTimes]:
    """By kind: a profile tells those of each point by themselves."""
    found: dict[Kind, StepTimes] = {}
    for one in sums:
        (kind,) = kinds([one])
        before = found.get(kind)
        added = {name: getattr(before, name) + getattr(one, name) for name in SUMMED} if before else {}
        found[kind] = one.model_copy(update=added)
    return found


def with_bends(profile: StepProfile, sums: Sequence[StepTimes]) -> StepProfile:
    """The profile's line and factors on it, of the steps that ran alone."""
    prefill, prefill_bend = _bent(profile.prefill, [s for s in sums if s.phase is Phase.PREFILL])
    decode, decode_bend = _bent(profile.decode, [s for s in sums if s.phase is Phase.DECODE])
    return replace(profile, prefill=prefill, decode=decode, prefill_bend=prefill_bend, decode_bend=decode_bend)


def _bent(line: Vector, sums: Sequence[StepTimes]) -> tuple[Vector, Knots]:
    seen = list[Steps]()
    for s in sums:
        base, context = line[0] * s.steps + line[1] * s.tokens, line[2] * s.context_tokens
        if s.alone_seconds >= ALONE * (s.alone_seconds + s.shared_seconds) and not s.prompts:
            took = (s.alone_seconds + s.shared_seconds) / (base + context)
            seen.append(Steps(s.steps, s.tokens / s.steps, base / (base + context), context / (base + context), took))
    if not seen:
        return line, Knots()
    factors, context = bent(seen)
    return (line[0], line[1], context * line[2]), factors


def with_speeds(profile: StepProfile, sums: Sequence[StepTimes], cpus: int) -> StepProfile:
    """Speeds of both phases on so many CPUs, of the steps that ran beside the other phase. They hold what contention
    there was, too."""
    prefill, decode = (_speeds(profile, phase, sums, cpus) for phase in (Phase.PREFILL, Phase.DECODE))
    if not prefill.at or not decode.at:
        return profile
    return replace(profile, cpus=cpus, prefill_speeds=prefill, decode_speeds=decode, contention=1.0)


def _speeds(profile: StepProfile, phase: Phase, sums: Sequence[StepTimes], cpus: int) -> Knots:
    model, seen = StepModel(profile), list[tuple[float, float, float]]()
    for s in sums:
        shared = s.shared_seconds
        if s.phase is phase and not s.prompts and shared >= BESIDE * (s.alone_seconds + shared):
            c0, c1, c2 = model.costs(phase, s.tokens / s.steps)
            work = c0 * s.steps + c1 * s.tokens + c2 * s.context_tokens - s.alone_seconds
            # What is off in the steps alone of a sum is in those beside by so much more as these are less.
            weight = shared * (shared / (s.alone_seconds + shared)) ** 2
            seen.append((held(s.split, cpus)[phase is Phase.DECODE], work / shared, weight))
    return rising(seen) if seen else Knots()
