"""The check of a GPU without its parts: what runs in the time that is left, and what is said of what was measured."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from tests.engine.harness import Stream
from tests.gpu.check import large_parts
from tests.gpu.check.catalogue import LEAVE_SECONDS, PARTS, RESERVED, Part, allowance
from tests.gpu.check.command import BUDGET_SECONDS
from tests.gpu.check.goodput import Alone, Lengths, Served, fitting, summary, trace
from tests.gpu.check.green_parts import tried
from tests.gpu.check.presence import lacking, no_gpu
from tests.gpu.check.report import Call, Outcome, Record, Skip, markdown
from tests.gpu.check.run import status_of
from tests.gpu.check.verdicts import PREDICTIONS, Verdict, steps, targets
from tests.unit.cuda.stub import libcuda

from semipd_engine.ipc.tokens import Sampling

pytestmark = pytest.mark.unit

PREDICTED: dict[str, Any] = json.loads(PREDICTIONS.read_text())
CASES = PREDICTED["models"]["8B"]["cases"]


def record(name: str, outcome: Outcome = Outcome.OK, **figures: Any) -> Record:
    return Record(name, "", outcome, figures=figures)


def machine(gpu: str = "NVIDIA H100 80GB HBM3, 132 SMs") -> Record:
    return record("machine", GPU=gpu)


def large(**ms: float) -> Record:
    rows = [{"step": name.replace("_", " "), "ms": value} for name, value in ms.items()]
    return record("large-8B", steps=rows)


def verdict(rows: list[dict[str, Any]], target: str) -> tuple[Any, Any]:
    return next((row["measured"], row["verdict"]) for row in rows if row["target"] == target)


def test_every_part_begins_where_the_parts_before_it_are_as_quick_as_they_must_be() -> None:
    """Without the probe of others: ten minutes hold all parts, each at least as long as it must have."""
    ours = [part for part in PARTS if not part.name.startswith("probe")]
    ours = [part for part in ours if part.name != "exact-smollm2"]  # wants a folder
    assert sum(part.least for part in ours if not part.kills) + RESERVED + LEAVE_SECONDS <= BUDGET_SECONDS
    assert sum(part.least for part in ours if part.kills) <= RESERVED
    assert [part.kills for part in PARTS] == sorted(part.kills for part in PARTS), "what kills comes last"


def test_the_time_that_is_left_decides() -> None:
    part, kill = Part("one", "", limit=100, least=20), Part("kills", "", limit=100, least=20, kills=True)
    assert allowance(part, 500) == 100
    assert allowance(part, RESERVED + LEAVE_SECONDS + 30) == 30, "the kills keep their time"
    assert allowance(part, RESERVED + LEAVE_SECONDS + 19) == 0
    assert allowance(kill, LEAVE_SECONDS + 30) == 30
    assert allowance(part, 10_000, patience=20) == 2000


def test_a_step_is_near_what_was_expected_or_a_miss_either_way() -> None:
    expected = CASES["decode 1"]["ms"]["H100"]["expected"]
    rows = steps([machine(), large(decode_1=expected * 1.2, decode_16=1000.0, decode_64=0.1)], PREDICTED)
    said = {row["step"]: row["verdict"] for row in rows if row["model"] == "8B"}
    assert said == {
        "decode 1": "near",
        "decode 16": "missed: slower",
        "decode 64": "missed: faster",
        "prefill 2048": "not measured",
        "prefill 8192": "not measured",
    }
    assert {row["verdict"] for row in rows if row["model"] != "8B"} == {"not measured"}
    assert next(row for row in rows if row["step"] == "decode 1" and row["model"] == "8B")["measured / expected"] == 1.2


def test_a_card_without_predictions_shows_what_it_did() -> None:
    rows = steps([machine("NVIDIA L4, 58 SMs"), large(decode_1=50.0)], PREDICTED)
    row = next(row for row in rows if (row["model"], row["step"]) == ("8B", "decode 1"))
    assert row["measured ms"] == 50.0 and row["verdict"] == "not predicted for this card"
    assert not [column for column in row if "expected" in column], "figures of two cards are not compared"


def test_where_no_card_is_known_the_predictions_stand_and_nothing_is_measured() -> None:
    row = next(row for row in steps([], PREDICTED) if (row["model"], row["step"]) == ("8B", "decode 1"))
    assert row["verdict"] == "not measured"
    assert row["expected on H100 ms"] == CASES["decode 1"]["ms"]["H100"]["expected"]


def test_nothing_is_met_that_nobody_has_measured() -> None:
    rows = targets([machine()], PREDICTED)
    assert {row["verdict"] for row in rows} == {Verdict.NOT_MEASURED} and len(rows) == 8


def test_tokens_are_the_same_in_each_family_that_ran() -> None:
    ran = [record("exact-llama"), record("exact-qwen2", Outcome.FAILED), record("exact-qwen3", Outcome.SKIPPED)]
    assert verdict(targets(ran, PREDICTED), "float32 tokens") == ("1 of 2 families, not exact-qwen2", "missed")
    assert verdict(targets(ran[:1], PREDICTED), "float32 tokens") == ("1 of 1 families", "met")


def test_a_second_copy_of_the_weights_shows() -> None:
    figures = {"weights, MiB": 15317, "KV pool, MiB": 17000}
    for taken, said in ((35000, "met"), (48000, "missed")):
        found = record("large-8B", **figures, **{"memory taken by all, MiB": taken})
        assert verdict(targets([found], PREDICTED), "weights in memory")[1] == said


@pytest.mark.parametrize(("slower", "said"), [(1.2, "met"), (1.3, "missed")])
def test_decode_is_held_against_the_floor_of_the_card(slower: float, said: str) -> None:
    floor = CASES["decode 64"]["ms"]["H200"]["floor"]
    rows = targets([machine("NVIDIA H200, 132 SMs"), large(decode_64=floor * slower)], PREDICTED)
    assert verdict(rows, "8B, decode 64")[1] == said
    assert verdict(rows, "8B, decode 1")[1] == "not measured"


def test_graphs_stand_beside_and_their_steps_count() -> None:
    floor = CASES["decode 1"]["ms"]["H100"]["floor"]
    graphs = record("graphs-8B", steps=[{"step": "decode 1", "ms": floor * 1.1}])
    records = [machine(), large(decode_1=floor * 3), graphs]
    assert verdict(targets(records, PREDICTED), "8B, decode 1")[1] == "met"
    row = next(row for row in steps(records, PREDICTED) if (row["model"], row["step"]) == ("8B", "decode 1"))
    assert (row["measured ms"], row["as a graph ms"]) == (floor * 3, floor * 1.1)


def test_decode_on_another_card_is_held_against_a_copy_there() -> None:
    copy = record("kernels", **{"copy, GB/s": 1000.0})
    ms = CASES["decode 1"]["bytes"] / 1e12 * 1e3
    rows = targets([machine("NVIDIA L40S, 142 SMs"), copy, large(decode_1=2 * ms)], PREDICTED)
    assert verdict(rows, "8B, decode 1") == ("50%", "missed")


def test_a_prompt_is_held_against_the_products_of_the_whole_device() -> None:
    rates = [{"percent": 20, "TFLOP/s": 150.0}, {"percent": 100, "TFLOP/s": 700.0}]
    ms = CASES["prefill 2048"]["flops"] / 700e12 * 1e3
    rows = targets([record("rungs", **{"matrix products of one client": rates}), large(prefill_2048=2 * ms)], PREDICTED)
    assert verdict(rows, "8B, prefill 2048") == ("50%", "missed")


@pytest.mark.parametrize(("worst", "said"), [(15.9, "met"), (17.0, "missed")])
def test_a_move_may_cost_a_stream_one_step(worst: float, said: str) -> None:
    move = {"move": "warm", "moves": 10, "a step ms, median": 8.0, "worst gap ms": worst}
    switches = record(
        "switches", **{"moves, one after the other": [move | {"move": "cold", "worst gap ms": 900.0}, move]}
    )
    assert verdict(targets([record("mps", rungs={}), switches], PREDICTED), "a move between warm MPS rungs")[1] == said
    alone = targets([record("mps", Outcome.SKIPPED), switches], PREDICTED)
    assert verdict(alone, "a move between warm MPS rungs")[1] == "not measured", "without MPS nothing moved"


def test_a_device_without_green_contexts_is_left_out_and_says_why() -> None:
    """The agent's own self-test is asked, here as everywhere; this machine has no driver."""
    with pytest.raises(Skip, match=r"GreenContextsUnavailable: prefill: libcuda\.so\.1"):
        tried({})


def test_a_self_test_that_comes_to_no_end_is_a_failure_of_its_part_and_not_left_out(tmp_path: Path) -> None:
    stub = Path(libcuda(tmp_path)).parent
    with pytest.raises(RuntimeError, match="GreenProbeFailed: prefill, hello: the client ended with -6"):
        tried({"LD_LIBRARY_PATH": str(stub), "STUB_DOES": "cuGreenCtxCreate=crash"})


def test_a_green_move_has_its_microseconds() -> None:
    for p99, said in ((40.0, "met"), (140.0, "missed")):
        rows = targets([record("green", moves=[{"p99 us": p99}])], PREDICTED)
        assert verdict(rows, "a move between green contexts") == (p99, said)


@pytest.mark.parametrize(("auto", "said"), [(15.1, "met"), (14.0, "missed")])
def test_auto_is_held_against_the_best_setting_of_one_process(auto: float, said: str) -> None:
    modes = {"one process, steps of 512": 8.0, "one process, steps of 2048": 10.0, "Auto, as it begins": 9.0}
    modes |= {"both on the whole device": 16.0, "Auto": auto}
    rows = [{"mode": mode, "goodput, 1/s": rate} for mode, rate in modes.items()]
    found = record("goodput", **{"goodput by mode": rows})
    measured, verdict_ = verdict(targets([record("mps", rungs={}), found], PREDICTED), "goodput of Auto")
    assert verdict_ == said and measured.startswith(f"{auto / 10:.2f} x")
    assert verdict(targets([found], PREDICTED), "goodput of Auto")[1] == "not measured", "without MPS"
    early = record("goodput", **{"goodput by mode": rows[:3]})
    assert verdict(targets([record("mps", rungs={}), early], PREDICTED), "goodput of Auto")[1] == "not measured"


def test_the_trace_is_the_same_in_each_mode_and_presses_any_card_alike() -> None:
    slow, fast = Alone(0.2, 0.016), Alone(0.1, 0.008)
    lengths = Lengths((2048, 8), (128, 128))
    found = trace(slow, lengths, 4, 60.0)
    assert found == trace(slow, lengths, 4, 60.0) and found == sorted(found, key=lambda one: one.at)
    documents = [sum(60 * i <= one.at < 60 * i + 60 for one in found if one.prompt == 2048) for i in range(4)]
    assert all(documents[i] * slow.prompt / 60 == pytest.approx(wanted, rel=0.3) for i, wanted in ((0, 0.6), (2, 0.6)))
    assert max(documents[1], documents[3]) < min(documents[0], documents[2]) / 3
    assert len(trace(fast, lengths, 4, 30.0)) == len(found), "half the time, twice as fast"


def test_a_request_is_good_if_it_met_both_targets_and_ended() -> None:
    alone = Alone(0.1, 0.01)

    def served(first: float, gap: float, ended: bool = True) -> Served:
        stream = Stream("a", [], Sampling(), times=[5 + first + i * gap for i in range(5)])
        if ended:
            stream.done.set()
        return Served.of(stream, 5.0)

    given = [served(0.4, 0.02), served(0.5, 0.02), served(0.4, 0.03), served(0.4, 0.02, ended=False)]
    given.append(Served.of(Stream("b", [], Sampling()), 5.0))
    assert [one.good(alone) for one in given] == [True, False, False, False, False]
    assert summary("m", given, alone, 2.0) == {
        "mode": "m",
        "requests": 5,
        "met both": 1,
        "goodput, 1/s": 0.5,
        "TTFT p90, ms": 500.0,
        "TPOT p90, ms": 30.0,
    }


def test_turns_are_as_long_as_the_time_that_is_left_allows() -> None:
    alone = Alone(0.1, 0.01)
    assert fitting(alone, 4, 7, 1000.0, 8.0) == 8.0
    short = fitting(alone, 4, 7, 100.0, 8.0)
    assert 7 * (4 * short + 2 * alone.ttft + 1.0) == pytest.approx(100.0)
    assert fitting(alone, 4, 7, 5.0, 8.0) == 0.0


def test_the_page_begins_with_what_was_promised_and_keeps_the_misses() -> None:
    floor = CASES["decode 1"]["ms"]["H100"]["floor"]
    records = [machine(), large(decode_1=10 * floor)]
    call = Call({"device": "cuda", "commit": "0123abc"}, 12.0)
    page = markdown(records, call, targets(records, PREDICTED), steps(records, PREDICTED))
    assert page.index("8B, decode 1") < page.index("## machine") and "| 10% | missed |" in page
    assert "0123abc" in page and "missed: slower" in page


@pytest.mark.parametrize(
    ("device", "outcomes", "title"),
    [
        ("cuda", (Outcome.OK, Outcome.NO_GPU), "What a GPU showed"),
        ("cuda", (Outcome.FAILED, Outcome.SKIPPED), "What a GPU showed"),
        ("cuda", (Outcome.INTERRUPTED,), "What a GPU showed"),
        ("cuda", (Outcome.FAILED, Outcome.NO_GPU), "No GPU here: nothing was measured"),
        ("cuda", (Outcome.SKIPPED,), "No part ran: nothing was measured"),
        ("cuda", (), "No part ran: nothing was measured"),
        ("cpu", (Outcome.OK,), "Dry run on the CPU: no figure here is a GPU's"),
    ],
)
def test_the_page_is_called_what_it_is(device: str, outcomes: tuple[Outcome, ...], title: str) -> None:
    records = [record("part", outcome) for outcome in outcomes]
    assert markdown(records, Call({"device": device}, 1.0), [], []).startswith(f"# {title}\n")


@pytest.mark.parametrize(
    ("outcomes", "status"),
    [
        ((Outcome.OK, Outcome.SKIPPED), 0),
        ((Outcome.OK, Outcome.FAILED), 1),
        ((Outcome.TIMED_OUT, Outcome.NO_GPU), 1),
        ((Outcome.NO_GPU, Outcome.NO_GPU), 3),
        ((Outcome.SKIPPED, Outcome.SKIPPED), 3),
        ((), 3),
    ],
)
def test_nobody_takes_a_machine_without_a_gpu_for_a_success(outcomes: tuple[Outcome, ...], status: int) -> None:
    assert status_of([record("part", outcome) for outcome in outcomes]) == status


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ('{"sm_count": 132, "error": 0}', ""),
        ('{"sm_count": 0, "error": -1}', "libcuda.so.1 is not here"),
        ('{"sm_count": 0, "error": 100}', "the driver shows none"),
        ('{"sm_count": 0, "error": 999}', "CUresult 999"),
        ("", "ended with 0"),
    ],
)
def test_the_driver_answers_in_one_line(answer: str, said: str) -> None:
    line = no_gpu([sys.executable, "-I", "-c", f"print({answer!r})"])
    assert (line == "") == (said == "") and said in line and "\n" not in line


def test_a_package_that_is_not_here_is_named() -> None:
    assert lacking(("json", "no_such_package")).startswith("not here: no_such_package;")
    assert lacking() == ""


def test_what_a_part_saw_is_whole_or_not_there(tmp_path: Path) -> None:
    path = tmp_path / "part.json"
    record("part", steps=[{"step": "decode 1", "ms": 1.5}]).write(path)
    assert Record.read(path) == record("part", steps=[{"step": "decode 1", "ms": 1.5}])
    path.write_text(path.read_text()[:-5])
    assert Record.read(path) is None


def test_streams_that_never_decoded_together_cost_the_other_cases_nothing() -> None:
    """It is a row without a figure, not the end of the part."""
    together = [Stream("a", [], Sampling(), times=[1.0, 2.0, 2.5, 3.0]), Stream("b", [], Sampling(), times=[2.0, 2.5])]
    assert large_parts._step_ms(together, 2.0) == 500.0
    assert large_parts._step_ms(together, 2.75) is None
