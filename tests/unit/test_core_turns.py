"""Work in one turn of core's loop is bounded, whatever clients do: counted in calls, 5 of which take a microsecond.

A hundred thousand calls are some 20 ms, the longest that anybody's token may wait for others' requests.
"""

from __future__ import annotations

import contextlib
import itertools
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from semipd_engine.contract import (
    CONTROL_SOCKET,
    GATE_SECONDS,
    Enforcement,
    EngineOptions,
    Gate,
    GetSnapshot,
    PartitionPlan,
    Phase,
    PhaseLimit,
    Promised,
    Split,
)
from semipd_engine.core.api_socket import CORE_SOCKET, ApiSocket
from semipd_engine.core.block_pool import BlockPool
from semipd_engine.core.engine_core import EngineCore
from semipd_engine.core.event_loop import EventLoop
from semipd_engine.core.kv_cache_manager import KVCacheManager
from semipd_engine.core.plan_builder import SchedulerLimits
from semipd_engine.core.request import Request, RequestState
from semipd_engine.core.scheduler import Scheduler
from semipd_engine.core.wishes import Wishes
from semipd_engine.ipc import requests
from semipd_engine.ipc.frames import Decoder, encode
from semipd_engine.ipc.requests import NOT_READY, AbortRequest, AddRequest, CoreToApi, Outputs
from semipd_engine.ipc.steps import StepResult, TokenResult
from semipd_engine.ipc.tokens import Sampling

pytestmark = pytest.mark.unit

MOST_CALLS = 100_000
ALL = 10_000
"""100 prompts x n 100."""


def calls(work: Callable[[], object]) -> int:
    """Function calls that it makes, C's included."""
    count = 0

    def tick(frame: object, event: str, argument: object) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    sys.setprofile(tick)
    try:
        work()
    finally:
        sys.setprofile(None)
    return count


class Core:
    """The part of core that clients meet: their socket and the scheduler, on a worker that answers at once."""

    def __init__(self, folder: Path, num_blocks: int = 4096, max_model_len: int = 4096) -> None:
        limits = SchedulerLimits(max_model_len, 64, 256)
        self.scheduler = Scheduler(limits, KVCacheManager(BlockPool(num_blocks), 16))
        self.loop = EventLoop()
        self.api = ApiSocket(
            self.loop, folder, self._add, self.scheduler.abort, lambda _: None, Wishes(), aggregated=lambda: False
        )
        self.folder = folder
        self.now = 0.0
        self.most = 0
        """Calls of the dearest turn."""

    def _add(self, request: Request, grammar: str) -> None:
        self.scheduler.add(request)

    def connect(self) -> socket.socket:
        client = socket.socket(socket.AF_UNIX)
        client.connect(str(self.folder / CORE_SOCKET))
        client.setblocking(False)
        return client

    def turn(self) -> None:
        self.most = max(self.most, calls(self._turn))

    def _turn(self) -> None:
        self.now += 0.01
        self.loop.run_once(0.0)
        self.api.tick()
        for queue in Phase:
            if (plan := self.scheduler.in_flight.get(queue)) is not None:
                tokens = [TokenResult(row.request, 7) for row in plan.rows if row.sampling is not None]
                self.scheduler.book(queue, StepResult(plan.seq, tokens, last=True), self.now)
            self.scheduler.plan(queue, self.now)
        self.api.deliver(self.scheduler.take_outputs())

    def settle(self, done: Callable[[], bool], turns: int) -> None:
        for _ in range(turns):
            if done():
                return
            self.turn()
        assert done()

    def empty(self) -> bool:
        counts = self.scheduler.kv.pool.counts()
        return not self.scheduler.table.by_id and counts.used == counts.quarantined == 0


def send(core: Core, client: socket.socket, data: bytes) -> None:
    """All of it, as the loop takes it; what core says is dropped."""
    while data:
        try:
            data = data[client.send(data) :]
        except BlockingIOError:
            core.turn()
        with contextlib.suppress(BlockingIOError):
            client.recv(1 << 20)


def fan_out(prompt: int) -> bytes:
    """100 different prompts of so many tokens, 100 times each."""
    requests = (
        AddRequest(f"r-{p}-{n}", [p, *range(prompt)], Sampling(max_tokens=4000, seed=n), received_at=0.0)
        for p, n in itertools.product(range(100), range(100))
    )
    return b"".join(map(encode, requests))


@pytest.mark.parametrize("by_message", [False, True])
def test_a_client_of_ten_thousand_sequences_comes_and_goes(tmp_path: Path, by_message: bool) -> None:
    """It hangs up, or its api process aborts them one by one; another client's stream has a token in each turn."""
    core = Core(tmp_path)
    other, client = core.connect(), core.connect()
    send(core, other, encode(AddRequest("other", [1, 2, 3], Sampling(max_tokens=4000), received_at=0.0)))
    core.settle(lambda: bool(core.scheduler.table.in_state(RequestState.DECODING)), turns=5)
    (stream,) = core.scheduler.table.in_state(RequestState.DECODING)
    send(core, client, fan_out(40))
    core.settle(lambda: len(core.scheduler.table.by_id) == ALL + 1, turns=500)
    for _ in range(20):
        before = stream.num_output_tokens
        core.turn()
        assert stream.num_output_tokens == before + 1
    assert core.scheduler.table.num_running == 64
    if by_message:
        aborts = (AbortRequest(f"r-{p}-{n}") for p, n in itertools.product(range(100), range(100)))
        send(core, client, b"".join(map(encode, aborts)))
    client.close()
    core.settle(lambda: list(core.scheduler.table.by_id) == [stream.id], turns=60)
    other.close()
    core.settle(core.empty, turns=4)
    assert core.most < MOST_CALLS


def test_copies_of_long_prompts_are_hashed_a_few_in_a_turn(tmp_path: Path) -> None:
    """A hundred prompts of 16,000 tokens that wait for one another, and a short one behind them."""
    core = Core(tmp_path, num_blocks=4096, max_model_len=20_000)
    client = core.connect()
    prompts = [
        AddRequest(f"r-{n}", [n % 2, *range(16_000)], Sampling(max_tokens=3000), received_at=0.0) for n in range(100)
    ]
    send(core, client, b"".join(map(encode, prompts)))
    core.settle(lambda: len(core.scheduler.table.by_id) == 100, turns=200)
    core.settle(lambda: core.scheduler.table.num_running == 64, turns=400)
    client.close()
    core.settle(core.empty, turns=4)
    assert core.most < MOST_CALLS


def plan_of(split: Split) -> PartitionPlan:
    return PartitionPlan(
        split=split,
        enforcement=Enforcement.NONE,
        prefill=PhaseLimit(percent=split.prefill),
        decode=PhaseLimit(percent=split.decode),
    )


def test_what_the_service_promises_bounds_wishes_until_another_word(tmp_path: Path) -> None:
    """The agent says it with each question; a question without a word leaves it."""
    core = EngineCore(EngineOptions(model=tmp_path / "none"), tmp_path, plan_of(Split()))
    client = socket.socket(socket.AF_UNIX)
    client.connect(str(tmp_path / CONTROL_SOCKET))
    client.setblocking(False)

    def ask(promised: Promised | None) -> tuple[float | None, float | None]:
        client.sendall(GetSnapshot(promised=promised).model_dump_json().encode() + b"\n")
        answer = b""
        while not answer.endswith(b"\n"):
            core._loop.run_once(0.01)
            with contextlib.suppress(BlockingIOError):
                answer += client.recv(1 << 20)
        return core._wishes.ttft, core._wishes.tpot

    assert ask(Promised(ttft_seconds=2.0)) == (2.0, None)
    assert ask(None) == (2.0, None)
    assert ask(Promised(tpot_seconds=0.1)) == (None, 0.1)
    client.close()


def test_the_gate_is_told_to_the_api_and_falls_open_when_nobody_renews_it(tmp_path: Path) -> None:
    core = EngineCore(EngineOptions(model=tmp_path / "none"), tmp_path, plan_of(Split()))
    assert core._report.core_state(time.monotonic()).gate == requests.Gate()
    said = Gate(ttft_seconds=0.9, token_seconds=1e-4, square_seconds=1e-9, most_in_work=7)
    core._on_control(GetSnapshot(gate=said))
    now = time.monotonic()
    assert core._report.core_state(now).gate == requests.Gate(0.9, 1e-4, 1e-9, 7)
    core._on_control(GetSnapshot())
    assert core._report.core_state(now).gate == requests.Gate(0.9, 1e-4, 1e-9, 7), "no word leaves it"
    assert core._report.core_state(now + GATE_SECONDS + 1).gate == requests.Gate()
    core._on_control(GetSnapshot(gate=Gate()))
    assert core._report.core_state(now).gate == requests.Gate()


def test_before_the_model_is_loaded_a_request_is_to_come_again(tmp_path: Path) -> None:
    """Whoever sent it had not heard of core's state: that is no failure of the engine."""
    core = EngineCore(EngineOptions(model=tmp_path / "none"), tmp_path, plan_of(Split()))
    client = socket.socket(socket.AF_UNIX)
    client.connect(str(tmp_path / CORE_SOCKET))
    client.setblocking(False)
    client.send(encode(AddRequest("a", [1], Sampling(), 0.0)))
    decoder, heard = Decoder(CoreToApi), list[CoreToApi]()
    while not any(isinstance(each, Outputs) for each in heard):
        core._loop.run_once(0.01)
        with contextlib.suppress(BlockingIOError):
            heard += decoder.feed(client.recv(1 << 20))
    (output,) = next(each.outputs for each in heard if isinstance(each, Outputs))
    assert (output.key, output.error_code) == ("a", NOT_READY) and output.error
    client.close()
