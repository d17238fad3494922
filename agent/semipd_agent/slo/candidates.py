"""Which splits are worth a try: the edges of what the bounds and the grid leave, but for what could not be prepared of
late, and no isolation. Pure.

None is judged here; only of those that the model can say nothing of as yet some are left out.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache

from semipd_agent.contract import Bounds
from semipd_agent.slo.future import Constants, Setting
from semipd_agent.slo.grid import Grid
from semipd_agent.slo.load import Load
from semipd_agent.slo.policy import decode_share, prefill_share, unlimited
from semipd_agent.slo.step_model import ShareLaw
from semipd_engine.contract import Observation, Split

LEAST_MIXED = 32
"""Tokens of a mixed step: fewer starve prompts."""


def candidates(s: Setting) -> list[Split]:
    """Both edges of the grid (one phase unlimited) and the line without overlap, within the bounds; 100/100 among them.

    Splits that give both phases the same parts are one choice.
    """
    return [split for split in _candidates(s.bounds, s.grid) if s.may(split)]


@cache
def _candidates(b: Bounds, grid: Grid) -> tuple[Split, ...]:
    xs = grid.within(b.min_prefill_percent, b.max_prefill_percent)
    ys = grid.within(b.min_decode_percent, b.max_decode_percent)
    top_x, top_y = xs[-1], ys[-1]
    pairs = [(x, top_y) for x in xs] + [(top_x, y) for y in ys]
    if grid.rungs:
        pairs += [(x, y) for x in xs for y in ys if x + y == 100]
    found: dict[tuple[int, bool], Split] = {}
    for x, y in pairs:
        found.setdefault((round(200 * x / max(100, x + y)), x + y > 100), Split(prefill=x, decode=y))
    return tuple(found.values())


def mixed_choices(o: Observation, s: Setting) -> list[Split]:
    """No isolation, with steps of the engine's chunk, a half and a quarter of it; where the bounds limit no phase."""
    if not s.mixes or not unlimited(s.bounds):
        return []
    return [
        Split(mixed_tokens=tokens) for part in (1, 2, 4) if (tokens := o.prefill_chunk_tokens // part) >= LEAST_MIXED
    ]


def within_knowledge(splits: Iterable[Split], load: Load, c: Constants) -> list[Split]:
    """Those of which the model can say something: all of them, once it was seen what a share does."""
    if load.model.laws_seen or load.model.profile.law is ShareLaw.PACED:
        return list(splits)
    return [split for split in splits if min(prefill_share(split), decode_share(split)) >= c.least_assumed]
