"""What a step takes on a machine of given limits: one estimator for GPUs and for the CPU that it is checked on.

A stage takes what is longer, its reading or its computing (`model.cuts.seconds`, by which the pacer cuts, too). On a
GPU the host only queues kernels: a step takes what is longer, the kernels or their queueing. A CPU does one after the
other. Sources of the cards' figures stand beside them; what is achieved of them is a guess, made before the first run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from semipd_engine.kernels import Rates
from semipd_engine.model.cuts import seconds
from semipd_engine.model.stage import Work


@dataclass(frozen=True)
class Cost:
    """Of one step."""

    stages: Sequence[Work]
    launches: int
    """Kernels on a GPU, stages on a CPU: what the host spends time on."""
    more: int = 0
    """Bytes that sampling reads and writes."""

    @property
    def nbytes(self) -> int:
        return sum(work.read for work in self.stages) + self.more

    @property
    def flops(self) -> int:
        return 2 * sum(work.products + work.gathered + work.scores + work.latent for work in self.stages)


@dataclass(frozen=True)
class Limits:
    rates: Rates
    """Achieved; multiply-adds and bytes per second of the whole machine."""
    launch: float
    """Seconds of the host for each launch."""
    step: float
    """Seconds of each step beside: inputs in, tokens back, the plan's way."""
    queued: bool = True
    """The host goes on while the device computes."""

    def device(self, cost: Cost) -> float:
        """Seconds of the stages, one after the other."""
        return sum(seconds(work, self.rates) for work in cost.stages) + cost.more / self.rates.read

    def seconds(self, cost: Cost) -> float:
        device, host = self.device(cost), cost.launches * self.launch
        return (max(device, host) if self.queued else device + host) + self.step


@dataclass(frozen=True)
class Card:
    bandwidth: float
    """Bytes per second, from the data sheet."""
    flops: float
    """Of dense bfloat16 products, from the data sheet."""
    sms: int

    @property
    def floor(self) -> Limits:
        """What no program can beat: everything read once, or computed, at the data sheet's rate."""
        each = self.flops / 2
        return Limits(Rates(self.bandwidth, each, each, each, each), 0.0, 0.0)

    def expected(self, share: float = 1.0) -> Limits:
        """With this share of the SMs. Reading saturates before the SMs do: one of them takes `SM_BYTES` at most."""
        each = self.flops / 2 * share
        read = min(ACHIEVED.read * self.bandwidth, SM_BYTES * self.sms * share)
        rates = Rates(
            read,
            ACHIEVED.products * each,
            ACHIEVED.gathered * each,
            ACHIEVED.scores * each,
            ACHIEVED.latent * each,
        )
        return Limits(rates, LAUNCH_SECONDS, STEP_SECONDS)

    def captured(self) -> Limits:
        """The same with the step in one graph: the host queues one thing."""
        return replace(self.expected(), launch=0.0)


CARDS: Mapping[str, Card] = {
    "H100": Card(3.35e12, 989.4e12, 132),  # NVIDIA H100 data sheet, SXM
    "H200": Card(4.8e12, 989.4e12, 132),  # NVIDIA H200 data sheet, SXM
}
ACHIEVED = Rates(read=0.85, products=0.65, gathered=0.3, scores=0.3, latent=0.2)
"""Parts of the data sheet that we expect of ourselves. Reading: copies reach 0.9 on such cards. Products: cuBLAS, at
prompts' sizes. Attention: Triton's tutorial kernel reaches 395 of 989 TFLOP/s at 16k (the FlashAttention-3 paper's
chart); ours reads through a block table and is not tuned."""
SM_BYTES = 60e9
"""Bytes per second that one SM can ask for: half of the SMs are enough for an A100's memory, by others' curves."""
LAUNCH_SECONDS = 15e-6
"""Of Python and torch or Triton for a kernel: 5 to 10 us of dispatch, more for Triton's launcher, and the stage."""
STEP_SECONDS = 0.3e-3
"""Of a step beside: the plan's way to the worker and back, inputs, and the copy of the tokens."""
