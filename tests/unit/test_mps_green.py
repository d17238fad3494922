"""``mps-green`` on stand-in programs: what the self-test allows is in force, and what it refuses is said, with mps in
its place. No rung is ever taken away in silence."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from tests.unit.agent_bench import Bench, config
from tests.unit.mps_bench import MpsBench, mps_bench, rung, snapshot
from tests.unit.mps_stand_in import SMS, green_sms

from semipd_agent.__main__ import parse_arguments
from semipd_agent.contract import PartitionReason
from semipd_agent.partitioner.mps import green
from semipd_agent.partitioner.mps.ladder import LADDER
from semipd_engine.contract import GREEN_RUNGS, Phase, Split

pytestmark = pytest.mark.unit


@pytest.fixture
async def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[MpsBench]:
    """Asked for mps-green, and not started."""
    async with mps_bench(tmp_path, monkeypatch) as made:
        made.want_green()
        yield made


def says(**fields: object) -> str:
    return f"green: answer {json.dumps(fields)}"


async def test_where_the_self_test_allows_it_a_split_is_two_streams_of_the_same_workers(bench: MpsBench) -> None:
    await bench.in_force()
    mps = bench.mps
    assert (mps.name, mps.rungs, mps.notice) == ("mps-green", LADDER, "") and not mps.prepares
    plans = [mps.plan(Split(prefill=60, decode=40)), mps.plan(Split(prefill=100, decode=20))]
    limits = [limit for plan in plans for limit in (plan.prefill, plan.decode, plan.whole) if limit is not None]
    assert [(each.percent, each.rung, each.sm_count) for each in limits] == [
        *((60, 6, green_sms(60)), (40, 4, green_sms(40)), (100, 0, SMS)),
        *((100, 0, SMS), (20, 2, green_sms(20)), (100, 0, SMS)),
    ]
    environment = limits[0].environment
    assert all(each.environment == environment for each in limits), "one worker of each phase holds them all"
    assert environment[GREEN_RUNGS] == "10,20,30,40,50,60,80"
    assert environment["CUDA_MPS_ACTIVE_THREAD_PERCENTAGE"] == "100", "a limit below would lie over the streams"
    assert all(each.terminate_seconds > 0 for each in limits), "clients of MPS as ever"


async def test_what_a_worker_reads_back_proves_its_rung(bench: MpsBench) -> None:
    await bench.in_force()
    split = Split(prefill=60, decode=100)

    def reason(percent: int, sms: int | None, phase: Phase = Phase.PREFILL) -> PartitionReason | None:
        problem = bench.mps.verify(rung(phase, percent, sms), split)
        return problem.reason if problem else None

    assert reason(60, green_sms(60)) is None and reason(100, SMS, Phase.DECODE) is None
    for percent, sms in ((60, 78), (60, SMS), (60, None), (50, green_sms(50))):
        assert reason(percent, sms) is PartitionReason.READBACK_MISMATCH


async def test_on_every_rung_the_list_of_clients_says_who_is_in_mps(bench: MpsBench) -> None:
    await bench.in_force()
    workers = (rung(Phase.PREFILL, 60, green_sms(60), pid=4001), rung(Phase.DECODE, 40, green_sms(40), pid=4002))
    bench.faults("get_client_list: answer 4001")
    bench.mps.follow(snapshot(*workers))
    asked = bench.clock.monotonic()
    await bench.until(lambda: (c := bench.mps._keeper.clients) is not None and c.asked > asked)
    problems = [bench.mps.verify(each, Split(prefill=60, decode=40)) for each in workers]
    assert problems[0] is None
    assert problems[1] is not None and problems[1].reason is PartitionReason.WORKER_OUTSIDE_MPS


REFUSALS = [
    (
        says(error="prefill: no cuGreenCtxCreate"),
        "GreenContextsUnavailable: prefill: no cuGreenCtxCreate; they need",
    ),
    (
        says(trouble="decode, hold 10: cuLaunchKernel: CUDA_ERROR_LAUNCH_FAILED (719)"),
        "GreenProbeFailed: decode, hold 10: cuLaunchKernel: CUDA_ERROR_LAUNCH_FAILED (719); what it has said besides",
    ),
    (says(apart=False, why="decode had 5 of its SMs"), "GreenContextsOverlap: decode had 5 of its SMs; "),
    (says(sms={"prefill": {}, "decode": {}}, lost={"10": "coarse"}), "GreenContextsUnavailable: coarse"),
    (says(sms={}), "GreenProbeFailed: exit status 0, KeyError: "),
    (says(lost=[]), "GreenProbeFailed: exit status 0, AttributeError: "),
    ("green: late", "GreenProbeFailed: exit status 3, ValueError: it failed behind its answer"),
    ("green: die", "GreenProbeFailed: exit status 3, IndexError"),
    ("green: hang", "GreenProbeFailed: python"),
]


@pytest.mark.parametrize(("fault", "said"), REFUSALS, ids=lambda value: str(value)[:30])
async def test_a_refusal_is_told_by_name_and_remedy_and_mps_serves(bench: MpsBench, fault: str, said: str) -> None:
    bench.faults(fault)
    await bench.in_force()
    mps = bench.mps
    assert mps.name == "mps" and mps.rungs == LADDER and mps.prepares
    assert mps.notice.startswith("mps is in force in place of mps-green: ") and said in mps.notice
    assert mps.notice.endswith("unset SEMIPD_PARTITION_BACKEND to be rid of this message")
    limit = mps.plan(Split(prefill=60, decode=40)).prefill
    assert limit.rung is None and GREEN_RUNGS not in limit.environment and limit.sm_count == 78
    assert mps.verify(rung(Phase.PREFILL, 60, 78), Split(prefill=60, decode=40)) is None


async def test_a_refused_self_test_that_has_cost_the_server_costs_the_daemon_and_is_not_tried_again(
    bench: MpsBench,
) -> None:
    bench.faults("green: harm")
    bench.begin()
    await bench.until(lambda: bench.mps.health() is not None)
    problem = bench.mps.health()
    assert problem is not None and problem.reason is PartitionReason.MPS_START_FAILED
    bench.faults()
    await bench.until(lambda: bench.mps.ready)
    assert bench.mps.name == "mps" and "GreenProbeFailed" in bench.mps.notice


async def test_status_names_the_backend_in_force_and_why_it_is_not_the_one_asked_for(bench: MpsBench) -> None:
    bench.faults("green: die")
    await bench.in_force()
    partition = Bench(config(), backend=lambda mode: bench.mps).report().partition
    assert partition.backend == "mps" and "in place of mps-green: GreenProbeFailed" in partition.message


async def test_rungs_that_the_device_or_a_worker_has_lost_are_chosen_no_more_and_told(bench: MpsBench) -> None:
    bench.faults(says(lost={"30": "coarse"}, apart=None, why="no block fits"))
    await bench.in_force()
    mps = bench.mps
    assert mps.rungs == (10, 20, 40, 50, 60, 80, 100)
    assert mps.quantize(Split(prefill=30, decode=60)) == Split(prefill=40, decode=60)
    worker = rung(Phase.DECODE, 40, green_sms(40), lost_rungs={green.number(60): "WrongProducts: of 4096"})
    mps.follow(snapshot(worker))
    assert mps.rungs == (10, 20, 40, 50, 80, 100)
    assert mps.quantize(Split(prefill=30, decode=60)) == Split(prefill=40, decode=50)
    assert mps.notice == (
        "whether the phases' lanes share an SM was not seen: no block fits; without the rung of 30 %: coarse; "
        "without the rung of 60 %: decode: WrongProducts: of 4096"
    )
    mps.follow(snapshot(rung(Phase.DECODE, 40, green_sms(40))))
    assert 60 in mps.rungs, "its successor holds it"


async def test_a_new_daemon_keeps_what_was_found(bench: MpsBench) -> None:
    await bench.in_force()
    first = bench.mps.plan(Split()).prefill.environment
    bench.faults(says(error="not asked again"))
    bench.mps._keeper.condemn("for a test")
    await bench.until(lambda: bench.mps.incarnation == 2)
    second = bench.mps.plan(Split()).prefill.environment
    assert bench.mps.name == "mps-green" and second != first and second[GREEN_RUNGS] == first[GREEN_RUNGS]


async def test_nobody_who_did_not_ask_for_it_has_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with mps_bench(tmp_path, monkeypatch) as made:
        made.faults("green: die")  # it is not even run
        await made.in_force()
        assert (made.mps.name, made.mps.notice) == ("mps", "")


def test_the_flag_has_two_words_and_the_environment_its_default(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert parse_arguments([])[0].partition_backend == "mps"
    monkeypatch.setenv(green.VARIABLE, "mps-green")
    assert parse_arguments([])[0].partition_backend == "mps-green"
    assert parse_arguments(["--partition-backend", "mps"])[0].partition_backend == "mps"
    monkeypatch.setenv(green.VARIABLE, "green")
    with pytest.raises(SystemExit):
        parse_arguments([])
    assert "'green' is none (SEMIPD_PARTITION_BACKEND is its default): mps or mps-green" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "found"), [(["--device", "cpu"], "device cpu"), (["--device", "cuda", "--unified"], "one process")]
)
async def test_where_there_is_nothing_to_split_so_the_agent_refuses_to_start(flags: list[str], found: str) -> None:
    command = [sys.executable, "-m", "semipd_agent", "--partition-backend", "mps-green", "--port", "0", "--", *flags]
    done = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1 and f"mps-green is for two phases on an NVIDIA GPU, and here is {found}" in done.stderr
