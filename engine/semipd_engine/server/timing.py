"""What is measured of a sequence: its first token, each later one, and, once it has ended well, all of it.

Knows the metrics' names and a client's wishes; routes nothing. Times are CLOCK_MONOTONIC seconds.
"""

from __future__ import annotations

from semipd_engine.server.metrics import EngineMetrics
from semipd_engine.server.sequence import Sequence
from semipd_engine.server.terms import Terms


def tokens_came(
    metrics: EngineMetrics, sequence: Sequence, tokens: int, now: float, received_at: float, terms: Terms
) -> bool:
    """So many more (not none). Returns whether the first of all was among them: then its prompt counts, too."""
    metrics.count("vllm:generation_tokens_total", tokens)
    before, sequence.last_token_at = sequence.last_token_at, now
    if before is not None:
        metrics.observe("vllm:inter_token_latency_seconds", (now - before) / tokens, tokens)
        return False
    first = now if sequence.first_token_at is None else sequence.first_token_at
    metrics.observe("vllm:time_to_first_token_seconds", first - received_at)
    if terms.ttft_target is not None and first - received_at > terms.ttft_target:
        metrics.count("semipd_ttft_target_misses_total")
    metrics.count("vllm:prompt_tokens_total", sequence.prompt_tokens)
    if tokens == 1:
        sequence.last_token_at = first
    else:
        metrics.observe("vllm:inter_token_latency_seconds", (now - first) / (tokens - 1), tokens - 1)
    return True


def ended(metrics: EngineMetrics, sequence: Sequence, reason: str, received_at: float, terms: Terms) -> None:
    """One that failed or left counts only as such: its times mean nothing."""
    metrics.count("vllm:request_success_total", 1, reason)
    if reason not in ("stop", "length"):
        return
    metrics.observe("vllm:request_prompt_tokens", sequence.prompt_tokens)
    metrics.observe("vllm:request_generation_tokens", sequence.output_tokens)
    first, last, scheduled = sequence.first_token_at, sequence.last_token_at, sequence.scheduled_at
    if first is None or last is None:
        return
    metrics.observe("vllm:e2e_request_latency_seconds", last - received_at)
    metrics.observe("vllm:request_decode_time_seconds", last - first)
    if sequence.output_tokens > 1:
        mean = (last - first) / (sequence.output_tokens - 1)
        metrics.observe("vllm:request_time_per_output_token_seconds", mean)
        if terms.tpot_target is not None and mean > terms.tpot_target:
            metrics.count("semipd_tpot_target_misses_total")
    if scheduled is not None:
        metrics.observe("vllm:request_queue_time_seconds", scheduled - received_at)
        metrics.observe("vllm:request_prefill_time_seconds", first - scheduled)
        metrics.observe("vllm:request_inference_time_seconds", last - scheduled)
