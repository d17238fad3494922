"""How many prompt tokens a step may take along, so that who decodes in it is not left alone for longer than a bound.

Where prompts share decode's steps, a stream waits for the whole step. Its time is foreseen as that of a step without
prompts and, for each prompt token, what one has taken of late at such a position. Attention makes a token dearer with
its position, and at most twice as dear at twice the position: so a position that was never seen is bounded by one that
was. A prompt has at least a block of tokens in each step: that is the other side of the bound. Pure; has no clock.
"""

from __future__ import annotations

CAUTION = 0.8
"""Part of the bound that a step is planned to take: what is foreseen is a little off."""
FIRST_POSITIONS = 512
"""Positions below this count as one kind; from there each doubling is another."""
FASTER = 0.25
FASTER_TOKENS = 128
"""Of a step that was faster than foreseen so much is believed, with so many tokens half of it: a few say little."""


class StallBound:
    def __init__(self) -> None:
        self._rest: float | None = None
        """Seconds of the last step without prompts; None: there was none."""
        self._probing = False
        """The next step has the fewest tokens that there are, to learn that."""
        self._rates: dict[int, float] = {}
        """Kind of position -> seconds for a prompt token."""

    def observe(self, tokens: int, position: int, seconds: float) -> None:
        """A step with so many tokens of prompts, the furthest at `position`, has taken so long. 0 tokens: only rows
        that decode."""
        if tokens == 0:
            self._rest = seconds
            return
        if self._rest is None and self._probing:  # beyond what tokens take at most
            self._rest = max(0.0, seconds - tokens * min(self._rates.values(), default=seconds))
        kind = _kind(position)
        rate = max(0.0, seconds - (self._rest or 0.0)) / tokens
        before = self._rates.get(kind, rate)
        faster = FASTER * tokens / (tokens + FASTER_TOKENS)
        self._rates[kind] = max(rate, before + faster * (rate - before))  # slower is believed at once

    def tokens(self, seconds: float, position: int) -> int:
        """Prompt tokens, up to about `position`, that a step with rows in it has time for within so many seconds. 0:
        not one, or too little is known."""
        rate = self._rate(_kind(position))
        self._probing = self._rest is None
        if self._rest is None or rate == 0:
            return 0
        return max(0, int((CAUTION * seconds - self._rest) / rate))

    def _rate(self, kind: int) -> float:
        """Of this kind or, where it was never seen, a bound."""
        if (known := self._rates.get(kind)) is not None:
            return known
        below = [(other, rate) for other, rate in self._rates.items() if other < kind]
        if below:
            nearest, rate = max(below)
            return rate * float(1 << (kind - nearest))
        return max(self._rates.values(), default=0.0)


def _kind(position: int) -> int:
    return (position // FIRST_POSITIONS).bit_length()
