"""Auto under recorded traffic, on a real cluster: conversation, code, conversation, then a constant load.

Measures the single-request latency and the capacity of one pod first, sets targets at 7.5 times the one and the load at
70 % of the other, replays both Azure traces (time and lengths scaled to the model) and watches the custom resource.
Writes OUT/auto_split.json and OUT/auto_split.png; exits 1 if the split did not follow.

    make bench-auto            (about 20 minutes; ARGS="--constant 0" leaves out the constant load)
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from bench import usage
from bench.auto_split_plot import plot
from bench.deployment import deployed
from bench.traffic import Record, Request, Summary, Target, prompt_ids, read_trace, replay, summarise, trace_plan
from bench.traffic.plan import TRACES
from bench.usage import folder, guarded, made
from e2e.lib import models
from e2e.lib.kube import Kube, Object
from e2e.lib.service import Service, manual, spec
from semipd_agent.contract import Policy
from semipd_engine.usage import Parser

ROOT = Path(__file__).resolve().parents[1]
SLO_SCALE, LOAD, MAX_PROMPT, MAX_OUTPUT = 7.5, 0.7, 1_024, 128
RISES_WITHIN_S = 20.0
SETTLE_S = 5.0
WINDOW_S = 35.0
"""Longer than any window of the policy: what the measurements left in it must be gone."""
ENGINE = {
    "kvCacheMemory": "1Gi",
    "resources": {"requests": {"cpu": "100m", "memory": "512Mi"}, "limits": {"memory": "4Gi"}},
}
"""Room for every request of a burst: with too small a cache, requests wait for blocks, and no split mends that."""
ORDER = (("conv", 1), ("code", 2), ("conv", 3))
"""The stretches: trace and seed."""
THINNING = 16
"""Every 16th request of a trace: so few in so short a time would else be one burst and a silence."""


@dataclass(frozen=True)
class Sample:
    """What the custom resource showed, seconds after the replay's start."""

    at: float
    prefill: int | None
    decode: int | None
    summary: Object


@dataclass
class Result:
    settings: Object
    slo: Object = field(default_factory=dict)
    latency: Object = field(default_factory=dict)
    capacity: dict[str, Object] = field(default_factory=dict)
    turns: list[tuple[str, float]] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)
    decisions: list[Object] = field(default_factory=list)
    phases: dict[str, Object] = field(default_factory=dict)
    constant: Object = field(default_factory=dict)
    verdicts: dict[str, bool] = field(default_factory=dict)


def traces() -> dict[str, list[Any]]:
    return {name: read_trace(TRACES / f"azure2023_{name}.csv.gz") for name in ("conv", "code")}


def stretch(rows: list[Any], rate: float, seconds: float, scale: float, **rest: Any) -> list[Request]:
    limits: dict[str, Any] = {"max_prompt": MAX_PROMPT, "max_output": MAX_OUTPUT, **rest}
    return trace_plan(rows[::THINNING], rate=rate, seconds=seconds, length_scale=scale, **limits)


def measure_latency(url: str, tables: dict[str, list[Any]], scale: float, count: int) -> Object:
    """Mean TTFT and TPOT in ms of requests that are alone, of both traces."""
    wanted = [stretch(rows, 1, count, scale, seed=11) for rows in tables.values()]
    records = [_run(url, [replace(request, at=0.0)])[0] for plan in wanted for request in plan]
    assert all(record.ok for record in records), [record.error for record in records]
    ttft = statistics.mean(record.ttft or 0.0 for record in records)
    tpot = statistics.mean(record.tpot for record in records if record.tpot is not None)
    return {"ttft_ms": round(ttft * 1e3, 1), "tpot_ms": round(tpot * 1e3, 1), "requests": len(records)}


def measure_capacity(url: str, plan: list[Request], count: int, target: Target) -> Object:
    """What one pod serves within the targets: requests per second at the most of 2, 4, 8 or 16 requests in flight all
    the time whose 90th percentiles meet both. Lengths are the plan's; the prompts are new each time, so that no cached
    prefix helps."""
    capacity: Object = {}
    for in_flight in (2, 4, 8, 16):
        queue = [
            replace(request, at=0.0, prompt=prompt_ids(len(request.prompt), seed=number + 1000 * in_flight))
            for number, request in enumerate(plan[:: max(1, len(plan) // count)])
        ]
        records = asyncio.run(_closed_loop(url, queue, in_flight))
        done = sorted(record.token_times[-1] for record in records)
        first, last = len(done) // 4, len(done) * 3 // 4
        found = {"in_flight": in_flight, "per_second": round((last - first) / (done[last] - done[first]), 3)}
        summary = summarise(records, target)
        _say(f"{found}: {_line(summary)}")
        assert summary.ttft and summary.tpot and target.ttft and target.tpot
        if capacity and (summary.ttft.p90 > target.ttft or summary.tpot.p90 > target.tpot):
            break
        capacity = found
    return capacity


async def _closed_loop(url: str, queue: list[Request], in_flight: int) -> list[Record]:
    """Serve the queue with so many at once. The records' times are CLOCK_MONOTONIC seconds."""
    records: list[Record] = []

    async def client() -> None:
        while queue:
            request, began = queue.pop(), time.monotonic()
            [record] = await replay([request], url, model="model")
            assert record.ok, record.error
            times = tuple(began + at for at in record.token_times)
            records.append(replace(record, planned=began, sent=began + record.sent, token_times=times))

    await asyncio.gather(*(client() for _ in range(in_flight)))
    return records


class Watch(threading.Thread):
    """Reads the custom resource once a second."""

    def __init__(self, service: Service) -> None:
        super().__init__(name="watch", daemon=True)
        self._service, self._end = service, threading.Event()
        self.start_time = time.monotonic()
        self.samples: list[Sample] = []
        self.decisions: dict[tuple[str, str], Object] = {}

    def run(self) -> None:
        while not self._end.wait(1.0):
            status = self._service.status()
            at = time.monotonic() - self.start_time
            applied = status["partition"].get("applied") or {}
            shares = applied.get("prefillPercent"), applied.get("decodePercent")
            self.samples.append(Sample(round(at, 2), *shares, status.get("slo") or {}))
            for decision in status["partition"]["decisions"]:
                known = self.decisions.setdefault((decision["pod"], decision["time"]), decision | {"seen_at": at})
                known.update(decision)

    def stop(self) -> None:
        self._end.set()
        self.join()


def _run(url: str, plan: Sequence[Request]) -> list[Record]:
    return asyncio.run(replay(plan, url, model="model"))


def bench(cluster: Kube, service: Service, arguments: argparse.Namespace, result: Result) -> list[Record]:
    tables, scale, url = traces(), arguments.length_scale, service.url()
    with cluster.network():
        _run(url, stretch(tables["conv"], 1, 4, scale, seed=10))  # warm
        result.latency = measure_latency(url, tables, scale, arguments.singles)
        _say(f"alone: {result.latency}")
        target = Target(*(round(SLO_SCALE * result.latency[name]) for name in ("ttft_ms", "tpot_ms")))
        result.slo = {"ttftMilliseconds": target.ttft, "tpotMilliseconds": target.tpot, "windowSeconds": 60}
        _say(f"targets: {result.slo}")
        for name, seed in ORDER[:2]:
            plan = stretch(tables[name], 1.5, arguments.phase_seconds, scale, seed=seed)
            result.capacity[name] = measure_capacity(url, plan, arguments.capacity_requests, target)
    _say(f"capacity within the targets: {result.capacity}; load {LOAD:.0%} of it")
    auto = {"mode": "Auto", "policy": arguments.policy, "prefillPercent": None, "decodePercent": None}
    time.sleep(WINDOW_S)
    service.patch({"slo": result.slo, "partition": auto})
    service.wait_ready(60)
    plan = []
    for number, (name, seed) in enumerate(ORDER):
        start = SETTLE_S + number * arguments.phase_seconds
        result.turns.append((name, start))
        options = {"seed": seed, "label": f"{number + 1} {name}", "start": start}
        rate = LOAD * result.capacity[name]["per_second"]
        plan += stretch(tables[name], rate, arguments.phase_seconds, scale, **options)
    watch = Watch(service)
    watch.start()
    with cluster.network():
        records = _run(url, plan)
    watch.stop()
    result.samples = watch.samples
    result.decisions = sorted(watch.decisions.values(), key=lambda decision: str(decision["time"]))
    for label in sorted({record.label for record in records}):
        summary = summarise([record for record in records if record.label == label], target)
        result.phases[label] = asdict(summary)
        _say(f"{label}: {_line(summary)}")
    if arguments.constant:
        result.constant = constant(cluster, service, arguments, result, tables)
    return records


def constant(
    cluster: Kube, service: Service, arguments: argparse.Namespace, result: Result, tables: dict[str, list[Any]]
) -> Object:
    """Moves under a load that does not change: Poisson arrivals of the conversation trace's mean shape."""
    from bench.traffic import poisson_plan

    rows, scale = tables["conv"], arguments.length_scale
    prompt = round(min(MAX_PROMPT, scale * statistics.mean(row.input_tokens for row in rows)))
    output = round(min(MAX_OUTPUT, scale * statistics.mean(row.output_tokens for row in rows)))
    rate = LOAD * result.capacity["conv"]["per_second"]
    plan = poisson_plan(rate, arguments.constant, prompt_tokens=prompt, max_tokens=output, seed=21)
    watch = Watch(service)
    before = {(d["pod"], d["time"]) for d in service.status()["partition"]["decisions"]}
    watch.start()
    with cluster.network():
        records = _run(service.url(), plan)
    watch.stop()
    # The last turn's evidence is still in the window for half a minute: its move is not the constant load's.
    moves = [d for key, d in watch.decisions.items() if key not in before and d["seen_at"] > 30]
    _say(f"constant: {len(moves)} moves in {arguments.constant} s; {_line(summarise(records))}")
    return {"seconds": arguments.constant, "moves": moves, "summary": asdict(summarise(records))}


def judge(result: Result) -> None:
    shares = [(s.at, s.prefill / (s.prefill + s.decode)) for s in result.samples if s.prefill and s.decode]
    (_, turn), (_, back) = result.turns[1:]

    def last_before(moment: float) -> float:
        return [share for at, share in shares if at <= moment][-1]

    rises = [at - turn for at, share in shares if turn < at <= back and share > last_before(turn)]
    highest = max(share for at, share in shares if turn < at <= back + SETTLE_S)
    falls = [at - back for at, share in shares if at > back and share < highest]
    result.verdicts = {
        "prefill's share rises within 20 s of the first turn": bool(rises) and rises[0] <= RISES_WITHIN_S,
        "it falls after the second": bool(falls),
        "every decision is explained": all(
            decision.get(name) not in (None, "")
            for decision in result.decisions
            if decision["reason"] != "ManualChange"  # the patch that turned Auto on
            for name in ("from", "to", "reason", "observedMilliseconds", "targetMilliseconds", "pod")
        ),
    }
    if result.constant:
        allowed = max(1.0, result.constant["seconds"] / 600)
        result.verdicts["at most 1 move in 10 constant minutes"] = len(result.constant["moves"]) <= allowed
    if rises:
        _say(f"rose {rises[0]:.0f} s after the first turn")
    if falls:
        _say(f"fell {falls[0]:.0f} s after the second turn")


def _line(summary: Summary) -> str:
    p90 = {name: getattr(summary, name) for name in ("ttft", "tpot")}
    shown = ", ".join(f"p90 {name} {found.p90:.0f} ms" for name, found in p90.items() if found)
    met = "" if summary.attainment_percent is None else f", {summary.attainment_percent:.0f} % met both targets"
    return f"{summary.ok}/{summary.requests} ok, {shown}{met}"


def _say(text: str) -> None:
    print(f"auto_split: {text}", flush=True)


def main(words: Sequence[str] | None = None) -> int:
    raw = argparse.RawDescriptionHelpFormatter
    parser = Parser(prog="bench.auto_split", description=__doc__, formatter_class=raw)
    parser.add_argument("--policy", choices=[policy.value for policy in Policy], default=Policy.ALGORITHM1.value)
    parser.add_argument("--phase-seconds", type=usage.number, default=150)
    parser.add_argument("--constant", type=usage.at_least(0), default=600, help="seconds of constant load; 0: none")
    parser.add_argument("--length-scale", type=usage.number, default=0.12, help="of the traces' prompts and outputs")
    parser.add_argument("--singles", type=usage.count, default=8, help="requests of each trace for the latency alone")
    parser.add_argument(
        "--capacity-requests", type=usage.count, default=64, help="requests of each trace for the capacity"
    )
    parser.add_argument("--out", type=folder, default=str(ROOT / "out"))
    arguments = parser.parse_args(words)
    return guarded(parser.prog, lambda: carried_out(arguments))


def carried_out(arguments: argparse.Namespace) -> int:
    """Raises `RefusedError`."""
    settings = {name: str(value) for name, value in vars(arguments).items() if name != "out"}
    result, model = Result(settings), made("SmolLM2-135M", models.smollm2)
    with deployed("auto", spec(model.name, engine=ENGINE, partition=manual(100, 100))) as service:
        records = bench(service.cluster, service, arguments, result)
    judge(result)
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "auto_split.json").write_text(json.dumps(asdict(result), indent=1))
    plot(result.samples, records, result.turns, result.slo, arguments.out / "auto_split.png")
    for claim, holds in result.verdicts.items():
        print(f"{'PASS' if holds else 'FAIL'}  {claim}")
    print(f"see {arguments.out / 'auto_split.json'} and auto_split.png")
    return 0 if all(result.verdicts.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
