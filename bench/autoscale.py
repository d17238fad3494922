"""Replicas under a load that rises, stays for minutes and ends, with Kubernetes' own HPA controller.

One pod's prompt is timed alone; then prompts come at a Poisson rate that is too much for one pod by the target of
`spec.autoscaling`. Writes OUT/autoscale.json and .png; exits 1 unless the second pod comes, the number of pods stays
for the constant minutes, it goes back to one, and no request is lost.

    make bench-scale            (about 15 minutes)
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
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from bench.deployment import deployed
from bench.traffic import Request, poisson_plan, prompt_ids, replay, summarise
from bench.usage import folder, guarded, made, number
from e2e.lib import models
from e2e.lib.kube import Object
from e2e.lib.service import Service, manual, spec
from e2e.lib.waiting import wait_until
from semipd_engine.usage import Parser

ROOT = Path(__file__).resolve().parents[1]
PROMPT_TOKENS, OUTPUT_TOKENS = 128, 1
LOAD, TARGET_PERCENT = 0.75, 60
"""Prompts per service time of one alone: more than the target allows one pod, and too little for three."""
SLO_SCALE, MAX_PODS = 7.5, 3
POD = {"cpu": "600m", "memory": "3Gi"}
"""Limits of a pod: three fit into two cores, so another pod brings another 0.6 of a core."""
SETTLE_S = 60
"""After the second pod serves: what the ratio still remembers of the rise."""
BACK_WITHIN_S = 300


@dataclass(frozen=True)
class Sample:
    """Seconds since the load began, and the custom resource and its autoscaler at that time."""

    at: float
    wanted: int
    ready: int
    metric: str
    """The capacity ratio, a mean over the pods, as the HPA last read it: a Kubernetes quantity."""


class Watch(threading.Thread):
    """Reads both every two seconds."""

    def __init__(self, service: Service) -> None:
        super().__init__(name="watch", daemon=True)
        self._service, self._end = service, threading.Event()
        self.began = time.monotonic()
        self.samples: list[Sample] = []

    def run(self) -> None:
        while not self._end.wait(2.0):
            obj = self._service.get()
            status = self._service.cluster.get("hpa", self._service.name, self._service.namespace).get("status", {})
            metrics = [metric for metric in status.get("currentMetrics") or [] if metric]
            read = [metric["external"]["current"]["averageValue"] for metric in metrics]
            ready = (obj.get("status") or {}).get("readyReplicas", 0)
            at = round(time.monotonic() - self.began, 1)
            self.samples.append(Sample(at, obj["spec"]["replicas"], ready, read[0] if read else ""))

    def stop(self) -> None:
        self._end.set()
        self.join()


def specification(slo: Object | None = None) -> Object:
    behavior = {
        "scaleUp": {"stabilizationWindowSeconds": 30},
        "scaleDown": {
            "stabilizationWindowSeconds": 120,
            "policies": [{"type": "Pods", "value": 1, "periodSeconds": 15}],
        },
    }
    scaling = {"maxReplicas": MAX_PODS, "targetUtilizationPercent": TARGET_PERCENT, "behavior": behavior}
    rest = {"slo": slo, "autoscaling": scaling} if slo else {}
    engine = {"resources": {"requests": POD, "limits": POD}}
    return spec(models.smollm2().name, engine=engine, partition=manual(50, 50), **rest)


def bench(service: Service, minutes: float) -> dict[str, Any]:
    cluster, url = service.cluster, service.url()
    with cluster.network():
        alone = [
            asyncio.run(replay([Request(0.0, OUTPUT_TOKENS, prompt_ids(PROMPT_TOKENS, seed=s))], url, model="model"))[0]
            for s in range(9)
        ]
    ttft = statistics.median(record.ttft or 0.0 for record in alone[1:])
    slo = {"ttftMilliseconds": round(SLO_SCALE * ttft * 1e3), "tpotMilliseconds": 60_000, "windowSeconds": 60}
    _say(f"alone: {ttft * 1e3:.0f} ms; targets {slo}; load {LOAD / ttft:.2f} prompts/s")
    service.apply(specification(slo))
    service.wait_condition("ScalingReady", "True", "ScalingActive", 60)
    seconds = 120 + SETTLE_S + 60 * minutes
    plan = poisson_plan(LOAD / ttft, seconds, prompt_tokens=PROMPT_TOKENS, max_tokens=OUTPUT_TOKENS, seed=31)
    watch = Watch(service)
    watch.start()
    with cluster.network():
        records = asyncio.run(replay(plan, url, model="model"))
    ended = time.monotonic() - watch.began
    try:
        wait_until(lambda: watch.samples[-1].wanted == watch.samples[-1].ready == 1, BACK_WITHIN_S, lambda: "", 1.0)
    except AssertionError:
        _say(f"not back to one pod within {BACK_WITHIN_S} s")
    watch.stop()
    lost = [record.error for record in records if not record.ok]
    return {"slo": slo, "ended": round(ended, 1), "lost": lost, "summary": asdict(summarise(records))} | judge(
        watch.samples, ended, lost
    )


def judge(samples: list[Sample], ended: float, lost: list[Any]) -> dict[str, Any]:
    up = next((s.at for s in samples if s.ready == s.wanted == 2), None)
    settled = [s for s in samples if up is not None and up + SETTLE_S <= s.at <= ended]
    changes = sum(a.wanted != b.wanted for a, b in pairwise(settled))
    down = next((round(s.at - ended, 1) for s in samples if s.at > ended and s.wanted == s.ready == 1), None)
    minutes = (settled[-1].at - settled[0].at) / 60 if settled else 0.0
    _say(f"two pods after {up} s; {changes} changes in {minutes:.1f} constant minutes; one pod {down} s after the end")
    return {
        "samples": [asdict(sample) for sample in samples],
        "up_seconds": up,
        "constant_minutes": round(minutes, 1),
        "changes": changes,
        "down_seconds": down,
        "verdicts": {
            "a second pod serves within 120 s": up is not None and up <= 120,
            "the number of pods stays under the constant load": bool(settled) and changes == 0,
            f"one pod remains within {BACK_WITHIN_S} s of its end": down is not None,
            "no request is lost": not lost,
        },
    }


def plot(found: dict[str, Any], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(10, 3.5), layout="constrained")
    at = [sample["at"] for sample in found["samples"]]
    for name in ("wanted", "ready"):
        axes.step(at, [sample[name] for sample in found["samples"]], where="post", label=f"pods {name}")
    axes.axvline(found["ended"], color="grey", linewidth=0.8)
    axes.text(found["ended"], 1.0, " the load ends", transform=axes.get_xaxis_transform(), va="bottom", fontsize=8)
    axes.set(xlabel="seconds since the load began", ylabel="pods", ylim=(0, MAX_PODS + 0.5))
    axes.legend(loc="upper right")
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def _say(text: str) -> None:
    print(f"autoscale: {text}", flush=True)


def main(words: Sequence[str] | None = None) -> int:
    raw = argparse.RawDescriptionHelpFormatter
    parser = Parser(prog="bench.autoscale", description=__doc__, formatter_class=raw)
    parser.add_argument("--minutes", type=number, default=10, help="of constant load, once two pods serve")
    parser.add_argument("--out", type=folder, default=str(ROOT / "out"))
    arguments = parser.parse_args(words)
    return guarded(parser.prog, lambda: carried_out(arguments))


def carried_out(arguments: argparse.Namespace) -> int:
    """Raises `RefusedError`."""
    made("SmolLM2-135M", models.smollm2)
    with deployed("scaled", specification()) as service:
        found = bench(service, arguments.minutes)
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "autoscale.json").write_text(json.dumps(found, indent=1))
    plot(found, arguments.out / "autoscale.png")
    for claim, holds in found["verdicts"].items():
        print(f"{'PASS' if holds else 'FAIL'}  {claim}")
    return 0 if all(found["verdicts"].values()) else 1


if __name__ == "__main__":
    sys.exit(main())
