"""Every metric of the engine, in one place: vLLM's names, which dashboards and routers expect, and ours.

Values come from this process's own view: what clients sent, `RequestOutput`s and `CoreState`s. Knows no HTTP.
All times are CLOCK_MONOTONIC seconds, which processes of one machine share; TTFT is stamped by core.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.registry import Collector

from semipd_engine.ipc.requests import CoreState

TTFT_BUCKETS = (
    *(0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80, 160, 640, 2560),
)
ITL_BUCKETS = (
    *(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75),
    *(1, 2.5, 5, 7.5, 10, 20, 40, 80),
)
LATENCY_BUCKETS = (*(0.3, 0.5, 0.8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 40, 50, 60, 120, 240, 480, 960, 1920, 7680),)
TOKEN_BUCKETS = tuple(float(mantissa * 10**power) for power in range(6) for mantissa in (1, 2, 5))
CHOICES_BUCKETS = (1, 2, 5, 10, 20)

Kind = Literal["gauge", "counter", "histogram"]


@dataclass(frozen=True)
class Metric:
    """One series as a scrape shows it. `labels` come on top of model_name."""

    name: str
    kind: Kind
    help: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()


METRICS: tuple[Metric, ...] = (
    Metric("vllm:num_requests_running", "gauge", "Requests in prefill or decode."),
    Metric("vllm:num_requests_waiting", "gauge", "Requests waiting for their first prefill step."),
    Metric("vllm:kv_cache_usage_perc", "gauge", "Part of the KV blocks in use, 0 to 1; cached blocks count as free."),
    Metric("vllm:cache_config_info", "gauge", "Always 1; the KV cache's form.", ("block_size", "num_gpu_blocks")),
    Metric("vllm:prompt_tokens_total", "counter", "Prompt tokens of requests that reached their first token."),
    Metric("vllm:generation_tokens_total", "counter", "Output tokens."),
    Metric("vllm:request_success_total", "counter", "Finished sequences by reason.", ("finished_reason",)),
    Metric("vllm:num_preemptions_total", "counter", "Sequences that lost their KV blocks and were computed again."),
    Metric("vllm:prefix_cache_queries_total", "counter", "Prompt tokens looked up in the prefix cache."),
    Metric("vllm:prefix_cache_hits_total", "counter", "Prompt tokens found in the prefix cache."),
    Metric("vllm:time_to_first_token_seconds", "histogram", "From receipt to the first token.", buckets=TTFT_BUCKETS),
    Metric("vllm:inter_token_latency_seconds", "histogram", "Between two tokens of a sequence.", buckets=ITL_BUCKETS),
    Metric(
        "vllm:request_time_per_output_token_seconds",
        "histogram",
        "Mean time per output token of a sequence, without the first.",
        buckets=ITL_BUCKETS,
    ),
    Metric("vllm:e2e_request_latency_seconds", "histogram", "From receipt to the last token.", buckets=LATENCY_BUCKETS),
    Metric(
        "vllm:request_queue_time_seconds",
        "histogram",
        "From receipt to the first prefill step.",
        buckets=LATENCY_BUCKETS,
    ),
    Metric(
        "vllm:request_prefill_time_seconds",
        "histogram",
        "From the first prefill step to the first token.",
        buckets=LATENCY_BUCKETS,
    ),
    Metric(
        "vllm:request_decode_time_seconds",
        "histogram",
        "From the first token to the last.",
        buckets=LATENCY_BUCKETS,
    ),
    Metric(
        "vllm:request_inference_time_seconds",
        "histogram",
        "From the first prefill step to the last token.",
        buckets=LATENCY_BUCKETS,
    ),
    Metric("vllm:request_prompt_tokens", "histogram", "Prompt tokens of a sequence.", buckets=TOKEN_BUCKETS),
    Metric("vllm:request_generation_tokens", "histogram", "Output tokens of a sequence.", buckets=TOKEN_BUCKETS),
    Metric(
        "vllm:request_max_num_generation_tokens",
        "histogram",
        "Longest output among a request's choices, tokens.",
        buckets=TOKEN_BUCKETS,
    ),
    Metric("vllm:request_params_n", "histogram", "The parameter n.", buckets=CHOICES_BUCKETS),
    Metric("vllm:request_params_max_tokens", "histogram", "The parameter max_tokens.", buckets=TOKEN_BUCKETS),
    Metric(
        "vllm:iteration_tokens_total",
        "histogram",
        "Tokens of one report of core: output tokens, and the prompts whose first token is in it.",
        buckets=TOKEN_BUCKETS,
    ),
    Metric("semipd_requests", "gauge", "Sequences in core by phase: waiting, prefill, decode.", ("phase",)),
    Metric(
        "semipd_longest_silence_seconds",
        "gauge",
        "What suffers most just now: the first token that has been waited for longest, the stream silent for longest.",
        ("phase",),
    ),
    Metric("semipd_kv_blocks", "gauge", "KV blocks by state: free, used, cached, quarantined.", ("state",)),
    Metric("semipd_kernels_info", "gauge", "Always 1; what computes: reference, or a CPU's level.", ("kernels",)),
    Metric(
        "semipd_partition_percent",
        "gauge",
        'Share of the device by phase that the engine routes steps by (value="in_force"); no proof that it holds.',
        ("phase", "value"),
    ),
    Metric(
        "semipd_kv_accounting_faults_total",
        "counter",
        "Times that the block counts did not add up: a defect, healed by computing running requests again.",
    ),
    Metric("semipd_splits_applied_total", "counter", "Changes of the split that the engine put in force."),
    Metric("semipd_admitting", "gauge", "1 while new requests are admitted."),
    Metric("semipd_core_connected", "gauge", "1 while the scheduler is connected."),
    Metric("semipd_core_outages_total", "counter", "Times the scheduler went away."),
    Metric(
        "semipd_ttft_target_misses_total",
        "counter",
        "Sequences whose first token came later than their own x-slo-ttft-ms.",
    ),
    Metric(
        "semipd_tpot_target_misses_total",
        "counter",
        "Sequences that took longer for a token, on average, than their own x-slo-tpot-ms.",
    ),
    Metric(
        "semipd_slo_wishes_ignored_total",
        "counter",
        "Wishes (x-slo-ttft-ms, x-slo-tpot-ms) that were stricter than the SLO, or that nothing can serve.",
        ("slo",),
    ),
    Metric("semipd_max_stall_seconds", "gauge", "The bound of --max-stall-ms; 0: there is none."),
    Metric(
        "semipd_stalls_total",
        "counter",
        "Times that a stream had no token (decode), or an admitted prompt no step (prefill), for longer than that.",
        ("phase",),
    ),
    Metric(
        "semipd_expired_requests_total",
        "counter",
        "Requests that were ended because their time was over (x-request-timeout-ms, --request-timeout).",
    ),
    Metric(
        "semipd_requests_with_unknown_fields_total",
        "counter",
        "Requests with fields that nobody here knows or reads; the answer's header x-semipd-unknown-fields names them.",
    ),
    Metric(
        "semipd_rejected_requests_total",
        "counter",
        "Requests answered without being run, by reason: invalid, auth, not_found, too_long, queue_full, ttft_target, "
        "tpot_target, unavailable.",
        ("reason",),
    ),
    Metric(
        "semipd_admission_gate",
        "gauge",
        "1 while those are refused who would miss this target of the SLO, or make others miss it (spec.admission).",
        ("slo",),
    ),
)


class EngineMetrics:
    """The registry of one api process. Label model_name is bound once."""

    def __init__(self, model_name: str, block_size: int) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]  # a second series for each counter, which nobody reads
        self._registry = CollectorRegistry(auto_describe=False)
        self._model = model_name
        self._block_size = str(block_size)
        self._collectors: dict[str, Collector] = {}
        for metric in METRICS:
            self._collectors[metric.name] = self._create(metric)
        self._seen: dict[tuple[str, ...], int] = {}

    def _create(self, metric: Metric) -> Collector:
        labels = ("model_name", *metric.labels)
        if metric.kind == "gauge":
            return Gauge(metric.name, metric.help, labels, registry=self._registry)
        if metric.kind == "counter":
            return Counter(metric.name, metric.help, labels, registry=self._registry)
        return Histogram(metric.name, metric.help, labels, registry=self._registry, buckets=metric.buckets)

    def set(self, name: str, value: float, *labels: str) -> None:
        gauge = self._collectors[name]
        assert isinstance(gauge, Gauge)
        gauge.labels(self._model, *labels).set(value)

    def count(self, name: str, amount: float = 1, *labels: str) -> None:
        counter = self._collectors[name]
        assert isinstance(counter, Counter)
        counter.labels(self._model, *labels).inc(amount)

    def observe(self, name: str, value: float, times: int = 1) -> None:
        histogram = self._collectors[name]
        assert isinstance(histogram, Histogram)
        child = histogram.labels(self._model)
        for _ in range(times):
            child.observe(value)

    def core_connected(self, connected: bool) -> None:
        self.set("semipd_core_connected", connected)
        if connected:
            self._seen = {}  # a new core counts from zero
        else:
            self.count("semipd_core_outages_total")

    def core_state(self, state: CoreState) -> None:
        self.set("vllm:num_requests_running", state.prefilling + state.decoding)
        self.set("vllm:num_requests_waiting", state.waiting)
        occupied = state.blocks_used + state.blocks_quarantined
        self.set("vllm:kv_cache_usage_perc", occupied / state.blocks_total if state.blocks_total else 0)
        self._show_info("vllm:cache_config_info", state.blocks_total, self._block_size, str(state.blocks_total))
        self._show_info("semipd_kernels_info", state.kernels, state.kernels)
        for phase, number in (("waiting", state.waiting), ("prefill", state.prefilling), ("decode", state.decoding)):
            self.set("semipd_requests", number, phase)
        self.set("semipd_longest_silence_seconds", state.longest_wait_seconds, "prefill")
        self.set("semipd_longest_silence_seconds", state.longest_gap_seconds, "decode")
        for name in ("free", "used", "cached", "quarantined"):
            self.set("semipd_kv_blocks", getattr(state, f"blocks_{name}"), name)
        self.set("semipd_partition_percent", state.prefill_percent, "prefill", "in_force")
        self.set("semipd_partition_percent", state.decode_percent, "decode", "in_force")
        self.set("semipd_max_stall_seconds", state.max_stall_seconds)
        self.set("semipd_admission_gate", state.gate.ttft_seconds > 0, "ttft")
        self.set("semipd_admission_gate", state.gate.most_in_work > 0, "tpot")
        for series, total in (
            (("vllm:prefix_cache_queries_total",), state.prefix_queries_tokens),
            (("vllm:prefix_cache_hits_total",), state.prefix_hits_tokens),
            (("vllm:num_preemptions_total",), state.preemptions),
            (("semipd_kv_accounting_faults_total",), state.accounting_faults),
            (("semipd_splits_applied_total",), state.splits_applied),
            (("semipd_stalls_total", "prefill"), state.stalls_prefill),
            (("semipd_stalls_total", "decode"), state.stalls_decode),
            (("semipd_slo_wishes_ignored_total", "ttft"), state.wishes_ignored_ttft),
            (("semipd_slo_wishes_ignored_total", "tpot"), state.wishes_ignored_tpot),
        ):
            name, *labels = series
            self.count(name, max(0, total - self._seen.get(series, 0)), *labels)
            self._seen[series] = total

    def _show_info(self, name: str, known: object, *labels: str) -> None:
        """One series only, once it is `known`: the labels are the information."""
        gauge = self._collectors[name]
        assert isinstance(gauge, Gauge)
        gauge.clear()
        if known:
            gauge.labels(self._model, *labels).set(1)

    def render(self) -> bytes:
        """The text exposition format."""
        return generate_latest(self._registry)
