"""Metric names against docs/metrics.md, and the values that a scrape of the real process shows."""

from __future__ import annotations

import asyncio
import re
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families
from tests.unit.server.api_process import Api

from e2e.lib.waiting import wait_until
from semipd_engine.ipc.requests import CoreState
from semipd_engine.server.metrics import METRICS, EngineMetrics

pytestmark = pytest.mark.unit

DOCS = Path(__file__).parents[3] / "docs" / "metrics.md"
GAP = 0.2
"""Seconds that a first token is kept back at least, and the next one again."""


def scrape(text: str) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def value(api: Api, name: str, **labels: str) -> float:
    return scrape(api.metrics()).get((name, frozenset((labels | {"model_name": "letters"}).items())), 0.0)


def apart(api: Api, prompt: Any, max_tokens: int) -> tuple[dict[str, Any], float]:
    """The answer and the seconds it took: `GAP` from the request to its first output, and as much to the others. A
    machine that stands still makes them longer, and none of them shorter."""
    first = "vllm:time_to_first_token_seconds_count"
    before, api.core.steps = value(api, first), asyncio.Semaphore(0)
    with ThreadPoolExecutor(1) as pool:
        began = time.monotonic()
        asked = pool.submit(api.complete, prompt, max_tokens=max_tokens)
        wait_until(lambda: api.core.added)
        time.sleep(GAP)
        api.core.step()
        wait_until(lambda: value(api, first) > before)
        time.sleep(GAP)
        for _ in range(1, max_tokens):
            api.core.step()
        return asked.result().json(), time.monotonic() - began


def test_docs_list_exactly_the_metrics() -> None:
    section = DOCS.read_text().partition("## Of the agent")[0]
    rows = re.findall(r"^\| `(\S+)` \| (\w+) \| (.*?) \| (.*) \|$", section, re.MULTILINE)
    documented = {name: (kind, labels, text) for name, kind, labels, text in rows}
    for metric in METRICS:
        labels = ", ".join(f"`{label}`" for label in metric.labels) or "–"
        assert documented.pop(metric.name, None) == (metric.kind, labels, metric.help), metric.name
    assert not documented


def test_every_metric_is_exported_under_its_name() -> None:
    metrics = EngineMetrics("m", 16)
    text = metrics.render().decode()
    for metric in METRICS:
        base = metric.name.removesuffix("_total") if metric.kind == "counter" else metric.name
        assert re.search(rf"^# TYPE {metric.name} {metric.kind}$|^# TYPE {base} {metric.kind}$", text, re.MULTILINE)
    assert "_created" not in text


def test_a_restarted_core_does_not_make_counters_fall() -> None:
    metrics = EngineMetrics("m", 16)
    name = ("vllm:prefix_cache_queries_total", frozenset({("model_name", "m")}))
    state = CoreState(ready=True, state="ready", prefix_queries_tokens=70)
    metrics.core_connected(True)
    metrics.core_state(state)
    metrics.core_state(state)
    assert scrape(metrics.render().decode())[name] == 70
    metrics.core_connected(False)
    metrics.core_connected(True)
    metrics.core_state(CoreState(ready=True, state="ready", prefix_queries_tokens=5))
    assert scrape(metrics.render().decode())[name] == 75


def test_state_of_core_is_shown(api: Api) -> None:
    before = api.core.state
    api.core.set_state(
        waiting=3,
        prefilling=2,
        decoding=5,
        longest_wait_seconds=1.5,
        longest_gap_seconds=0.25,
        prefill_percent=60,
        decode_percent=80,
        blocks_total=40,
        blocks_free=10,
        blocks_used=18,
        blocks_cached=10,
        blocks_quarantined=2,
    )
    wait_until(lambda: value(api, "vllm:num_requests_waiting") == 3)
    assert value(api, "vllm:num_requests_running") == 7
    assert value(api, "vllm:kv_cache_usage_perc") == 0.5
    assert value(api, "vllm:cache_config_info", block_size="16", num_gpu_blocks="40") == 1
    assert value(api, "semipd_partition_percent", phase="prefill", value="in_force") == 60
    assert value(api, "semipd_partition_percent", phase="decode", value="in_force") == 80
    silence = [value(api, "semipd_longest_silence_seconds", phase=phase) for phase in ("prefill", "decode")]
    assert silence == [1.5, 0.25]
    shown = {state: value(api, "semipd_kv_blocks", state=state) for state in ("free", "used", "cached", "quarantined")}
    assert shown == {"free": 10, "used": 18, "cached": 10, "quarantined": 2}
    assert value(api, "semipd_admitting") == value(api, "semipd_core_connected") == 1
    api.core.state = before
    api.core.set_state()


def test_a_request_leaves_its_times_and_counts(api: Api) -> None:
    names = [
        *("vllm:time_to_first_token_seconds", "vllm:e2e_request_latency_seconds", "vllm:request_queue_time_seconds"),
        *(
            "vllm:request_prefill_time_seconds",
            "vllm:request_decode_time_seconds",
            "vllm:request_inference_time_seconds",
        ),
        *("vllm:request_time_per_output_token_seconds", "vllm:request_prompt_tokens", "vllm:request_generation_tokens"),
        *("vllm:request_max_num_generation_tokens", "vllm:request_params_n", "vllm:request_params_max_tokens"),
    ]
    counted = {name: value(api, f"{name}_count") for name in names}
    inter = value(api, "vllm:inter_token_latency_seconds_count"), value(api, "vllm:inter_token_latency_seconds_sum")
    ttft, tokens = value(api, "vllm:time_to_first_token_seconds_sum"), value(api, "vllm:generation_tokens_total")
    prompts, done = (
        value(api, "vllm:prompt_tokens_total"),
        value(api, "vllm:request_success_total", finished_reason="length"),
    )
    answer, took = apart(api, [5, 6, 7], max_tokens=10)
    assert answer["usage"]["completion_tokens"] == 10
    assert {name: value(api, f"{name}_count") - counted[name] for name in names} == dict.fromkeys(names, 1)
    assert value(api, "vllm:inter_token_latency_seconds_count") - inter[0] == 9
    assert GAP < value(api, "vllm:inter_token_latency_seconds_sum") - inter[1] < took - GAP
    assert GAP < value(api, "vllm:time_to_first_token_seconds_sum") - ttft < took - GAP
    assert value(api, "vllm:generation_tokens_total") - tokens == 10
    assert value(api, "vllm:prompt_tokens_total") - prompts == 3
    assert value(api, "vllm:request_success_total", finished_reason="length") - done == 1


def test_batched_outputs_keep_the_mean_gap(api: Api) -> None:
    count, total = (value(api, f"vllm:inter_token_latency_seconds_{part}") for part in ("count", "sum"))
    api.core.tokens_per_output = 5
    _, took = apart(api, "The quick", max_tokens=20)
    assert value(api, "vllm:inter_token_latency_seconds_count") - count == 19
    assert GAP < value(api, "vllm:inter_token_latency_seconds_sum") - total < took - GAP


def test_refusals_are_counted(api: Api) -> None:
    def counts() -> list[float]:
        reasons = ("invalid", "not_found", "too_long")
        return [value(api, "semipd_rejected_requests_total", reason=reason) for reason in reasons]

    before = counts()
    api.complete(temperature=-1)
    api.complete(model="other")
    api.complete([5] * 300)
    assert [after - old for after, old in zip(counts(), before, strict=True)] == [1, 1, 1]
