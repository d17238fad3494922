"""How many prompt tokens a step may take along, so that who decodes in it is not left alone for longer than a bound.

Where prompts share decode's steps, a stream waits for the whole step. Its time is foreseen as that of a step without
prompts and, for each prompt token, what one has taken of late at such a position. Attention makes a token dearer with
its position, and at most twice as dear at twice the position: so what was seen at one bounds what was never seen. A
prompt has at least a block of tokens in each step: that is the other side of the bound. Pure; has no clock.
"""

from __future__ import annotations

CAUTION = 0.8
"""Part of the bound that a step is planned to take: what is foreseen is a little off."""
FIRST_POSITIONS = 512
"""Positions below this count as one: attention is little there. From there each doubling has a rate of its own."""
FASTER = 0.25
FASTER_TOKENS = 128
"""Of a step that was faster than foreseen so much is believed, with so many tokens half of it: a few say little."""
DOUBT = 0.03
"""Of a step's time: by so much it may be off. Where few tokens took little of it, that is much of theirs."""
REFUTED = 4
"""A step that was so many times as fast, all of it taken for its prompts', refutes what one that hung has taught: the
rate falls to that at once, and not by some per cent a step."""
TOO_DEAR = 2
"""Where that is little, for most of a step is none of its prompts': two steps in a row by which a token was foreseen so
many times too dear are half believed, whatever their tokens. One alone may be chance."""
GROWTH = 8
"""A step has at most so many times the tokens of one that was measured: the error of a small one would grow along."""


class StallBound:
    def __init__(self) -> None:
        self._largest = 0
        """Most prompt tokens of a step so far."""
        self._rest: float | None = None
        """Seconds of the last step without prompts, as far as no step with some was as fast; None: there was none."""
        self._probing = False
        """The next step has the fewest tokens that there are, to learn that."""
        self._rates: dict[int, tuple[float, int]] = {}
        """Kind of position -> seconds for a prompt token, and the position that they hold for."""
        self._too_dear: set[int] = set()
        """Kinds of which the last step has found it so."""

    @property
    def rest(self) -> float:
        """Seconds of a step without prompts; 0: not known yet."""
        return self._rest or 0.0

    def observe(self, tokens: int, position: int, seconds: float) -> None:
        """A step with so many tokens of prompts, the furthest around `position`, has taken so long. 0 tokens: only rows
        that decode."""
        if tokens == 0:
            self._rest = seconds
            return
        if self._probing if self._rest is None else seconds <= self._rest:
            # Nothing was measured without prompts, or what was is refuted (it hung, or had less of the device): prompts
            # make no step faster. What is beyond their least is the rest; where none is known all is theirs.
            least = min((rate for rate, _ in self._rates.values()), default=seconds)
            self._rest = max(0.0, seconds - tokens * least)
        self._largest = max(self._largest, tokens)
        position = max(position, FIRST_POSITIONS)
        rate, kind = max(0.0, (1 + DOUBT) * seconds - (self._rest or 0.0)) / tokens, position.bit_length()
        before, _ = self._rates.get(kind, (rate, position))
        faster = FASTER * tokens / (tokens + FASTER_TOKENS)
        if before <= TOO_DEAR * rate:
            self._too_dear.discard(kind)
        elif kind in self._too_dear:
            faster = 0.5
        else:
            self._too_dear.add(kind)
        doubted = min(before + faster * (rate - before), REFUTED * seconds / tokens)
        self._rates[kind] = (max(rate, doubted), position)  # slower is believed at once

    def seconds(self, tokens: int, position: int) -> float:
        """What so many tokens of a prompt, around `position`, are foreseen to take in a step."""
        return tokens * self._rate(position)

    def tokens(self, seconds: float, position: int, spent: float = 0.0) -> int:
        """Prompt tokens, around `position`, that a step with rows in it has time for within so many seconds, of which
        other prompts have `spent` some. 0: not one, or too little is known."""
        rate = self._rate(position)
        self._probing = self._rest is None
        if self._rest is None or rate == 0:
            return 0
        return max(0, min(GROWTH * self._largest, int((CAUTION * seconds - self._rest - spent) / rate)))

    def _rate(self, position: int) -> float:
        """A bound for a token there; 0: nothing is known."""
        position = max(position, FIRST_POSITIONS)
        below = [kind for kind in self._rates if kind <= position.bit_length()]
        if not below:
            return min((rate for rate, _ in self._rates.values()), default=0.0)
        rate, at = self._rates[max(below)]
        return rate * max(1.0, position / at)
