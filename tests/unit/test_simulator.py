"""`semipd simulate`: the virtual engine against arithmetic, its books, its command line."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from semipd_agent.slo.step_model import ASSUMED, ShareLaw
from semipd_cli.simulator.command import simulate
from semipd_cli.simulator.engine import Arrival, Size, VirtualEngine
from semipd_cli.simulator.oracle import ORACLES, Oracle
from semipd_cli.simulator.policies import POLICIES, assumed, measured
from semipd_cli.simulator.study import paired, run
from semipd_cli.simulator.workloads import LONGEST_PROMPT, WORKLOADS, Lengths, stream, trace
from semipd_engine.contract import Phase, Split

pytestmark = pytest.mark.unit
PLAIN = Oracle(prefill=(0.0, 0.01, 0.0), decode=(0.1, 0.0, 0.0))
"""10 ms a prompt token, 100 ms a decode step."""


def engine(arrivals: list[Arrival], split: Split | None = None, size: Size | None = None) -> VirtualEngine:
    return VirtualEngine(arrivals, PLAIN, size or Size(), 0, split or Split())


@pytest.mark.parametrize("name", sorted(ORACLES))
def test_what_policies_believe_is_ten_to_fifteen_percent_off(name: str) -> None:
    """And nothing of contention: they know what every profile does."""
    truth, believed = ORACLES[name], measured(name)
    figures = [*zip((*truth.prefill, *truth.decode), (*believed.prefill, *believed.decode), strict=True)]
    if believed.law is ShareLaw.SPATIAL:
        figures += [
            (truth.prefill_shrinkable, believed.prefill_curve.b),
            (truth.decode_shrinkable, believed.decode_curve.b),
        ]
        assert [c.a + c.b for c in (believed.prefill_curve, believed.decode_curve)] == pytest.approx([1, 1])
    for true, said in figures:
        assert said == true == 0 or 0.1 <= abs(said / true - 1) <= 0.15, (true, said)
    assert believed.contention == ASSUMED.contention and believed.mixed == ASSUMED.mixed
    assert believed.measured and not assumed(name).measured


def test_a_request_alone_takes_what_its_steps_take() -> None:
    one = engine([Arrival(1.0, 100, 11)])
    one.run_until(100.0)
    (done,) = one.done
    assert (done.ttft, done.tpot) == (pytest.approx(1.0), pytest.approx(0.1))


def test_phases_that_run_together_get_their_shares_and_alone_everything() -> None:
    """While the second prompt is computed, 1 s at 80 %, the first request's steps take five times as long."""
    both = engine([Arrival(0.0, 100, 101), Arrival(5.0, 100, 1)], Split(prefill=80, decode=20))
    both.run_until(200.0)
    second, first = sorted(both.done, key=lambda d: d.output)
    assert second.ttft == pytest.approx(1.25)
    assert first.tpot is not None and first.tpot * 100 == pytest.approx(10 + 1.25 - 0.25, abs=0.2)
    o = both.observe(0)
    assert o.shared_seconds == pytest.approx(1.25, abs=0.01)
    assert o.busy_seconds[Phase.PREFILL] == pytest.approx(2.25, abs=0.01)


def test_every_request_is_answered_and_every_block_comes_back() -> None:
    arrivals = list(stream(20.0, 20, Lengths(300, 40), 3))
    busy = VirtualEngine(
        arrivals, Oracle((1e-3, 5e-5, 0), (5e-3, 1e-4, 0)), Size(8, 256, 8_000, max_queued=5), 3, Split()
    )
    busy.run_until(300.0)
    assert busy.drained and len(busy.done) == len(arrivals)
    assert any(d.ttft is None for d in busy.done), "the queue was full for a time"
    assert busy.observe(0).kv_used_tokens == 0
    assert sum(d.output for d in busy.done if d.ttft is not None) == sum(
        a.output for a in arrivals if a.at in {d.at for d in busy.done if d.ttft is not None}
    )


def test_a_switch_takes_effect_after_its_delay() -> None:
    one = engine([])
    one.switch(Split(prefill=30, decode=100), 2.0)
    one.run_until(1.9)
    assert one.split == Split()
    one.run_until(2.1)
    assert one.split.prefill == 30


@pytest.mark.parametrize("policy", [*POLICIES, "100/40", "mixed/256"])
def test_each_policy_runs_and_equal_seeds_give_equal_runs(policy: str) -> None:
    workload = WORKLOADS["2000/60@3.25"]
    first, second = (run(workload, policy, 20, 5, Size()) for _ in range(2))
    assert first.requests > 50 and 0 <= first.attainment <= 1
    assert (first.attainment, first.splits) == (second.attainment, second.splits)


def test_in_one_process_a_row_steps_with_each_chunk_of_a_prompt() -> None:
    """200 tokens in chunks of at most 50 take 2 s, in which the other request gets five tokens, and 0.1 s without."""
    both = engine([Arrival(0.0, 50, 31), Arrival(1.0, 200, 1)], Split(mixed_tokens=50), Size(prefill_chunk_tokens=50))
    both.run_until(200.0)
    second, first = sorted(both.done, key=lambda d: d.output)
    assert second.ttft == pytest.approx(2.1, abs=0.11)
    assert first.tpot is not None and first.tpot * 30 == pytest.approx(25 * 0.1 + 2.1, abs=0.11)


def test_prompts_of_a_trace_are_what_a_cache_would_leave(tmp_path: Path) -> None:
    file = tmp_path / "t.csv"
    lines = ["0.0,1200,5,1 2 3", "1.5,1300,5,1 2 4", "3.1,1024,5,1 2", "4.2,600,5,9 2"]
    file.write_text("t_s,input_tokens,output_tokens,prefix_block_ids\n" + "\n".join(lines) + "\n")
    assert [a.prompt for a in trace(file, 10.0, 1.0)] == [1200, 1300 - 2 * 512, 1, 600]


def test_paired_differences_have_students_band() -> None:
    mean, band = paired([0.9, 0.8, 0.7], [0.8, 0.8, 0.8])
    assert mean == pytest.approx(0.0)
    assert band == pytest.approx(4.30 * 0.1 / 3**0.5)


def test_how_many_prompts_of_the_traces_are_cut_is_as_the_page_says() -> None:
    root = Path(__file__).resolve().parents[2]
    cut = {}
    for file in sorted((root / "bench/traces").glob("*.csv.gz")):
        prompts = [arrival.prompt for arrival in trace(file, math.inf, 1.0)]
        cut[file.name.removesuffix(".csv.gz")] = (prompts.count(LONGEST_PROMPT), len(prompts))
    assert cut.pop("azure2023_code")[0] == cut.pop("azure2023_conv")[0] == 0
    (conversation, of_these), (synthetic, of_those) = cut["mooncake_conversation"], cut["mooncake_synthetic"]
    said = f"cut at {LONGEST_PROMPT:,} tokens: {conversation} of the {of_these:,} of Mooncake's conversation, "
    said += f"{synthetic} of the {of_those:,} of its synthetic trace, none of Azure's."
    assert said in " ".join((root / "docs/simulator.md").read_text().split())


def test_a_rounded_trace_is_spread_and_sped_up(tmp_path: Path) -> None:
    file = tmp_path / "t.csv"
    file.write_text("t_s,input_tokens,output_tokens\n" + "".join(f"{3 * (i // 4)},10,5\n" for i in range(40)))
    found = list(trace(file, 15.0, 2.0))
    assert len({a.at for a in found}) == len(found) == 40
    assert [a.at for a in found] == sorted(a.at for a in found)


def test_the_command_writes_every_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "runs.json"
    arguments = ["300/400@4", "--seconds", "5", "--seeds", "2", "--policy", "100/100", "--policy", "auto", "--quiet"]
    assert simulate([*arguments, "--json", str(out), "--plot", str(tmp_path / "plot.png")]) == 0
    runs = json.loads(out.read_text())
    assert [(r["policy"], r["seed"]) for r in runs] == [("100/100", 1), ("100/100", 2), ("auto", 1), ("auto", 2)]
    assert (tmp_path / "plot.png").stat().st_size > 10_000
    assert "300/400@4" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["nothing"], "nothing: no such workload"),
        (["chat", "--policy", "best"], "best: no such policy"),
        (["chat", "--policy", "0/100"], "0/100: no such policy"),
        (["--trace", "missing.csv"], "--trace missing.csv: no such file"),
        (["chat", "--seeds", "0"], "--seeds 0: it must be above 0"),
        (["chat", "--kv-tokens", "15"], "--kv-tokens 15: it must be above 15"),
        (["chat", "--max-num-seqs", "0"], "--max-num-seqs 0: it must be above 0"),
        (["chat", "--ttft", "-1"], "--ttft -1: it must be above 0"),
        (["--trace", "pyproject.toml", "--speed", "0"], "--speed 0: it must be above 0"),
        (["--trace", "pyproject.toml"], "t_s, input_tokens and output_tokens"),
        (["--trace", "docs"], "--trace docs: is a folder"),
        (["--replay", "missing"], "--replay missing: No such file or directory; save GET /v1/recording"),
        (["chat", "--json", "missing/runs.json"], "--json missing/runs.json: there is no folder missing"),
        (["chat", "--json", "docs"], "--json docs: is a folder; name a file in it"),
        (["chat", "--json", "/proc/runs.json"], "--json /proc/runs.json: it cannot be written"),
        (["chat", "--plot", "missing/plot.svg"], "--plot missing/plot.svg: there is no folder missing"),
        (["chat", "--plot", "plot.svq"], "--plot plot.svq: no such form of picture; name it .svg or .png"),
        (["chat", "--pods", "1", "--plot", "docs"], "--plot docs: is a folder"),
    ],
)
def test_wrong_inputs_get_one_line(arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert simulate([*arguments, "--quiet"]) == 2
    error = capsys.readouterr().err
    assert says in error and error.count("\n") == 1


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        ([], "it holds no request"),
        (["9000,10,5"], "it holds no request of the 600 s that are played with seed 1"),
        (["0,10,5", "1,-10,5"], "request 2: t_s 1, input_tokens and output_tokens must be 0 or more"),
        (["0,10,-5"], "request 1: t_s 0"),
        (["nan,10,5"], "request 1: t_s nan"),
        (["0,10"], "t_s, input_tokens and output_tokens (TypeError"),
    ],
)
def test_a_trace_that_cannot_be_played_is_said_in_one_line(
    rows: list[str], says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "t.csv"
    file.write_text("\n".join(["t_s,input_tokens,output_tokens", *rows]) + "\n")
    assert simulate(["--trace", str(file), "--quiet"]) == 2
    error = capsys.readouterr().err
    assert says in error and str(file) in error and error.count("\n") == 1


def test_what_is_no_gzip_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "t.csv.gz"
    file.write_text("t_s,input_tokens,output_tokens\n")
    assert simulate(["--trace", str(file), "--quiet"]) == 2
    assert f"{file} does not have numbers in the columns" in capsys.readouterr().err


def test_a_run_of_constants_alone_is_drawn_without_a_warning(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    """It has no split that changes, so no legend."""
    file = tmp_path / "plot.svg"
    assert (
        simulate(["chat", "--seconds", "2", "--seeds", "1", "--policy", "100/100", "--quiet", "--plot", str(file)]) == 0
    )
    assert file.stat().st_size > 1000 and not [w for w in recwarn if "legend" in str(w.message)]
