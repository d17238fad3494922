"""The parts of the benchmark by name: what each asks of a server, and how its answers are read."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from bench.cpu.figures import Figures, decode_rate, goodput, interference, prompt_time, throughput, undisturbed
from bench.cpu.plans import (
    Workload,
    chained_prompts,
    chained_victims,
    crowd,
    lone_prompts,
    open_loop,
    single,
    spread_prompts,
    streams,
    undisturbed_streams,
)
from bench.traffic import Record, Request

BUDGET_GAP, BUDGET_THROUGHPUT = "budget-gap", "budget-throughput"
"""Asked at equal budgets: interference, and a crowd that never pauses."""
UNDISTURBED = "undisturbed"
"""What the machine makes of the streams of `back-to-back` where no prompt comes. No split binds then."""


@dataclass(frozen=True)
class Part:
    name: str
    plan: Callable[[Workload, int], list[Request]]
    read: Callable[[Workload, Sequence[Record]], Figures]
    seconds: float
    """How long it takes, about; exactly, where the plan ends by the clock."""


def parts(*, back_to_back: float = 60.0, open_seconds: float = 90.0, long_seconds: float = 600.0) -> dict[str, Part]:
    """By name. Seconds: how long the parts run that last as long as one wants."""
    long_mix = chained_prompts((512, 2000, 8000), long_seconds, chained_victims)
    every = (
        Part("decode-128", single(128, 64), decode_rate, 5.0),
        Part("decode-2000", single(2000, 48), decode_rate, 7.0),
        Part("eight", streams(8, 128, 176), decode_rate, 12.0),
        Part("prefill-512", lone_prompts(5, 512), prompt_time, 4.0),
        Part("interference", spread_prompts(2, 13.0), interference, 13.0),
        Part("back-to-back", chained_prompts((1024,), back_to_back, chained_victims), interference, back_to_back),
        Part(UNDISTURBED, undisturbed_streams(back_to_back), undisturbed, back_to_back),
        Part(BUDGET_GAP, spread_prompts(2, 13.0), interference, 13.0),
        Part(BUDGET_THROUGHPUT, crowd(8, 4), throughput, 20.0),
        *(Part(name, open_loop(name, open_seconds), goodput, open_seconds) for name in ("poisson", "gamma", "trace")),
        Part("long-mix", long_mix, interference, long_seconds),
    )
    return {part.name: part for part in every}
