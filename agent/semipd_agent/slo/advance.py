"""What an observation adds to the `Load`: arrivals, how requests ended, steps, and since when the load is the same.

Pure: nothing in it reads a clock. A window of arrivals reaches back as far as the load was the same: `regime_since`
moves up when it `changed`.
"""

from __future__ import annotations

import math
from dataclasses import replace

from semipd_agent.slo.load import BUCKET_SECONDS, KEPT_SECONDS, MOST_KEPT, Load, Seen
from semipd_agent.slo.regime import burstiness, changed
from semipd_agent.slo.step_model import kinds
from semipd_engine.contract import Observation

LENGTHS_KEPT = 1000


def advance(load: Load, o: Observation) -> Load:
    """Take one observation. One of another core starts the sums anew; what was learned stays."""
    if o.core_id != load.core_id:
        load = replace(load, core_id=o.core_id, newest=-1, cursor=-1, steps={}, since=o.at, at=o.at, seen={}, counts={})
    seen, counts = dict(load.seen), dict(load.counts)
    newest, cursor, total = load.newest, load.cursor, load.total
    latest, in_order = next(reversed(seen.values())).at if seen else -math.inf, True
    for arrival in o.arrivals:
        if arrival.id > newest:
            seen[arrival.id] = Seen(arrival.id, arrival.at, arrival.prompt_tokens, load.uncached)
            _count(counts, arrival.at)
            newest, total = arrival.id, total + 1
            latest, in_order = arrival.at, in_order and arrival.at >= latest
    lengths, uncached = list(load.lengths), load.uncached
    for done in o.finished:
        if done.cursor <= cursor:
            continue
        cursor = done.cursor
        if done.finish_reason == "rejected":  # it never got an id, but it was asked for
            key, at = -2 - done.cursor, done.received_at or done.finished_at
            seen[key] = Seen(key, at, done.prompt_tokens, uncached)
            _count(counts, at)
            total += 1
            latest, in_order = at, in_order and at >= latest
            continue
        part = 1.0 - done.cached_tokens / max(1, done.prompt_tokens)
        complete = done.output_tokens > 0 and done.finish_reason in ("stop", "length")
        if (one := seen.get(done.id)) is not None:
            output, left = (done.output_tokens, 0) if complete else (0, done.output_tokens)
            seen[done.id] = Seen(one.id, one.at, one.prompt, part, output, done.ttft_seconds, done.tpot_seconds, left)
        if done.output_tokens > 0:
            uncached += 0.05 * (part - uncached)
        if complete:
            lengths.append((done.prompt_tokens, done.output_tokens))
    # A request that was refused, or tokenised for long, is heard of later than younger ones.
    if not in_order:
        seen = dict(sorted(seen.items(), key=lambda item: item[1].at))
    drop, excess = list[int](), len(seen) - MOST_KEPT
    for number, (id, one) in enumerate(seen.items()):
        if number >= excess and one.at >= o.at - KEPT_SECONDS:
            break
        drop.append(id)
    for id in drop:
        del seen[id]
    oldest = int((o.at - KEPT_SECONDS) // BUCKET_SECONDS)
    now_steps = kinds(o.steps)
    model = load.model.learn(load.steps, now_steps, max(0.0, o.at - load.at)) if load.steps else load.model
    advanced = replace(
        load,
        model=model,
        at=o.at,
        seen=seen,
        counts={number: count for number, count in counts.items() if number >= oldest},
        total=total,
        newest=newest,
        cursor=cursor,
        lengths=tuple(lengths[-LENGTHS_KEPT:]),
        grown={r.id: r.output_tokens for r in o.running if r.output_tokens},
        steps=now_steps,
        uncached=uncached,
    )
    return _with_regime(advanced)


def _count(counts: dict[int, int], at: float) -> None:
    number = int(at // BUCKET_SECONDS)
    counts[number] = counts.get(number, 0) + 1


def _with_regime(load: Load) -> Load:
    start = max(load.regime_since, load.known_since, load.at - KEPT_SECONDS)
    there = [one for one in load.seen.values() if one.at >= start]  # in the order of `at`
    asked = [(one.at, float(one.prompt * one.uncached)) for one in there]
    said = [(one.at, float(load.output(one))) for one in there if one.output > 0 or load.so_far(one)]
    first, last = int(max(load.since, load.at - KEPT_SECONDS) // BUCKET_SECONDS) + 1, int(load.at // BUCKET_SECONDS)
    counts = [load.counts.get(number, 0) for number in range(first, last - 1)]  # what is new now is no sign of bursts
    lasted = load.at - max(load.regime_since, load.since)
    since = changed(asked, said, start, load.at, burstiness(counts), lasted)
    return load if since is None else replace(load, regime_since=since)
