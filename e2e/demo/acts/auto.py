"""Auto under load: targets from the single-request latency, a load that turns from prompts to answers, a split that
follows. Each turn lasts until the split has followed it, or until its time is up."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime
from statistics import median

from bench.traffic.plan import Request, poisson_plan, prompt_ids
from bench.traffic.records import Record, Target, summarise
from e2e.demo.outcome import AutoRun, Decided, DemoError, Outcome, Sample, Turn
from e2e.demo.service import Load, Service, applied, decisions, wait_for
from e2e.lib.kube import Object

SLACK = 7.5
"""Targets are this many times the latency of a request that has the service to itself."""
HOME = (50, 50)
WINDOW_SECONDS = 20
PROMPT, STREAM, ANSWER = 128, 24, 24
"""Tokens of a prompt that weighs, of a stream beside the prompts, and of an answer of the second turn."""
PREFILL_LOAD = 1.2
"""Of what prefill could do if it had the machine to itself: TTFT grows under any split, and past its target within a
few seconds, while TPOT stays well."""
STREAMS_EVERY = 3.0
"""Seconds between the streams that run beside the prompts."""
BURST = 24
"""Answers at once, with which the second turn begins."""
DECODE_LOAD = 0.35
"""Of the tokens per second of such a batch: the second turn asks for so many. Nothing in it needs prefill's larger
part, so the configured split comes back."""
LONGEST = (45.0, 90.0)
"""Seconds after which a turn that the split did not follow ends."""
LEAD = 2.0
"""Seconds before a turn in which its client gets to know the server, which is busy with the turn before."""


def auto(outcome: Outcome, service: Service) -> None:
    """PASS if prefill's share rises while prompts weigh and falls once answers do, each decision saying why."""
    capacity = batch_rate(service)
    ttft, tpot = single_latency(service)
    targets = (round(ttft * SLACK * 1000), round(tpot * SLACK * 1000))
    alone = f"alone: TTFT {ttft * 1000:.0f} ms, TPOT {tpot * 1000:.0f} ms ({BURST} at once: {capacity:.0f} tokens/s)"
    outcome.console.print(f"  {alone}; targets {SLACK} times that: {targets[0]} and {targets[1]} ms", highlight=False)
    slo = {"ttftMilliseconds": targets[0], "tpotMilliseconds": targets[1]}
    service.patch(
        {
            "slo": slo | {"percentile": 90, "windowSeconds": WINDOW_SECONDS},
            "partition": {"mode": "Auto", "prefillPercent": HOME[0], "decodePercent": HOME[1]},
        }
    )
    wait_for(service, lambda obj: _mode(obj) == "Auto" and applied(obj) == HOME, 30, "Auto")
    watch = Watch(outcome, service)
    home = share(Sample(0, *HOME))
    watch.turn("long prompts", prompts(PREFILL_LOAD / ttft), LONGEST[0], lambda now: now > home)
    top = watch.share
    watch.turn("long answers", answers(DECODE_LOAD * capacity / ANSWER), LONGEST[1], lambda now: now < watch.peak)
    peak, last = watch.peak, watch.share
    run = watch.finish(Target(*targets))
    outcome.auto_runs.append(run)
    rose, fell = f"from {home:.0%} to {top:.0%} of the device", f"from {peak:.0%} to {last:.0%} of the device"
    outcome.check(f"Auto gives prefill more while prompts weigh, {service.where}", top > home, rose)
    outcome.check(f"Auto gives decode more once answers weigh, {service.where}", last < peak, fell)
    told = f"{len(watch.told)} decisions"
    outcome.check(f"every decision says why, {service.where}", bool(watch.told) and not watch.incomplete, told)


def _mode(obj: Object) -> str:
    return str(obj.get("status", {}).get("partition", {}).get("mode", ""))


def single_latency(service: Service) -> tuple[float, float]:
    """Least (TTFT, TPOT) in seconds of four requests, one after the other: what the machine can do, not its noise."""
    found = [service.send([Request(0.0, 24, prompt_ids(PROMPT, seed=900 + n))])[0] for n in range(5)][1:]
    ttfts = [record.ttft for record in found if record.ttft is not None]
    tpots = [record.tpot for record in found if record.tpot is not None]
    if not ttfts or not tpots:
        raise DemoError(f"a single request failed: {found[0].error}")
    return min(ttfts), min(tpots)


def prompts(rate: float) -> list[Request]:
    """Many prompts with short answers, beside a few streams that keep decode busy."""
    streams = [
        Request(STREAMS_EVERY * n, STREAM, prompt_ids(16, seed=100_000 + n), label="streams")
        for n in range(int(LONGEST[0] / STREAMS_EVERY))
    ]
    return streams + poisson_plan(rate, LONGEST[0], prompt_tokens=PROMPT, max_tokens=1, seed=11, label="prompts")


def answers(rate: float) -> list[Request]:
    """Short prompts: a burst of answers at once, and then `rate` a second."""
    steady = poisson_plan(rate, LONGEST[1], prompt_tokens=16, max_tokens=ANSWER, seed=13, label="answers")
    return burst(300, ANSWER) + steady


def burst(seed: int, tokens: int) -> list[Request]:
    return [Request(0.0, tokens, prompt_ids(16, seed=seed + n), label="answers") for n in range(BURST)]


def batch_rate(service: Service) -> float:
    """Tokens per second of BURST answers at once."""
    tpots = [record.tpot for record in service.send(burst(700, 10)) if record.tpot is not None]
    if not tpots:
        raise DemoError(f"{BURST} requests at once failed")
    return BURST / median(tpots)


class Watch:
    """Sends the load, turn by turn, and follows the object's status meanwhile. Times count from its creation."""

    def __init__(self, outcome: Outcome, service: Service) -> None:
        self._console, self._service = outcome.console, service
        self._known = {decision["time"] for decision in decisions(service.get())}
        self._began, self._epoch = time.monotonic(), time.time()
        self._loads: list[Load] = []
        self._turns: list[Turn] = []
        self._samples: list[Sample] = []
        self.told: list[Decided] = []
        self.incomplete = False
        """Some decision lacks what it must carry."""

    @property
    def share(self) -> float:
        """Prefill's part of the device, as last seen."""
        return share(self._samples[-1])

    @property
    def peak(self) -> float:
        """The largest part that prefill has had."""
        return max(map(share, self._samples))

    def turn(self, label: str, plan: list[Request], longest: float, followed: Callable[[float], bool]) -> None:
        """Sends the plan until `followed` says so of prefill's part, or for `longest` seconds. A split that moves
        before the first request of the plan follows something else."""
        begin = self._now() + LEAD
        load = Load(self._service, plan, self._began + begin)
        self._loads.append(load)
        try:
            while self._now() < begin + longest:
                self.look()
                if self._now() >= begin and followed(self.share):
                    break
                time.sleep(0.5)
        finally:
            load.stop()
        self._turns.append(Turn(label, begin, self._now()))

    def _now(self) -> float:
        return time.monotonic() - self._began

    def look(self) -> None:
        """One sample of the split; new decisions are printed."""
        obj, at = self._service.get(), self._now()
        if split := applied(obj):
            self._samples.append(Sample(at, *split))
        for decision in reversed(decisions(obj)):
            if decision["time"] in self._known:
                continue
            self._known.add(decision["time"])
            self.incomplete |= not {"from", "to", "reason", "pod"} <= {key for key, value in decision.items() if value}
            decided = Decided(datetime.fromisoformat(decision["time"]).timestamp() - self._epoch, describe(decision))
            self.told.append(decided)
            self._console.print(f"  {decided.at:5.1f} s  {decided.text}", markup=False, highlight=False)

    def finish(self, target: Target) -> AutoRun:
        """Waits for the last answers."""
        while any(load.running() for load in self._loads):
            self.look()
            time.sleep(0.5)
        turns = zip(self._turns, self._loads, strict=True)
        found = [_shifted(record, turn.begin) for turn, load in turns for record in load.records()]
        for line in summarise(found, target).lines():
            self._console.print(f"  {line}", style="dim", markup=False, highlight=False)
        where = self._service.where
        return AutoRun(where, target, tuple(self._turns), tuple(self._samples), tuple(found), tuple(self.told))


def _shifted(record: Record, by: float) -> Record:
    """The record with its times `by` seconds later."""
    times = tuple(at + by for at in record.token_times)
    return replace(record, planned=record.planned + by, sent=record.sent + by, token_times=times)


def describe(decision: Object) -> str:
    """A decision of the status on one line: from, to, why, on which evidence, by which pod."""
    shares = [f"{decision[key]['prefillPercent']}/{decision[key]['decodePercent']}" for key in ("from", "to")]
    observed, target = decision.get("observedMilliseconds"), decision.get("targetMilliseconds")
    evidence = ""
    if observed is not None and target is not None:
        evidence = f"  {str(decision.get('metric', '')).upper()} {observed:.0f} ms, target {target:.0f} ms"
    return f"{shares[0]} → {shares[1]}  {decision['reason']}{evidence}  ({decision['pod']})"


def share(sample: Sample) -> float:
    """Prefill's part of the device while both phases are busy."""
    return sample.prefill / (sample.prefill + sample.decode)
