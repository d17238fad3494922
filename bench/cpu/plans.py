"""What is asked of a server: plans of requests for a seed. Pure.

Plans of another seed or salt share no prompt, so that no cached prefix helps.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from bench.traffic import Request, Target, gamma, mixed_plan, poisson, prompt_ids
from bench.traffic.plan import PROMPT_VOCABULARY, TRACES, read_trace, trace_plan


@dataclass(frozen=True)
class Workload:
    """A model, and how much of it a two-core machine can serve."""

    name: str
    rate: float
    """Requests per second of the open-loop parts: about half of what the slowest contender can serve."""
    target: Target


WORKLOADS = {
    workload.name: workload
    for workload in (
        Workload("llama-0.5b", 0.4, Target(ttft=3000, tpot=150, gap=500)),
        Workload("smollm2-135m", 1.0, Target(ttft=1500, tpot=75, gap=250)),
    )
}


VICTIM, PROMPT = "victim", "prompt"


def salted(plan: Sequence[Request], salt: int) -> list[Request]:
    """The same plan with other prompts, each token id moved within the range of `prompt_ids`."""
    ids = PROMPT_VOCABULARY

    def moved(prompt: Sequence[int | str]) -> tuple[int, ...]:
        return tuple(ids.start + (int(token) - ids.start + salt) % len(ids) for token in prompt)

    return [replace(request, prompt=moved(request.prompt)) for request in plan]


def single(prompt_tokens: int, max_tokens: int) -> Callable[[Workload, int], list[Request]]:
    def plan(workload: Workload, seed: int) -> list[Request]:
        return [Request(0.0, max_tokens, prompt_ids(prompt_tokens, seed=seed))]

    return plan


def streams(count: int, prompt_tokens: int, max_tokens: int) -> Callable[[Workload, int], list[Request]]:
    def plan(workload: Workload, seed: int) -> list[Request]:
        return [Request(0.0, max_tokens, prompt_ids(prompt_tokens, seed=1000 * seed + n)) for n in range(count)]

    return plan


def crowd(clients: int, each: int) -> Callable[[Workload, int], list[Request]]:
    """As many clients at once, each with so many requests one after the other: mixed lengths, and never a pause."""

    def plan(workload: Workload, seed: int) -> list[Request]:
        mixed = mixed_plan([0.0] * (clients * each), prompt_tokens=(64, 1024), max_tokens=(32, 128), seed=seed)
        return [replace(one, after=n - clients if n >= clients else None) for n, one in enumerate(mixed)]

    return plan


def lone_prompts(count: int, tokens: int) -> Callable[[Workload, int], list[Request]]:
    def plan(workload: Workload, seed: int) -> list[Request]:
        return [
            Request(0.0, 1, prompt_ids(tokens, seed=100 * seed + n), label=PROMPT, after=n - 1 if n else None)
            for n in range(count)
        ]

    return plan


QUIET_SECONDS = 3.0
"""Victims run undisturbed for so long; the first second of it, in which they start, does not count."""


PATIENCE = 5
"""Victims wait for the last prompt so many times as long as all takes where prompts are fast."""


def victims(seed: int, seconds: float, outlasts: int | None = None) -> list[Request]:
    prompts = [prompt_ids(64, seed=1000 * seed + n) for n in range(2)]
    return [Request(0.0, 7_000, prompt, label=VICTIM, hang_up=seconds, outlasts=outlasts) for prompt in prompts]


def spread_prompts(count: int, seconds: float) -> Callable[[Workload, int], list[Request]]:
    """Prompts of 1,024 tokens, one after a while, beside two streams that outlast them. Where prompts are fast, so many
    seconds are enough. One that the prompt before it holds up is planned for the end of that: none waits behind it."""

    def plan(workload: Workload, seed: int) -> list[Request]:
        each = 0.7 * (seconds - QUIET_SECONDS) / count
        running = victims(seed, PATIENCE * seconds, outlasts=1 + count)
        return running + [
            Request(
                QUIET_SECONDS + n * each,
                1,
                prompt_ids(1024, seed=1000 * seed + 10 + n),
                label=PROMPT,
                after=len(running) + n - 1 if n else None,
            )
            for n in range(count)
        ]

    return plan


MOST_PROMPT_RATE = 4096
"""Tokens per second of prompts that no contender reaches: so many are planned."""


def chained_prompts(
    lengths: Sequence[int], seconds: float, beside: Callable[[int, float], list[Request]] = victims
) -> Callable[[Workload, int], list[Request]]:
    """Prompts of these lengths in turn, back to back, beside two streams that last so many seconds."""

    def plan(workload: Workload, seed: int) -> list[Request]:
        running = beside(seed, seconds)
        return running + [
            Request(
                QUIET_SECONDS,
                1,
                prompt_ids(lengths[n % len(lengths)], seed=1000 * seed + 10_000 + n),
                label=PROMPT,
                after=len(running) + n - 1 if n else None,
                not_after=seconds - 1,
            )
            for n in range(math.ceil(seconds * MOST_PROMPT_RATE / statistics.mean(lengths)))
        ]

    return plan


def chained_victims(seed: int, seconds: float) -> list[Request]:
    """Two chains of streams of 600 tokens: for parts so long that the context of one would end, or that its steps would
    grow with the context to twice the quiet ones, which prompts have nothing to do with."""
    return [
        Request(
            *(0.0, 600, prompt_ids(64, seed=1000 * seed + n)),
            label=VICTIM,
            after=n - 2 if n > 1 else None,
            not_after=seconds - 1,
        )
        for n in range(2 * math.ceil(seconds / 5))
    ]


def undisturbed_streams(seconds: float) -> Callable[[Workload, int], list[Request]]:
    return lambda workload, seed: chained_victims(seed, seconds)


def open_loop(arrivals: str, seconds: float) -> Callable[[Workload, int], list[Request]]:
    def plan(workload: Workload, seed: int) -> list[Request]:
        if arrivals == "trace":
            rows = read_trace(TRACES / "azure2023_conv.csv.gz")[::16]
            return trace_plan(rows, rate=workload.rate, seconds=seconds, length_scale=0.4, max_output=128, seed=seed)
        times = (
            poisson(workload.rate, seconds, seed=seed)
            if arrivals == "poisson"
            else gamma(workload.rate, seconds, variation=2.0, seed=seed)
        )
        return mixed_plan(times, prompt_tokens=(64, 1024), max_tokens=(32, 128), seed=seed)

    return plan
