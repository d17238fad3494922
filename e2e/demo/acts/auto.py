"""Auto under load: targets from the single-request latency, a load that turns from prompts to answers, a split that
follows."""

from __future__ import annotations

import threading
import time
from datetime import datetime
from statistics import median

from e2e.demo.outcome import AutoRun, Decided, DemoError, Finished, Outcome, Sample, Turn
from e2e.demo.service import Manifest, Service, applied, decisions, wait_until
from e2e.traffic.plan import Request, poisson_plan, prompt_ids
from e2e.traffic.records import Record, Target, summarise

SLACK = 7.5
"""Targets are this many times the latency of a request that has the service to itself."""
HOME = (50, 50)
PROMPT, ANSWER = 128, 48
"""Tokens of a long prompt and of a long answer, as two cores without a GPU have them."""
PROMPTS_SECONDS, ANSWERS_SECONDS = 32.0, 42.0
PREFILL_LOAD = 0.72
"""Of what prefill could do if it had the machine to itself: more than its half, less than all."""
EVERY = 2.5
"""Seconds between the streams beside the prompts."""
WINDOW_SECONDS = 20


def auto(outcome: Outcome, service: Service) -> None:
    """PASS if prefill's share rises while prompts weigh and falls once answers do, each decision saying why."""
    ttft, tpot = single_latency(service)
    targets = (round(ttft * SLACK * 1000), round(tpot * SLACK * 1000))
    say = outcome.console.print
    say(
        f"  alone: TTFT {ttft * 1000:.0f} ms, TPOT {tpot * 1000:.0f} ms; targets {SLACK} times that: "
        f"{targets[0]} and {targets[1]} ms"
    )
    service.merge(
        {
            "slo": {
                "ttftMilliseconds": targets[0],
                "tpotMilliseconds": targets[1],
                "percentile": 90,
                "windowSeconds": WINDOW_SECONDS,
            },
            "partition": {"mode": "Auto", "prefillPercent": HOME[0], "decodePercent": HOME[1]},
        }
    )
    wait_until(service, lambda obj: _mode(obj) == "Auto" and applied(obj) == HOME, 30, "Auto")
    plan, turns = load(PREFILL_LOAD / ttft)
    run = watch(outcome, service, plan, turns, targets)
    outcome.auto_runs.append(run)
    judge(outcome, run, service.where)


def _mode(obj: Manifest) -> str:
    return str(obj.get("status", {}).get("partition", {}).get("mode", ""))


def single_latency(service: Service) -> tuple[float, float]:
    """Median (TTFT, TPOT) in seconds of three requests, one after the other."""
    found = [service.send([Request(0.0, 24, prompt_ids(PROMPT, seed=900 + n))])[0] for n in range(4)][1:]
    values = [(record.ttft, record.tpot) for record in found]
    if any(ttft is None or tpot is None for ttft, tpot in values):
        raise DemoError(f"a single request failed: {found[0].error}")
    return median(ttft or 0 for ttft, _ in values), median(tpot or 0 for _, tpot in values)


def load(rate: float) -> tuple[list[Request], tuple[Turn, ...]]:
    """First many prompts with short answers beside a few streams, then few prompts with long answers."""
    end = PROMPTS_SECONDS + ANSWERS_SECONDS
    prompts = poisson_plan(rate, PROMPTS_SECONDS, prompt_tokens=PROMPT, max_tokens=6, seed=11, label="prompts")
    streams = [
        Request(EVERY * n, ANSWER, prompt_ids(16, seed=500 + n), label="streams")
        for n in range(int(PROMPTS_SECONDS / EVERY))
    ]
    answers = poisson_plan(
        1.0, ANSWERS_SECONDS, prompt_tokens=16, max_tokens=ANSWER, seed=13, label="answers", start=PROMPTS_SECONDS
    )
    turns = (Turn("long prompts", 0.0, PROMPTS_SECONDS), Turn("long answers", PROMPTS_SECONDS, end))
    return prompts + streams + answers, turns


def watch(
    outcome: Outcome, service: Service, plan: list[Request], turns: tuple[Turn, ...], targets: tuple[int, int]
) -> AutoRun:
    """Sends the load and follows the split meanwhile."""
    found: list[Record] = []
    problem: list[Exception] = []

    def send() -> None:
        try:
            found.extend(service.send(plan))
        except Exception as error:
            problem.append(error)

    before = {decision["time"] for decision in decisions(service.read())}
    thread = threading.Thread(target=send, daemon=True)
    began, epoch = time.monotonic(), time.time()
    thread.start()
    samples: list[Sample] = []
    told: dict[str, Decided] = {}
    while thread.is_alive() or not samples:
        obj, at = service.read(), time.monotonic() - began
        if (split := applied(obj)) and (not samples or at - samples[-1].at >= 1 or _split(samples[-1]) != split):
            samples.append(Sample(at, *split))
        for decision in reversed(decisions(obj)):
            if decision["time"] not in before and decision["time"] not in told:
                decided = Decided(datetime.fromisoformat(decision["time"]).timestamp() - epoch, describe(decision))
                told[decision["time"]] = decided
                outcome.console.print(f"  {decided.at:5.1f} s  {decided.text}", markup=False)
        thread.join(0.7)
    if problem:
        raise DemoError(f"the load could not be sent: {problem[0]}")
    target = Target(ttft=targets[0], tpot=targets[1])
    for line in summarise(found, target).lines():
        outcome.console.print(f"  {line}", style="dim", highlight=False)
    ended = tuple(
        Finished(one.token_times[-1], _ms(one.ttft), _ms(one.tpot), one.label) for one in found if one.token_times
    )
    return AutoRun(service.where, *targets, turns, tuple(samples), ended, tuple(told.values()))


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else seconds * 1000


def _split(sample: Sample) -> tuple[int, int]:
    return sample.prefill, sample.decode


def describe(decision: Manifest) -> str:
    """A decision of the status on one line: from, to, why, on which evidence, by which pod."""
    shares = [f"{decision[key]['prefillPercent']}/{decision[key]['decodePercent']}" for key in ("from", "to")]
    evidence = ""
    if decision.get("observedMilliseconds") is not None and decision.get("targetMilliseconds") is not None:
        metric = str(decision.get("metric", "")).upper()
        evidence = (
            f"  {metric} {decision['observedMilliseconds']:.0f} ms, target {decision['targetMilliseconds']:.0f} ms"
        )
    return f"{shares[0]} → {shares[1]}  {decision['reason']}{evidence}  ({decision['pod']})"


def share(sample: Sample) -> float:
    """Prefill's part of the device while both phases are busy."""
    return sample.prefill / (sample.prefill + sample.decode)


def judge(outcome: Outcome, run: AutoRun, where: str) -> None:
    """The split must have moved towards prefill in the first turn and back towards decode in the second."""
    first, second = run.turns
    home = HOME[0] / sum(HOME)
    top = max((share(sample) for sample in run.samples if first.begin <= sample.at < first.end), default=home)
    later = [share(sample) for sample in run.samples if sample.at >= second.begin]
    peak, last = max([top, *later]), later[-1] if later else top
    rose, fell = f"from {home:.0%} to {top:.0%} of the device", f"from {peak:.0%} to {last:.0%}"
    outcome.check(f"Auto gives prefill more while prompts weigh, {where}", top > home, rose)
    outcome.check(f"Auto gives it back once answers weigh, {where}", last < peak, fell)
    outcome.check(f"every decision says why, {where}", bool(run.decisions), f"{len(run.decisions)} decisions")
