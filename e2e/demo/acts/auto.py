"""Auto under load: targets from the single-request latency, a load that turns from prompts to answers, a split that
follows. Each turn lasts until the split has followed it, or until its time is up."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from statistics import median

from bench.traffic.plan import Request, poisson_plan, prompt_ids
from bench.traffic.records import Record, Target, summarise
from e2e.demo.outcome import AutoRun, Decided, DemoError, Finished, Outcome, Sample, Turn
from e2e.demo.paths import OUT
from e2e.demo.service import Manifest, Service, applied, decisions, wait_until

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
LEAD = 3.0
"""Seconds before its begin at which a turn is handed to its client, a process that has to start."""


def auto(outcome: Outcome, service: Service) -> None:
    """PASS if prefill's share rises while prompts weigh and falls once answers do, each decision saying why."""
    capacity = batch_rate(service)
    ttft, tpot = single_latency(service)
    targets = (round(ttft * SLACK * 1000), round(tpot * SLACK * 1000))
    alone = f"alone: TTFT {ttft * 1000:.0f} ms, TPOT {tpot * 1000:.0f} ms ({BURST} at once: {capacity:.0f} tokens/s)"
    outcome.console.print(f"  {alone}; targets {SLACK} times that: {targets[0]} and {targets[1]} ms", highlight=False)
    slo = {"ttftMilliseconds": targets[0], "tpotMilliseconds": targets[1]}
    service.merge(
        {
            "slo": slo | {"percentile": 90, "windowSeconds": WINDOW_SECONDS},
            "partition": {"mode": "Auto", "prefillPercent": HOME[0], "decodePercent": HOME[1]},
        }
    )
    wait_until(service, lambda obj: _mode(obj) == "Auto" and applied(obj) == HOME, 30, "Auto")
    watch = Watch(outcome, service)
    home = share(Sample(0, *HOME))
    watch.turn("long prompts", prompts(PREFILL_LOAD / ttft), LONGEST[0], lambda now: now > home)
    top = watch.share
    watch.turn("long answers", answers(DECODE_LOAD * capacity / ANSWER), LONGEST[1], lambda now: now < watch.peak)
    peak, last = watch.peak, watch.share
    run = watch.finish(targets)
    outcome.auto_runs.append(run)
    rose, fell = f"from {home:.0%} to {top:.0%} of the device", f"from {peak:.0%} to {last:.0%} of the device"
    outcome.check(f"Auto gives prefill more while prompts weigh, {service.where}", top > home, rose)
    outcome.check(f"Auto gives decode more once answers weigh, {service.where}", last < peak, fell)
    told = f"{len(watch.told)} decisions"
    outcome.check(f"every decision says why, {service.where}", bool(watch.told) and not watch.incomplete, told)


def _mode(obj: Manifest) -> str:
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
        self._known = {decision["time"] for decision in decisions(service.read())}
        self._began, self._epoch = time.monotonic(), time.time()
        self._threads: list[threading.Thread] = []
        self._found: list[Record] = []
        self._problems: list[Exception] = []
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
        """Sends the plan until `followed` says so of prefill's part, or for `longest` seconds."""
        begin = self._now() + LEAD
        stop = OUT / "sent" / f"stop-{len(self._turns)}"
        stop.parent.mkdir(parents=True, exist_ok=True)
        stop.unlink(missing_ok=True)
        self._start(plan, begin, stop)
        while self._now() < begin + longest:
            self.look()
            if followed(self.share):
                break
            time.sleep(0.5)
        stop.touch()
        self._turns.append(Turn(label, begin, self._now()))

    def _now(self) -> float:
        return time.monotonic() - self._began

    def _start(self, plan: list[Request], begin: float, stop: Path) -> None:
        def send() -> None:
            try:
                sent = self._service.send(plan, self._began + begin, stop)
                self._found.extend(_shifted(record, begin) for record in sent)
            except Exception as error:
                self._problems.append(error)

        self._threads.append(threading.Thread(target=send, daemon=True))
        self._threads[-1].start()

    def look(self) -> None:
        """One sample of the split; new decisions are printed."""
        obj, at = self._service.read(), self._now()
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

    def finish(self, targets: tuple[int, int]) -> AutoRun:
        """Waits for the last answers."""
        while any(thread.is_alive() for thread in self._threads):
            self.look()
            time.sleep(0.5)
        if self._problems:
            raise DemoError(f"the load could not be sent: {self._problems[0]}")
        for line in summarise(self._found, Target(ttft=targets[0], tpot=targets[1])).lines():
            self._console.print(f"  {line}", style="dim", markup=False, highlight=False)
        ended = (
            Finished(one.token_times[-1], _ms(one.ttft), _ms(one.tpot), one.label)
            for one in self._found
            if one.token_times
        )
        where = self._service.where
        return AutoRun(where, *targets, tuple(self._turns), tuple(self._samples), tuple(ended), tuple(self.told))


def _shifted(record: Record, by: float) -> Record:
    """The record with its times `by` seconds later."""
    times = tuple(at + by for at in record.token_times)
    return replace(record, planned=record.planned + by, sent=record.sent + by, token_times=times)


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else seconds * 1000


def describe(decision: Manifest) -> str:
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
