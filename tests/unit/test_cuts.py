"""Cutting stages for the pacer: every unit once and in order, no piece over its budget that could be smaller."""

from __future__ import annotations

import math
import random
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import cycle
from types import SimpleNamespace
from typing import cast

import pytest
import torch

from semipd_engine.kernels import CannotRecord, PackedGroup, Rates, ReferenceKernels, cpu
from semipd_engine.kernels.rates import RATES as TABLE
from semipd_engine.memory.shared import HUGE_PAGE, map_anonymous
from semipd_engine.model.cuts import StageLoop, seconds
from semipd_engine.model.layers.linear import GroupedLinear, Linear
from semipd_engine.model.stage import Step, Work, Workspace
from semipd_engine.pacing.quantum import in_quanta

pytestmark = pytest.mark.unit

STEP = cast(Step, None)  # these stages need none
KERNELS = ReferenceKernels()
RATES = Rates(read=1.0, products=1.0, gathered=1.0, scores=1.0, latent=1.0)


@dataclass
class Recorded:
    """A stage of `count` units that take `seconds` each."""

    name: str
    count: int
    seconds: float
    pacer: Budgets
    ranges: list[tuple[int, int]] = field(default_factory=list)
    recordable: bool = False

    def units(self, step: Step) -> int:
        return self.count

    def work(self, step: Step) -> Work:
        return Work(read=round(self.seconds * self.count))

    def run(self, step: Step, begin: int, end: int) -> None:
        self.ranges.append((begin, end))
        self.pacer.spent[-1].append((end - begin) * self.seconds)


class Budgets:
    """A pacer whose quanta have these budgets, by turns."""

    def __init__(self, *seconds: float) -> None:
        self.budgets = seconds
        self.spent: list[list[float]] = []

    @contextmanager
    def quantum(self) -> Iterator[float]:
        self.spent.append([])
        yield self.budgets[(len(self.spent) - 1) % len(self.budgets)]


def test_every_unit_runs_once_in_order_and_within_the_budget() -> None:
    rng = random.Random(1)
    for _ in range(300):
        pacer = Budgets(*(rng.choice([4.0, 20.0, 1e9]) for _ in range(3)))
        stages = [Recorded(str(i), rng.choice([1, 3, 40]), rng.choice([1, 2, 7, 30]), pacer) for i in range(6)]
        StageLoop(stages, KERNELS, pacer, RATES).run(STEP)
        for stage in stages:
            assert stage.ranges[0][0] == 0 and stage.ranges[-1][1] == stage.count
            assert all(a[1] == b[0] for a, b in zip(stage.ranges, stage.ranges[1:], strict=False))
        for number, spent in enumerate(pacer.spent):
            budget = pacer.budgets[number % 3]
            assert spent, "an empty quantum"
            assert sum(spent) <= budget or len(spent) == 1
            assert len(spent) > 1 or spent[0] <= max(budget, 30)


def test_a_quantum_holds_as_many_stages_as_fit() -> None:
    pacer = Budgets(10.0)
    stages = [Recorded(str(i), 1, 3.0, pacer) for i in range(7)]
    StageLoop(stages, KERNELS, pacer, RATES).run(STEP)
    assert [len(spent) for spent in pacer.spent] == [3, 3, 1]


def test_a_phase_without_a_peer_is_not_cut() -> None:
    pacer = Budgets(float("inf"))
    stages = [Recorded(str(i), 50, 3.0, pacer) for i in range(7)]
    StageLoop(stages, KERNELS, pacer, RATES).run(STEP)
    assert len(pacer.spent) == 1
    assert [stage.ranges for stage in stages] == [[(0, 50)]] * 7


def test_a_matrix_product_is_bound_by_its_bytes_or_its_arithmetic() -> None:
    rates = Rates(read=10.0, products=2.0, gathered=0.5, scores=1.0, latent=1.0)
    assert seconds(Work(read=100, products=4), rates) == 10.0
    assert seconds(Work(read=100, products=40, scores=5), rates) == 25.0
    assert seconds(Work(products=4, gathered=2, latent=7), rates) == 13.0


class Recorder(ReferenceKernels):
    """Keeps what a stage says instead of a kernel's call, and counts."""

    def __init__(self) -> None:
        super().__init__()
        self.tape: list[bytes] | None = None
        self.recorded: list[bytes] = []
        self.replayed: list[bytes] = []

    @contextmanager
    def recording(self) -> Iterator[list[bytes]]:
        self.tape = tape = []
        try:
            yield tape
        finally:
            self.tape = None
        self.recorded += tape

    def replay(self, calls: bytes | bytearray) -> None:
        self.replayed.append(bytes(calls))


@dataclass
class Said:
    """A stage of `count` units of a second each that says its range; `eager` ones cannot be recorded."""

    name: str
    count: int
    kernels: Recorder
    eager: bool = False
    recordable: bool = True

    def units(self, step: Step) -> int:
        return self.count

    def work(self, step: Step) -> Work:
        return Work(read=self.count)

    def run(self, step: Step, begin: int, end: int) -> None:
        word = f"{self.name}{begin}-{end} ".encode()
        if self.eager:
            if self.kernels.tape is not None:
                raise CannotRecord
            self.kernels.replayed.append(b"eager " + word)
        else:
            assert self.kernels.tape is not None
            self.kernels.tape.append(word)


class Slow(Recorder):
    """On a machine where each unit takes so many seconds of CPU time."""

    def __init__(self, unit: float) -> None:
        super().__init__()
        self.unit, self.clock = unit, 0.0
        self.pieces: list[int] = []

    def replay(self, calls: bytes | bytearray) -> None:
        super().replay(calls)
        units = sum(int(end) - int(begin) for begin, end in re.findall(rb"(\d+)-(\d+)", bytes(calls)))
        self.pieces.append(units)
        self.clock += units * self.unit


@pytest.mark.parametrize(("unit", "most"), [(1.0, 12), (2.0, 6), (0.5, 24), (40.0, 3), (0.01, 48)])
def test_pieces_keep_to_the_budget_on_a_machine_that_is_slower_or_faster_than_the_table(unit: float, most: int) -> None:
    """Four times at the most: what is further off was disturbed, or is no rate."""
    kernels = Slow(unit)
    stages = [Said(name, 30, kernels) for name in "abcd"]
    loop = StageLoop(stages, kernels, Budgets(12.0), RATES, cpu_time=lambda: kernels.clock)
    for form in range(20):
        loop.run(cast(Step, SimpleNamespace(form=(form,))))
    assert kernels.pieces[0] == 12, "nothing is known yet"
    assert kernels.pieces[-2] == pytest.approx(most, abs=1)
    kernels.unit = 1.0  # who computed beside it has gone
    for form in range(20):
        loop.run(cast(Step, SimpleNamespace(form=(form,))))
    assert kernels.pieces[-2] == pytest.approx(12, abs=1)


def test_without_compiled_kernels_nothing_is_measured() -> None:
    times = cycle([0.0, 1000.0])
    pacer = Budgets(10.0)
    loop = StageLoop(
        [Recorded(str(i), 1, 3.0, pacer) for i in range(7)], KERNELS, pacer, RATES, cpu_time=lambda: next(times)
    )
    for _ in range(3):
        loop.run(STEP)
    assert [len(spent) for spent in pacer.spent] == [3, 3, 1] * 3


def test_whole_stages_are_recorded_once_for_a_form_and_a_quantum_is_one_replay() -> None:
    kernels = Slow(1.0)
    stages = [Said("a", 2, kernels), Said("b", 5, kernels), Said("c", 1, kernels, eager=True), Said("d", 2, kernels)]
    loop = StageLoop(stages, kernels, Budgets(6.0), RATES, cpu_time=lambda: kernels.clock)
    step = cast(Step, SimpleNamespace(form=(1,)))
    loop.run(step)
    once = list(kernels.replayed)
    assert once == [b"a0-2 b0-4 ", b"b4-5 ", b"eager c0-1 ", b"d0-2 "]
    assert kernels.recorded == [b"a0-2 ", b"b0-4 ", b"b4-5 ", b"d0-2 "]
    kernels.recorded.clear()
    kernels.replayed.clear()
    loop.run(step)
    assert kernels.replayed == once
    assert kernels.recorded == [b"b0-4 ", b"b4-5 "]  # only what is cut is said again
    loop.run(cast(Step, SimpleNamespace(form=(2,))))
    assert kernels.recorded[2:] == [b"a0-2 ", b"b0-4 ", b"b4-5 ", b"d0-2 "]


LEVELS = [level for level in cpu.LEVELS if level in cpu.runnable()]


@pytest.mark.parametrize("level", LEVELS)
def test_float32_is_cut_as_what_no_special_instruction_multiplies(level: str) -> None:
    """By bfloat16's rates its pieces would take ten times their budget."""
    plain = "avx2" if level == "avx2" else "avx512"
    assert cpu.CpuKernels(cpu.load(level)).rates(torch.float32, 64) == TABLE[plain]
    assert cpu.CpuKernels(cpu.load(level)).rates(torch.bfloat16, 64) == TABLE[level]


@pytest.mark.parametrize("level", LEVELS)
def test_what_the_twins_serve_is_cut_at_their_rates(level: str) -> None:
    kernels, twins, compiled = cpu.CpuKernels(cpu.load(level)), KERNELS.rates(torch.bfloat16, 64), TABLE[level]
    assert kernels.rates(torch.float16, 64) == twins
    for head_dim in (40, 272):
        assert kernels.rates(torch.bfloat16, head_dim) == replace(compiled, scores=twins.scores)
    assert kernels.rates(torch.bfloat16, 256, (576, 512)) == compiled
    for latent in ((50, 32), (48, 30), (656, 512)):
        assert kernels.rates(torch.bfloat16, 64, latent) == replace(compiled, latent=twins.latent)


def test_products_of_gathered_rows_have_a_rate_of_their_own() -> None:
    layout = KERNELS.layout(130, 32, torch.bfloat16)
    group = PackedGroup(torch.zeros(4, *layout.shape, dtype=torch.bfloat16), layout)
    gathered, plain = GroupedLinear(KERNELS, group).work(100), Linear(KERNELS, group[0]).work(100)
    assert gathered == Work(read=4 * plain.read, gathered=plain.products)
    assert all(rates.gathered <= rates.products for rates in TABLE.values())


@pytest.mark.parametrize(("budget", "parts"), [(0.5, [1] * 7), (2.5, [2, 2, 2, 1]), (100.0, [7]), (math.inf, [7])])
def test_rows_go_into_as_few_quanta_as_hold_them(budget: float, parts: list[int]) -> None:
    pacer, seen = Budgets(budget), list[int]()

    def work(begin: int, end: int) -> list[int]:
        seen.append(end - begin)
        return list(range(begin, end))

    assert in_quanta(pacer, 7, 1.0, work) == list(range(7))
    assert seen == parts and len(pacer.spent) == len(parts)


def test_a_buffer_of_a_prompt_lies_in_huge_pages_and_keeps_its_place(monkeypatch: pytest.MonkeyPatch) -> None:
    def unaligned(nbytes: int) -> torch.Tensor:
        """As kernels before 6.7 map."""
        return map_anonymous(nbytes + 4096)[4096:]

    monkeypatch.setattr("semipd_engine.model.stage.map_anonymous", unaligned)
    workspace = Workspace(torch.bfloat16, torch.device("cpu"))
    wide = workspace.rows("wide", 512, 4000)
    assert wide.shape == (512, 4000) and wide.dtype == torch.bfloat16 and wide.is_contiguous()
    assert wide.data_ptr() % HUGE_PAGE == 0
    room = wide.untyped_storage().nbytes() - wide.storage_offset() * wide.itemsize
    assert room >= -(-wide.nbytes // HUGE_PAGE) * HUGE_PAGE, "the kernel can back its end with a whole page, too"
    wide.fill_(1)
    again, version = workspace.rows("wide", 100, 4000), workspace.version
    assert again.data_ptr() == wide.data_ptr() and version == 1
    assert workspace.rows("narrow", 1, 16, torch.int32).dtype == torch.int32
    assert workspace.rows("wide", 513, 4000).shape == (513, 4000) and workspace.version == 3


def test_prompts_of_slightly_different_lengths_share_a_buffer() -> None:
    workspace = Workspace(torch.float32, torch.device("cpu"))
    addresses = {workspace.rows("wide", rows, 8).data_ptr() for rows in range(300, 320)}
    assert len(addresses) == 1 and workspace.version == 1
