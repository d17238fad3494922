"""Latency as a function of a phase's share: TTFT = a / (s - lambda) + b, TPOT = a / s + b. Pure.

The forms are the semi-PD paper's (arXiv 2504.19867, section 5); it does not say how they are fitted. Here: weighted
least squares with exponential forgetting. lambda is not fitted: it is prefill's utilisation of the whole device
(``r * l_100`` in the paper), which is known from arrivals and step times, and a share held constant could not tell it
from a and b. An estimate is always anchored at the latest observation,
``observed * g(new) / g(current)``, so only the shape is taken from the fit; while fewer than three distinct shares have
been seen, or the fit is not decreasing, the shape is the paper's own fit of its figure 10 (Llama3-8B, ShareGPT).

Shares are fractions of the device (0–1), latencies seconds.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

FORGETTING = 0.97
"""Weight of an observation relative to the next one."""
OBSERVATIONS = 256
DISTINCT_SHARES = 3
MIN_GAP = 0.05
"""Least distance kept between a share and the pole lambda, in estimates."""


@dataclass(frozen=True)
class Curve:
    """a / (share - pole) + b; `pole` is 0 for TPOT."""

    a: float
    b: float
    pole: float = 0.0

    def at(self, share: float) -> float:
        return self.a / max(share - self.pole, MIN_GAP) + self.b


TTFT_PRIOR = Curve(a=0.6809, b=0.022, pole=0.304)
"""Figure 10; the pole makes the curve 1 at the whole device, to which the figure is normalised."""
TPOT_PRIOR = Curve(a=0.6284, b=0.3818)


class LatencyModel:
    """One metric's curve, refitted as observations come in."""

    def __init__(self, prior: Curve) -> None:
        self._prior = prior
        self.pole: float | None = None
        """lambda, where it is known; None: the prior's."""
        self._points: deque[tuple[float, float]] = deque(maxlen=OBSERVATIONS)
        self.fitted: Curve | None = None

    def add(self, share: float, seconds: float) -> None:
        """One observation; `seconds` > 0."""
        self._points.append((share, seconds))
        self.fitted = self._fit()

    def estimate(self, share: float, *, current: float, observed: float) -> float:
        """Latency expected at `share`, given what is observed at the `current` share."""
        curve = self.fitted or self._at_pole(self._prior)
        return observed * curve.at(share) / curve.at(current)

    def _fit(self) -> Curve | None:
        shares = {round(s, 3) for s, _ in self._points}
        if len(shares) < DISTINCT_SHARES:
            return None
        pole = self._prior.pole if self.pole is None else self.pole
        return self._least_squares(min(pole, min(shares) - MIN_GAP) if pole else 0.0)

    def _at_pole(self, prior: Curve) -> Curve:
        """The prior's form for the load that there is: 1 at the whole device, whatever lambda is."""
        if self.pole is None or not prior.pole:
            return prior
        pole = min(self.pole, 1 - MIN_GAP)
        return Curve((1 - prior.b) * (1 - pole), prior.b, pole)

    def _least_squares(self, pole: float) -> Curve | None:
        """The weighted fit for one pole; None unless the curve falls with the share and stays positive."""
        n = len(self._points)
        # Latencies scatter in proportion to their size, so residuals are relative: a weight of 1 / t^2.
        rows = [(FORGETTING ** (n - 1 - i) / (t * t), 1 / (s - pole), t) for i, (s, t) in enumerate(self._points)]
        total = sum(w for w, _, _ in rows)
        mean_u = sum(w * u for w, u, _ in rows) / total
        mean_t = sum(w * t for w, _, t in rows) / total
        variance = sum(w * (u - mean_u) ** 2 for w, u, _ in rows)
        if variance <= 0:
            return None
        a = sum(w * (u - mean_u) * (t - mean_t) for w, u, t in rows) / variance
        b = mean_t - a * mean_u
        if a <= 0 or a + b * (1 - pole) <= 0:
            return None
        return Curve(a, b, pole)
