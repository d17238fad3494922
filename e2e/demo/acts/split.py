"""A patched split: in force, in place, nothing restarted; how soon is told, and not judged."""

from __future__ import annotations

from bench.traffic.plan import Request, prompt_ids
from e2e.demo.outcome import Outcome
from e2e.demo.service import Service, applied, wait_for

WANTED = (70, 30)
LONGEST = 60.0


def patched(outcome: Outcome, service: Service) -> None:
    """Patches the split; PASS if status.partition.applied comes to show it and no process or pod was replaced."""
    before = service.lives()
    old = applied(service.get())
    prefill, decode = WANTED
    service.patch({"partition": {"mode": "Manual", "prefillPercent": prefill, "decodePercent": decode}})
    _, seconds = wait_for(service, lambda obj: applied(obj) == WANTED, LONGEST, f"applied split {prefill}/{decode}")
    was = f"{old[0]}/{old[1]}" if old else "none"
    shown = f"{was} to {prefill}/{decode} after {seconds:.1f} s"
    outcome.check(f"a patched split is applied, {service.where}", True, shown)
    after = service.lives()
    outcome.check(f"nothing restarted, {service.where}", before == after, f"{after}" if before != after else "")
    record = service.send([Request(0.0, 4, prompt_ids(64, seed=77))])[0]
    outcome.check(f"it serves on under the new split, {service.where}", record.ok, record.error or "")
