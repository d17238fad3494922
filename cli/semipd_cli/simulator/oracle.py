"""How long steps take in the simulated engine: the truth that no policy may import.

A table of costs in the form of the step profile, and effects that the policies do not model: jitter, slow-down beside
the other phase, a part of a step that a larger share does not shrink, an overhead between steps. Knows no policy.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from semipd_engine.contract import Phase, Split
from semipd_engine.core.observation import StepSize


@dataclass(frozen=True)
class Oracle:
    """Seconds at the whole device: fixed, per token (prefill) or row (decode), per token x position or position."""

    prefill: tuple[float, float, float]
    decode: tuple[float, float, float]
    prefill_shrinkable: float = 1.0
    """Part of a step's time that the share acts on (0-1); 1: a share of one half takes twice as long."""
    decode_shrinkable: float = 1.0
    contention: tuple[float, float] = (1.0, 1.0)
    """Factors on a step's time beside the other phase: prefill, decode."""
    mixing: float = 1.0
    """Factor on the time of a step that computes prompts and decodes rows, over the best that it can be."""
    jitter: float = 0.0
    """Standard deviation of the logarithm of a step's time."""
    gap: float = 0.0
    """Seconds between two steps of a phase that no share changes."""

    def work(self, phase: Phase, size: StepSize, rng: random.Random) -> float:
        """Seconds at the whole device."""
        c = self.prefill if phase is Phase.PREFILL else self.decode
        return self._jittered(c[0] + c[1] * size.tokens + c[2] * size.context, rng)

    def mixed(self, size: StepSize, rng: random.Random) -> float:
        """Of a step that computes chunks of prompts and decodes rows: the weights are read once, and a chunk's products
        hide behind that as far as they can, which is the best that such a step can do; `mixing` times that."""
        p, d = self.prefill, self.decode
        heavy = max(d[0], p[0] + p[1] * size.prompt_tokens + p[2] * size.prompt_context)
        rows, context = size.tokens - size.prompt_tokens, size.context - size.prompt_context
        return self._jittered(self.mixing * (heavy + d[1] * rows + d[2] * context), rng)

    def speed(self, phase: Phase, split: Split) -> float:
        """While both phases are busy; alone it is 1."""
        share = split.of(phase) / max(100, split.prefill + split.decode)
        part = self.prefill_shrinkable if phase is Phase.PREFILL else self.decode_shrinkable
        slower = self.contention[0] if phase is Phase.PREFILL else self.contention[1]
        return 1.0 / ((1 - part + part / share) * slower)

    def _jittered(self, seconds: float, rng: random.Random) -> float:
        return self.gap + (seconds * rng.lognormvariate(0.0, self.jitter) if self.jitter else seconds)


CPU = Oracle(
    prefill=(2e-3, 5e-5, 0.0),
    decode=(6e-3, 3e-4, 0.0),
    contention=(1.05, 1.08),
    jitter=0.03,
    gap=1e-4,
)
"""Shares in proportion, as pacing deals them out: the costs of the unit tests' plant, with effects on top."""

GPU = Oracle(
    prefill=(4e-3, 4e-5, 6.6e-10),
    decode=(6e-3, 1.2e-5, 4.4e-8),
    prefill_shrinkable=0.8,
    decode_shrinkable=0.15,
    contention=(1.08, 1.2),
    jitter=0.03,
    gap=2e-4,
)
"""An 8B model on an 80 GB GPU by order of magnitude (assumed, not measured)."""

MIXING = 1.15
"""Assumed. On a CPU (SmolLM2-135M, no AMX, one process, two streams) a step took 10 ms without a prompt, 33 ms with 64
tokens of one, 79 ms with 256: 18 ms and 0.24 ms a token, so the fixed parts hide behind each other in part only."""

OTHER_CPU = Oracle(
    prefill=(5e-3, 7e-5, 1e-9),
    decode=(9e-3, 2e-4, 3e-8),
    prefill_shrinkable=0.95,
    decode_shrinkable=0.9,
    contention=(1.15, 1.2),
    mixing=MIXING,
    jitter=0.06,
    gap=3e-4,
)
"""A device that deals out its time less exactly than any policy believes, and of another shape than their profile."""

OTHER_GPU = Oracle(
    prefill=(13e-3, 1.3e-4, 2e-9),
    decode=(21e-3, 6e-5, 1.5e-7),
    prefill_shrinkable=0.7,
    decode_shrinkable=0.22,
    contention=(1.12, 1.25),
    mixing=MIXING,
    jitter=0.05,
    gap=4e-4,
)
"""A slower device, on which a share acts otherwise than the policies believe (0.8 and 0.15)."""

ORACLES = {"cpu": CPU, "gpu": GPU, "other-cpu": OTHER_CPU, "other-gpu": OTHER_GPU}
