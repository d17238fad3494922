"""What is asked of a server, and what its answers mean. Pure: plans in, records in, figures out.

A figure's name ends with its unit. Plans of another seed or salt share no prompt, so that no cached prefix helps.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from bench.traffic import Record, Request, Target, gamma, gaps, mixed_plan, poisson, prompt_ids, quantile, summarise
from bench.traffic.plan import PROMPT_VOCABULARY, TRACES, read_trace, trace_plan

Figures = Mapping[str, float]


class UnusableError(Exception):
    """The answers do not hold what the part wants to know; the message says what is missing."""


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


@dataclass(frozen=True)
class Part:
    name: str
    plan: Callable[[Workload, int], list[Request]]
    read: Callable[[Workload, Sequence[Record]], Figures]
    seconds: float
    """How long it takes, about; exactly, where the plan ends by the clock."""


BUDGET_GAP, BUDGET_THROUGHPUT = "budget-gap", "budget-throughput"
"""Asked at equal budgets: interference, and a crowd that never pauses."""
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


def decode_rate(workload: Workload, records: Sequence[Record]) -> Figures:
    """Tokens per second of all streams together while all of them run."""
    _complete(records)
    begin = max(record.token_times[0] for record in records)
    end = min(record.token_times[-1] for record in records)
    tokens = sum(begin < at <= end for record in records for at in record.token_times)
    if tokens < 16 * len(records):
        raise UnusableError(f"only {tokens} tokens while all {len(records)} streams ran")
    return {"tokens_per_s": tokens / (end - begin)}


def crowd(clients: int, each: int) -> Callable[[Workload, int], list[Request]]:
    """As many clients at once, each with so many requests one after the other: mixed lengths, and never a pause."""

    def plan(workload: Workload, seed: int) -> list[Request]:
        mixed = mixed_plan([0.0] * (clients * each), prompt_tokens=(64, 1024), max_tokens=(32, 128), seed=seed)
        return [replace(one, after=n - clients if n >= clients else None) for n, one in enumerate(mixed)]

    return plan


def throughput(workload: Workload, records: Sequence[Record]) -> Figures:
    """Tokens of prompts and answers together, per second from the first request to the last token."""
    _complete(records)
    if not all(record.prompt_tokens for record in records):
        raise UnusableError("the server does not say how long the prompts were")
    tokens = sum(record.prompt_tokens + len(record.token_times) for record in records)
    seconds = max(record.token_times[-1] for record in records) - min(record.sent for record in records)
    return {
        "tokens_per_s": tokens / seconds,
        "worst_gap_ms": 1000 * max(record.longest_gap or 0.0 for record in records),
    }


def lone_prompts(count: int, tokens: int) -> Callable[[Workload, int], list[Request]]:
    def plan(workload: Workload, seed: int) -> list[Request]:
        return [
            Request(0.0, 1, prompt_ids(tokens, seed=100 * seed + n), label=PROMPT, after=n - 1 if n else None)
            for n in range(count)
        ]

    return plan


def prompt_time(workload: Workload, records: Sequence[Record]) -> Figures:
    """TTFT of a prompt that is alone."""
    _complete(records)
    return {"ttft_ms": 1000 * statistics.median(_ttft(record) for record in records)}


QUIET_SECONDS = 3.0
"""Victims run undisturbed for so long; the first second of it, in which they start, does not count."""


def victims(seed: int, seconds: float) -> list[Request]:
    return [Request(0.0, 7_000, prompt_ids(64, seed=1000 * seed + n), label=VICTIM, hang_up=seconds) for n in range(2)]


def spread_prompts(count: int, seconds: float) -> Callable[[Workload, int], list[Request]]:
    """Prompts of 1,024 tokens, one after a while, beside two streams that last so many seconds. One that the prompt
    before it holds up is planned for the end of that: none waits behind another."""

    def plan(workload: Workload, seed: int) -> list[Request]:
        each, running = 0.7 * (seconds - QUIET_SECONDS) / count, victims(seed, seconds)
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


def interference(workload: Workload, records: Sequence[Record]) -> Figures:
    """What prompts do to streams that run, and these to them; of all prompts that began while streams ran.

    A gap counts if it overlaps a prompt's wait, and a stream's wait at its hang-up is one. A prompt that failed has
    waited until the streams had gone, at least; one that was answered only then is late, and a part of its wait was
    undisturbed. Both stay in the figures, and are counted, for no bargain may rest on them.
    """
    running = [record for record in records if record.label == VICTIM]
    _complete(running)
    end = max(_ended(record) for record in running)
    prompts = [record for record in records if record.label == PROMPT and record.sent < end]
    if not prompts:
        raise UnusableError("no prompt began while the streams ran")
    failed = [prompt for prompt in prompts if not prompt.ok or not prompt.token_times]
    late = [prompt for prompt in prompts if prompt not in failed and prompt.token_times[0] > end]
    first = min(prompt.planned for prompt in prompts)
    quiet = [gap for victim in running for gap in gaps([at for at in victim.token_times if 1.0 < at <= first])]
    if len(quiet) < 8:
        raise UnusableError(f"only {len(quiet)} gaps before the first prompt")
    spans = [
        (prompt.sent, max(end, _ended(prompt)) if prompt in failed else prompt.token_times[0]) for prompt in prompts
    ]
    disturbed = [
        after - before
        for victim in running
        for before, after in pairwise([*victim.token_times, *([] if victim.waiting is None else [_ended(victim)])])
        if any(after > begin and before < until for begin, until in spans)
    ]
    if not disturbed:
        raise UnusableError("no stream ran while a prompt waited")
    usual, longest = statistics.median(quiet), max(disturbed)
    waits = [until - prompt.planned for prompt, (_, until) in zip(prompts, spans, strict=True)]
    return {
        "quiet_gap_ms": 1000 * usual,
        "longest_gap_ms": 1000 * longest,
        "longest_gap_ratio": longest / usual,
        "p50_gap_ms": 1000 * statistics.median(disturbed),
        "p999_gap_ms": 1000 * (quantile(disturbed, 99.9) or 0.0),
        "ttft_ms": 1000 * statistics.median(waits),
        "prompts": float(len(prompts)),
        "failed_prompts": float(len(failed)),
        "late_prompts": float(len(late)),
        "prompts_per_s": (len(prompts) - len(failed)) / sum(until - begin for begin, until in spans),
    }


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


def goodput(workload: Workload, records: Sequence[Record]) -> Figures:
    """Against the workload's target; a request that failed met nothing."""
    summary = summarise(records, workload.target)
    if summary.ttft is None or summary.longest_gap is None or summary.attainment_percent is None:
        raise UnusableError("no request was answered")
    met = summary.attainment_percent / 100 * len(records)
    return {
        "attainment_percent": summary.attainment_percent,
        "goodput_per_s": met / summary.seconds,
        "p50_ttft_ms": summary.ttft.p50,
        "p90_ttft_ms": summary.ttft.p90,
        "p50_longest_gap_ms": summary.longest_gap.p50,
        "worst_longest_gap_ms": summary.longest_gap.max,
        "failed": float(summary.failed + summary.rejected),
    }


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
        Part(BUDGET_GAP, spread_prompts(2, 13.0), interference, 13.0),
        Part(BUDGET_THROUGHPUT, crowd(8, 4), throughput, 20.0),
        *(Part(name, open_loop(name, open_seconds), goodput, open_seconds) for name in ("poisson", "gamma", "trace")),
        Part("long-mix", long_mix, interference, long_seconds),
    )
    return {part.name: part for part in every}


def _complete(records: Sequence[Record]) -> None:
    for record in records:
        if not record.ok or not record.token_times:
            raise UnusableError(record.error or "a stream brought no token")


def _ended(record: Record) -> float:
    return record.ended if record.ended is not None else max([record.sent, *record.token_times])


def _ttft(record: Record) -> float:
    return record.token_times[0] - record.planned
