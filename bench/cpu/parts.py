"""What is asked of a server, and what its answers mean. Pure: plans in, records in, figures out.

A figure's name ends with its unit. Plans of another seed or salt share no prompt, so that no cached prefix helps.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

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
    splits: bool = False
    """What it shows depends on the split."""


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
    """Prompts of 1,024 tokens, one after a while, beside two victims that last so many seconds."""

    def plan(workload: Workload, seed: int) -> list[Request]:
        each = (seconds - QUIET_SECONDS) / count
        return victims(seed, seconds) + [
            Request(QUIET_SECONDS + n * each, 1, prompt_ids(1024, seed=1000 * seed + 10 + n), label=PROMPT)
            for n in range(count)
        ]

    return plan


def chained_prompts(lengths: Sequence[int], seconds: float) -> Callable[[Workload, int], list[Request]]:
    """Prompts of these lengths in turn, back to back, beside two victims that last so many seconds."""

    def plan(workload: Workload, seed: int) -> list[Request]:
        beside = victims(seed, seconds)
        return beside + [
            Request(
                QUIET_SECONDS,
                1,
                prompt_ids(lengths[n % len(lengths)], seed=1000 * seed + 10 + n),
                label=PROMPT,
                after=len(beside) + n - 1 if n else None,
                not_after=seconds - 1,
            )
            for n in range(int(seconds * 4))
        ]

    return plan


def interference(workload: Workload, records: Sequence[Record]) -> Figures:
    """What a prompt does to streams that run, and they to it. A gap counts if it overlaps the prompt's wait."""
    running = [record for record in records if record.label == VICTIM]
    prompts = [record for record in records if record.label == PROMPT and record.token_times]
    _complete(running)
    end = min(record.token_times[-1] for record in running)
    served = [prompt for prompt in prompts if prompt.token_times[0] <= end]
    if not served:
        raise UnusableError("no prompt was answered while both victims ran")
    first = min(prompt.planned for prompt in served)
    quiet = [g for v in running for g in gaps([t for t in v.token_times if 1.0 < t <= first])]
    if len(quiet) < 8:
        raise UnusableError(f"only {len(quiet)} gaps before the first prompt")
    spans = [(prompt.sent, prompt.token_times[0]) for prompt in served]
    disturbed = [
        after - before
        for victim in running
        for before, after in zip(victim.token_times, victim.token_times[1:], strict=False)
        if any(after > begin and before < until for begin, until in spans)
    ]
    usual, longest = statistics.median(quiet), max(disturbed)
    return {
        "quiet_gap_ms": 1000 * usual,
        "longest_gap_ms": 1000 * longest,
        "longest_gap_ratio": longest / usual,
        "p50_gap_ms": 1000 * statistics.median(disturbed),
        "p999_gap_ms": 1000 * (quantile(disturbed, 99.9) or 0.0),
        "ttft_ms": 1000 * statistics.median(_ttft(prompt) for prompt in served),
        "prompts_per_s": len(served) / sum(until - begin for begin, until in spans),
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
    every = (
        Part("decode-128", single(128, 64), decode_rate),
        Part("decode-2000", single(2000, 48), decode_rate),
        Part("eight", streams(8, 128, 96), decode_rate),
        Part("prefill-512", lone_prompts(5, 512), prompt_time),
        Part("interference", spread_prompts(2, 13.0), interference, splits=True),
        Part("back-to-back", chained_prompts((1024,), back_to_back), interference, splits=True),
        *(Part(name, open_loop(name, open_seconds), goodput, splits=True) for name in ("poisson", "gamma", "trace")),
        Part("long-mix", chained_prompts((512, 2000, 7000), long_seconds), interference, splits=True),
    )
    return {part.name: part for part in every}


def _complete(records: Sequence[Record]) -> None:
    for record in records:
        if not record.ok or not record.token_times:
            raise UnusableError(record.error or "a stream brought no token")


def _ttft(record: Record) -> float:
    return record.token_times[0] - record.planned
