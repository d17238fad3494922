"""What the study plays: workloads, policies, seeds, and a key for each run by all that its result depends on. Pure.

Constants and budgets are chosen in hindsight, on the judged seeds themselves: all of them are played on the first
`SIFTED` seeds, the best `FINALISTS` on all, and the best of these is what a policy is held against. So the figure to
beat knows what no policy can know.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from types import ModuleType

import semipd_agent.contract
import semipd_agent.slo
import semipd_cli.simulator
import semipd_engine.contract
import semipd_engine.core
from semipd_cli.simulator.engine import Size
from semipd_cli.simulator.policies import POLICIES
from semipd_cli.simulator.study import Outcome
from semipd_cli.simulator.workloads import CHAT, DOC, GEN, Lengths, Workload, mixed, of_trace, steady, turns

TRAINING = range(1, 9)
"""Seeds on which the controller's constants were tried. Of the traces the first stretch of Azure's two was, once, so no
seed plays a trace's first stretch."""
SEEDS = range(101, 106)
STRETCHES = 1 + len(TRAINING) + len(SEEDS)
"""Of a trace: the first one, which is nobody's, and one for each seed, of whichever sort."""
SIFTED, FINALISTS = 2, 2
HINDSIGHT = ("40/100", "100/100", "100/60", "100/30", "100/20", "100/10")
BUDGETS = ("mixed/256", "mixed/1024")
RULES = ("auto", "auto-unprofiled", "auto+mixed", "100/100", "algorithm1", "algorithm1-printed", "decode-first")
HOUR, HOURS = 3600.0, SEEDS[:1]
"""Seconds and seeds of Auto's long runs under each constant load: of 200 s a single move is 18 an hour."""
WARM_UP = 60.0
"""Seconds of a constant load that do not count: a policy starts at 100/100 and knows nothing. Changes of the mix are
judged from the first second on."""


@dataclass(frozen=True)
class Case:
    workload: Workload
    seconds: float
    size: Size

    @property
    def warm_up(self) -> float:
        return WARM_UP if self.workload.stationary else 0.0


@dataclass(frozen=True)
class Code:
    """Digests of the code that a run depends on."""

    engine: str
    """What is simulated of the engine, what its parts tell each other, and the simulator."""
    policies: str
    """All that, and the agent's policies: a constant split knows none of them."""

    def of(self, policy: str) -> str:
        return self.policies if policy in POLICIES and policy != "100/100" else self.engine


@dataclass(frozen=True)
class Unit:
    """One run."""

    case: Case
    policy: str
    seed: int

    def key(self, code: Code) -> str:
        case, w = self.case, self.case.workload
        parts = (w.name, w.oracle, w.ttft_milliseconds, w.tpot_milliseconds, case.seconds, case.warm_up, case.size)
        asked = _asked(case, self.seed)
        return hashlib.sha256(repr((code.of(self.policy), parts, asked, self.policy, self.seed)).encode()).hexdigest()[
            :16
        ]


@cache
def _asked(case: Case, seed: int) -> str:
    """Digest of the requests themselves: rates, lengths, the trace and its stretch are in it."""
    found = [(a.at, a.prompt, a.output, a.prefix) for a in case.workload.arrivals(case.seconds, seed)]
    return hashlib.sha256(repr(found).encode()).hexdigest()


GPU, CPU = "other-gpu", "other-cpu"
WIDE, SMALL = Size(max_num_seqs=256), Size()


def cases(traces: Path) -> list[Case]:
    """Rates are near the knee, where a split matters: set by constants on `TRAINING`."""
    prompts, answers = Lengths(2000, 60), Lengths(100, 400)
    still = (
        Workload("chat", 1500, 75, steady(2.8, CHAT), oracle=GPU),
        Workload("doc", 6000, 75, steady(0.85, DOC), oracle=GPU),
        Workload("mix", 3000, 75, mixed(1.8, 0.2), oracle=GPU),
        Workload("gen", 1500, 34, steady(3.0, GEN), oracle=GPU),
    )
    plain = (
        Workload("2000/60", 1000, 40, steady(2.2, prompts), oracle=CPU),
        Workload("300/400", 1000, 22, steady(2.6, Lengths(300, 400)), oracle=CPU),
    )
    changing = (
        Workload("gen-doc-gen", 4000, 34, turns((3.0, GEN), (0.8, DOC)), stationary=False, oracle=GPU),
        Workload("doc-gen-doc", 4000, 34, turns((0.8, DOC), (3.0, GEN)), stationary=False, oracle=GPU),
        Workload(
            "prompts-answers-prompts", 1000, 22, turns((2.2, prompts), (2.6, answers)), stationary=False, oracle=CPU
        ),
    )
    recorded = (
        _part(traces / "azure2023_conv.csv.gz", 0.5, 1500, 75, 3500, 240.0),
        _part(traces / "azure2023_code.csv.gz", 0.3, 3000, 75, 3430, 720.0),
        _part(traces / "mooncake_conversation.csv.gz", 0.13, 20_000, 100, 3530, 480.0),
        _part(traces / "mooncake_synthetic.csv.gz", 0.15, 20_000, 100, 1020, 480.0),
    )
    found = [
        *(Case(w, 360.0, WIDE if w.oracle == GPU else SMALL) for w in changing),
        *(Case(w, seconds, WIDE) for w, seconds in recorded),
        *(Case(w, 200.0, SMALL) for w in plain),
        *(Case(w, 400.0 if w.name == "doc" else 200.0, WIDE) for w in still),
    ]
    return sorted(found, key=_tokens)


def _tokens(case: Case) -> int:
    """Of answers: what a run costs. The cheapest come first, so that a study that is broken off has most of them."""
    return sum(a.output for a in case.workload.arrivals(case.seconds, SEEDS[0])) if _there(case) else 0


def _there(case: Case) -> bool:
    return case.workload.file is None or case.workload.file.is_file()


def _part(path: Path, speed: float, ttft: int, tpot: int, lasts: float, seconds: float) -> tuple[Workload, float]:
    """A stretch of the trace for each seed, apart from all others. Raises ValueError where it is too short for that."""
    stride = lasts / STRETCHES
    if seconds * speed > stride:
        raise ValueError(f"{path.name}: {lasts:g} s hold no {STRETCHES} stretches of {seconds * speed:g} s")
    return of_trace(path, speed, ttft, tpot, GPU, stride=stride, stretch=stretch), seconds


def stretch(seed: int) -> int:
    """Its stretch of a trace: those of the judged seeds are spread over it, training has what is between them.

    Raises:
        KeyError: a seed of neither.
    """
    return _STRETCHES[seed]


def _stretches() -> dict[int, int]:
    judged = [round((k + 1) * (STRETCHES - 1) / len(SEEDS)) for k in range(len(SEEDS))]
    others = [number for number in range(1, STRETCHES) if number not in judged]
    return dict(zip(SEEDS, judged, strict=True)) | dict(zip(TRAINING, others, strict=True))


_STRETCHES = _stretches()


def first_units(case: Case, seeds: Sequence[int] = SEEDS) -> Iterator[Unit]:
    """Those that depend on no other's result."""
    for policy in RULES:
        for seed in seeds:
            yield Unit(case, policy, seed)
    for policy in (*HINDSIGHT, *BUDGETS):
        for seed in seeds[:SIFTED]:
            yield Unit(case, policy, seed)


def final_units(case: Case, done: Sequence[Outcome], seeds: Sequence[int] = SEEDS) -> Iterator[Unit]:
    """The finalists' other seeds. `done`: outcomes of `first_units`."""
    for policy in (*best(done, HINDSIGHT, FINALISTS, seeds[:SIFTED]), *best(done, BUDGETS, 1, seeds[:SIFTED])):
        for seed in seeds[SIFTED:]:
            yield Unit(case, policy, seed)


def hour_units(case: Case) -> Iterator[Unit]:
    """Auto's long runs, of a constant load."""
    if case.workload.stationary:
        for seed in HOURS:
            yield Unit(replace(case, seconds=HOUR), "auto", seed)


def best(done: Sequence[Outcome], policies: Sequence[str], count: int, seeds: Sequence[int]) -> list[str]:
    """The policies with the highest mean attainment over these seeds, of those that were played on all of them."""

    def mean(policy: str) -> float:
        found = {o.seed: o.attainment for o in done if o.policy == policy and o.seed in seeds}
        return sum(found.values()) / len(seeds) if len(found) == len(seeds) else -1.0

    return sorted((p for p in policies if mean(p) >= 0), key=mean, reverse=True)[:count]


def code() -> Code:
    """Of this program."""
    engine = (semipd_cli.simulator, semipd_engine.core, semipd_agent.contract, semipd_engine.contract)
    return Code(digest(*engine), digest(*engine, semipd_agent.slo))


def digest(*packages: ModuleType) -> str:
    digest = hashlib.sha256()
    for package in packages:
        for file in sorted(Path(next(iter(package.__path__))).glob("*.py")):
            digest.update(file.name.encode() + file.read_bytes())
    return digest.hexdigest()[:16]
