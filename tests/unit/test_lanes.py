"""A worker's rungs as streams: which one is chosen, which are lost and why, and a program for each. No device is there:
the driver is its stand-in, and streams say what was asked of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tests.unit.cuda.stub import libcuda

from bench.gpu.models import CONTEXT, card
from bench.gpu.step_trace import BLOCK, GREEDY, FakeWorker
from semipd_engine.contract import GREEN_RUNGS, Phase
from semipd_engine.ipc.steps import Row, StepPlan
from semipd_engine.kernels.gpu import TritonKernels
from semipd_engine.memory import driver
from semipd_engine.worker.decode_graphs import SIZES, Queue
from semipd_engine.worker.lanes import LaneCapture, Lanes, open_lanes
from semipd_engine.worker.servable import UnfitError

pytestmark = pytest.mark.unit

GPU = torch.device("cuda", 0)


@dataclass(eq=False)
class Stream:
    name: object
    waited: list[object] = field(default_factory=list)

    def wait_stream(self, other: Stream) -> None:
        self.waited.append(other.name)


@pytest.fixture
def current(monkeypatch: pytest.MonkeyPatch) -> list[Stream]:
    """The streams that torch was told to go on with."""
    told: list[Stream] = []
    monkeypatch.setattr(torch.cuda, "set_stream", told.append)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device=None: Stream("torch's"))
    monkeypatch.setattr(torch.cuda, "ExternalStream", lambda stream, device: Stream(stream))
    whole = SimpleNamespace(multi_processor_count=132)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: whole)
    return told


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    new, old = (tmp_path_factory.mktemp(name) for name in ("new", "old"))
    return libcuda(new), libcuda(old, "-DOLD")


@pytest.fixture
def use(library: tuple[str, str], monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[bool], None]]:
    """The driver from now on, the old one or not."""

    def chosen(old: bool) -> None:
        driver._driver.cache_clear()
        monkeypatch.setattr(driver, "LIBRARY", library[old])

    chosen(False)
    yield chosen
    driver._driver.cache_clear()


def lanes_of(*numbers: int) -> Lanes:
    streams: Any = {number: Stream(number) for number in numbers}
    return Lanes(streams, dict.fromkeys(numbers, 8), {number: 10 * number or 100 for number in numbers})


# ---- choosing -------------------------------------------------------------------------------------------------------


def test_a_move_is_one_wait_and_the_choice_of_a_stream(current: list[Stream]) -> None:
    lanes = lanes_of(0, 1, 2)
    one, two, whole = (lanes.streams[number] for number in (1, 2, 0))
    for number in (0, 1, 1, 2, 0):
        lanes.choose(number)
    assert [stream.name for stream in current] == [1, 2, 0]
    assert ([*one.waited], [*two.waited], [*whole.waited]) == ([0], [1], [2])  # type: ignore[attr-defined]


def test_a_plan_runs_on_the_rung_that_it_names(monkeypatch: pytest.MonkeyPatch) -> None:
    worker = FakeWorker(card("1B", num_hidden_layers=1), TritonKernels(132), 4096)
    chosen: list[tuple[int, int]] = []
    monkeypatch.setattr(worker._runner, "_choose", lambda number: chosen.append((number, len(worker.record.launches))))
    table = list(range(CONTEXT // BLOCK + 1))
    rows = [Row(0, [1], CONTEXT - 9, table, outputs="last", sampling=GREEDY, history=[1])]
    worker.plan(StepPlan(1, 2, rows, rung=3))
    worker.plan(StepPlan(3, 1, rows))
    assert chosen == [(3, 0), (0, 0)], "once for each plan, before anything is queued"


# ---- opening --------------------------------------------------------------------------------------------------------


def test_a_worker_opens_the_rungs_of_its_phase(current: list[Stream], use: Callable[[bool], None]) -> None:
    for phase, expected in ((Phase.PREFILL, {0: 132, 1: 24, 2: 64}), (Phase.DECODE, {0: 132, 1: 28, 2: 68})):
        lanes = open_lanes(phase, {GREEN_RUNGS: "20,50"}, GPU)
        assert lanes is not None and (lanes.sm_counts, lanes.lost, lanes.chosen) == (expected, {}, 0)
        assert lanes.percents == {0: 100, 1: 20, 2: 50} and len({s.name for s in lanes.streams.values()}) == 3  # type: ignore[attr-defined]
    assert current == [], "nothing has moved"


def test_without_a_word_of_rungs_there_are_none(current: list[Stream]) -> None:
    assert open_lanes(Phase.DECODE, {}, GPU) is None


def test_a_ladder_that_cannot_be_read_makes_a_worker_unfit(current: list[Stream]) -> None:
    with pytest.raises(UnfitError, match="SEMIPD_GREEN_RUNGS=20%") as refused:
        open_lanes(Phase.DECODE, {GREEN_RUNGS: "20%"}, GPU)
    assert refused.value.reason == "GreenRungs"


def test_what_the_driver_refuses_is_lost_with_its_words(
    current: list[Stream], use: Callable[[bool], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = driver._driver().stub_alive()
    monkeypatch.setenv("STUB_REFUSED", "24")
    monkeypatch.setenv("STUB_FEWER", "64")
    lanes = open_lanes(Phase.PREFILL, {GREEN_RUNGS: "20,21,50,80"}, GPU)
    assert lanes is not None and lanes.sm_counts == {0: 132, 4: 104}
    assert lanes.lost == {
        1: "cuGreenCtxCreate: CUDA_ERROR_OUT_OF_MEMORY (2); each of them takes some of the device's memory: leave more "
        "of it free",
        2: "21 % is no rung of its own in 17 groups of up to 8 SMs",
        3: "it has 56 SMs, its groups have 64",
    }
    assert driver._driver().stub_alive() == before + 2, "a green context and its stream, of the rung that is held"
    use(True)
    lanes = open_lanes(Phase.PREFILL, {GREEN_RUNGS: "20,50"}, GPU)
    assert lanes is not None and lanes.sm_counts == {0: 132}, "the whole device serves"
    assert set(lanes.lost) == {1, 2} and "this driver does not have it" in lanes.lost[1]


@pytest.mark.parametrize("call", ["cuDevSmResourceSplitByCount", "cuGreenCtxStreamCreate"])
def test_a_split_or_a_stream_that_the_driver_refuses_leaves_the_whole_device(
    current: list[Stream], use: Callable[[bool], None], monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    before = driver._driver().stub_alive()
    monkeypatch.setenv("STUB_DOES", f"{call}=801")
    lanes = open_lanes(Phase.DECODE, {GREEN_RUNGS: "20,50"}, GPU)
    assert lanes is not None and (lanes.sm_counts, lanes.chosen, [*lanes.streams]) == ({0: 132}, 0, [0])
    said = f"{call}: CUDA_ERROR_NOT_SUPPORTED (801); this driver has none for this card, or for a process that is "
    assert lanes.lost == dict.fromkeys((1, 2), f"{said}limited already")
    assert driver._driver().stub_alive() == before


# ---- proving --------------------------------------------------------------------------------------------------------


def test_a_rung_that_does_not_prove_itself_leaves_the_ladder(current: list[Stream]) -> None:
    lanes, proved = lanes_of(0, 1, 2), list[int]()

    def prove() -> None:
        proved.append(lanes.chosen)
        if lanes.chosen == 1:
            raise UnfitError("WrongProducts", "of 4096 columns")

    lanes.each(prove)
    assert proved == [0, 1, 2] and lanes.chosen == 0
    assert (set(lanes.streams), lanes.sm_counts, lanes.lost) == (
        {0, 2},
        {0: 8, 2: 8},
        {1: "WrongProducts: of 4096 columns"},
    )
    with pytest.raises(KeyError):
        lanes.choose(1)


def test_a_worker_whose_whole_device_does_not_prove_itself_is_unfit(current: list[Stream]) -> None:
    def prove() -> None:
        raise UnfitError("WrongProducts", "everywhere")

    with pytest.raises(UnfitError, match="everywhere"):
        lanes_of(0, 1).each(prove)


def test_a_rung_that_finds_no_memory_is_lost_by_itself(current: list[Stream]) -> None:
    lanes = lanes_of(0, 1, 2)

    def prove() -> None:
        if lanes.chosen == 1:
            raise torch.OutOfMemoryError("CUDA out of memory")

    lanes.each(prove)
    assert (set(lanes.streams), lanes.lost) == ({0, 2}, {1: "OutOfMemory: CUDA out of memory"})


@pytest.mark.parametrize("told", [True, False], ids=["told by a gate", "raised"])
def test_a_rung_that_takes_the_device_from_all_makes_the_worker_unfit(
    current: list[Stream], monkeypatch: pytest.MonkeyPatch, told: bool
) -> None:
    """After an error of the device every later call fails, the choice of the whole device among them."""
    lanes, gone = lanes_of(0, 1, 2), torch.AcceleratorError("CUDA error: an illegal memory access was encountered")

    def fails(*_: object) -> None:
        raise gone

    def prove() -> None:
        if lanes.chosen == 1:
            monkeypatch.setattr(Stream, "wait_stream", fails)
            raise UnfitError("WarmUpFailed", "AcceleratorError") if told else gone

    with pytest.raises(UnfitError, match=r"the rung of 10 %: AcceleratorError: CUDA error: an illegal") as refused:
        lanes.each(prove)
    assert refused.value.reason == "WarmUpFailed" and 2 not in lanes.lost, "it is nobody's rung that is wrong"


# ---- programs -------------------------------------------------------------------------------------------------------


class Device:
    """Whose captures take memory, and whose programs say where they ran."""

    def __init__(self, each: int = 0, fails: object = None) -> None:
        self.free, self.each, self.fails = 1000, each, fails
        self.ran: list[object] = []
        self.captured: list[object] = []

    def make(self, stream: Any) -> Callable[[Queue], Queue]:
        name = stream.name if stream is not None else "its own"

        def capture(queue: Queue) -> Queue:
            if name == self.fails:
                raise torch.OutOfMemoryError("CUDA out of memory")
            self.captured.append(name)
            program = Program(self, name)
            return program.replay

        return capture


class Program:
    def __init__(self, device: Device, name: object) -> None:
        self.device, self.name = device, name
        device.free -= device.each

    def replay(self) -> None:
        self.device.ran.append(self.name)

    def __del__(self) -> None:
        self.device.free += self.device.each


def captured(lanes: Lanes, device: Device, budget: int = 500) -> LaneCapture:
    return LaneCapture(lanes, device.make, lambda: device.free, budget)


def test_a_program_is_replayed_on_the_rung_that_is_chosen(current: list[Stream]) -> None:
    lanes, device = lanes_of(0, 1, 2), Device()
    replay = captured(lanes, device)(lambda: None)
    assert device.captured == ["its own", 1, 2] and lanes.chosen == 0
    for number in (0, 2, 1):
        lanes.choose(number)
        replay()
    assert device.ran == ["its own", 2, 1]


def test_the_gates_program_is_made_for_the_rung_that_is_tried(current: list[Stream]) -> None:
    lanes, device = lanes_of(0, 1), Device()
    capture = captured(lanes, device)
    lanes.each(lambda: capture.of_chosen(lambda: None)() and None)
    assert device.captured == device.ran == ["its own", 1]


def test_programs_that_take_more_than_is_kept_for_them_cost_a_rung(current: list[Stream]) -> None:
    """Three programs on each of three rungs, of which seven fit: the whole device's are not counted."""
    lanes, device = lanes_of(0, 1, 2, 3), Device(each=100)
    capture = captured(lanes, device, budget=700)
    replays = [capture(lambda: None) for _ in range(3)]
    assert set(lanes.streams) == {0, 1, 3} and lanes.lost == {
        2: "OutOfMemory: the programs of all rungs take more than is kept for them"
    }
    assert device.free == 1000 - 900, "what the lost rung had taken is free again"
    lanes.choose(3)
    for replay in replays:
        replay()
    assert device.ran == [3, 3, 3]


def test_a_rung_whose_steps_cannot_be_captured_is_lost_and_a_whole_device_is_an_error(current: list[Stream]) -> None:
    lanes = lanes_of(0, 1, 2)
    captured(lanes, Device(fails=1))(lambda: None)()
    assert lanes.lost == {1: "WrongGraphs: a decode step cannot be captured: OutOfMemoryError: CUDA out of memory"}
    with pytest.raises(torch.OutOfMemoryError):
        captured(lanes_of(0, 1), Device(fails="its own"))(lambda: None)


def test_all_rungs_share_the_buffers_of_a_decode_step(current: list[Stream]) -> None:
    """A worker's own programs, traced: nine sizes on each of three rungs, and no byte more than one rung's."""
    lanes, made = lanes_of(0, 1, 2), list[object]()

    def make(stream: Any) -> Callable[[Queue], Queue]:
        def capture(queue: Queue) -> Queue:
            made.append(stream)
            queue()
            return queue

        return capture

    def live(capture: Callable[[Queue], Queue]) -> int:
        worker = FakeWorker(card("1B", num_hidden_layers=1), TritonKernels(132), 4096, capture=capture)
        return worker.record.live

    alone = live(make(None))
    made.clear()
    assert live(LaneCapture(lanes, make, lambda: 0)) == alone
    assert len(made) == 3 * len(SIZES)
