"""What a server's answers mean: records in, figures out. Pure. A figure's name ends with its unit."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from itertools import pairwise

from bench.cpu.plans import PROMPT, VICTIM, Workload
from bench.traffic import Record, gaps, quantile, summarise

Figures = Mapping[str, float]


class UnusableError(Exception):
    """The answers do not hold what the part wants to know; the message says what is missing."""


def decode_rate(workload: Workload, records: Sequence[Record]) -> Figures:
    """Tokens per second of all streams together while all of them run."""
    _complete(records)
    begin = max(record.token_times[0] for record in records)
    end = min(record.token_times[-1] for record in records)
    tokens = sum(begin < at <= end for record in records for at in record.token_times)
    if tokens < 16 * len(records):
        raise UnusableError(f"only {tokens} tokens while all {len(records)} streams ran")
    return {"tokens_per_s": tokens / (end - begin)}


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


def prompt_time(workload: Workload, records: Sequence[Record]) -> Figures:
    """TTFT of a prompt that is alone."""
    _complete(records)
    return {"ttft_ms": 1000 * statistics.median(_ttft(record) for record in records)}


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


def undisturbed(workload: Workload, records: Sequence[Record]) -> Figures:
    """Streams that nothing of ours disturbs: how far the longest of as many gaps is from the usual one here, all the
    same. Each stream's first second does not count, nor that of the others beside it."""
    _complete(records)
    starts = [record.sent for record in records]
    found = [
        after - before
        for record in records
        for before, after in pairwise(record.token_times)
        if not any(start < after and before < start + 1.0 for start in starts)
    ]
    if len(found) < 8:
        raise UnusableError(f"only {len(found)} gaps outside the streams' first seconds")
    usual, longest = statistics.median(found), max(found)
    return {
        "quiet_gap_ms": 1000 * usual,
        "longest_gap_ms": 1000 * longest,
        "longest_gap_ratio": longest / usual,
        "p999_gap_ms": 1000 * (quantile(found, 99.9) or 0.0),
    }


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


def _complete(records: Sequence[Record]) -> None:
    for record in records:
        if not record.ok or not record.token_times:
            raise UnusableError(record.error or "a stream brought no token")


def _ended(record: Record) -> float:
    return record.ended if record.ended is not None else max([record.sent, *record.token_times])


def _ttft(record: Record) -> float:
    return record.token_times[0] - record.planned
