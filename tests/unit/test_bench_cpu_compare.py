"""`make bench-cpu`: what is concluded of samples, and how it is reported."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from bench.cpu import report
from bench.cpu.compare import Comparison
from bench.cpu.probes import compared
from bench.cpu.schedule import LIMITS, MACHINE, Sample, Turn
from bench.cpu.servers import BUDGETS
from bench.cpu.verdicts import Verdict, best_chunk, verdicts
from bench.traffic import ClientLateError

pytestmark = pytest.mark.unit

MODEL = "llama-0.5b"


def sample(part: str, contender: str, number: int = 0, group: str = "speeds", **figures: float) -> Sample:
    model = "smollm2-135m" if part == "likelihood" else MODEL
    turn = Turn(model, group, number, part, contender)
    return Sample(turn, figures, at="2026-01-01T00:00:00+00:00", run="1", others=0.0)


def test_ratios_are_of_one_round_and_above_one_for_us() -> None:
    """Between the rounds the machine became three times slower for both."""
    fast = [sample("eight", "ours 50/50", 0, tokens_per_s=120), sample("eight", "vllm", 0, tokens_per_s=100)]
    slow = [sample("eight", "ours 50/50", 1, tokens_per_s=40), sample("eight", "vllm", 1, tokens_per_s=33.3)]
    alone = [sample("eight", "vllm", 2, tokens_per_s=500)]
    ratio = Comparison(fast + slow + alone).ratio(MODEL, "eight", "tokens_per_s")
    assert ratio is not None and ratio.rounds == 2 and ratio.low == pytest.approx(1.2, rel=0.01)
    waits = [sample("prefill-512", "ours 50/50", ttft_ms=500), sample("prefill-512", "vllm", ttft_ms=400)]
    ratio = Comparison(waits).ratio(MODEL, "prefill-512", "ttft_ms")
    assert ratio is not None and ratio.median == pytest.approx(0.8)


def test_a_ratio_is_never_of_two_runs_or_two_groups() -> None:
    ours = sample("eight", "ours 50/50", tokens_per_s=100)
    for other in (
        sample("eight", "vllm", group="peers", tokens_per_s=50),
        sample("eight", "vllm", 1, tokens_per_s=50),
    ):
        assert Comparison([ours, other]).ratio(MODEL, "eight", "tokens_per_s") is None
    both = [replace(ours, run="2"), replace(sample("eight", "vllm", tokens_per_s=50), run="2")]
    ratio = Comparison([ours, *both]).ratio(MODEL, "eight", "tokens_per_s")
    assert ratio is not None and ratio.rounds == 1, "of a block that was measured twice one run counts"


def interfered(contender: str, gap: float, ttft: float, number: int = 0, group: str = "g", **more: float) -> Sample:
    figures: dict[str, float] = {"longest_gap_ms": gap, "longest_gap_ratio": gap / 50, "ttft_ms": ttft} | more
    return sample("interference", contender, number, group, **figures)


def verdict(samples: list[Sample], words: str) -> Verdict:
    return next(v for v in verdicts(Comparison(samples)) if words in v.claim)


def test_a_bargain_is_struck_by_one_split_against_the_best_chunk() -> None:
    peers = [interfered("vllm", 2500, 2000), interfered("vllm-128", 450, 2100), interfered("vllm-64", 500, 2600)]
    assert best_chunk(Comparison(peers), MODEL, "interference") == "vllm-128"
    ours = [interfered("ours 70/30", 190, 2800), interfered("ours 30/70", 110, 4000)]
    assert verdict(peers + ours, "gap ≤ 4.0").holds and verdict(peers + ours, "gap ≤ 2.5").holds
    assert verdict(peers + ours[:1], "gap ≤ 2.5").holds is False, "3.8 times quiet"
    assert verdict([*peers, interfered("ours 70/30", 190, 3200)], "gap ≤ 4.0").holds is False, "TTFT 1.52"
    assert verdict(ours, "gap ≤ 4.0").holds is None, "nothing to compare with"


def test_a_bargain_is_with_one_setting_of_the_peer() -> None:
    """Its best chunk, in wait as in gap: not the wait of one and the gap of another."""
    ours, small, large = (
        interfered("ours 70/30", 190, 2600),
        interfered("vllm-64", 400, 2400),
        interfered("vllm-128", 420, 2000),
    )
    found = verdict([ours, small, large], "gap ≤ 4.0").found
    assert "TTFT 1.08 ×, gap 0.47 × vllm-64 (the best of vllm-128, vllm-64), 1 rounds" in found
    assert "TTFT 1.30 ×, gap 0.45 × vllm-128 (the only chunk asked)" in verdict([ours, large], "gap ≤ 4.0").found
    busy = [ours, small, replace(large, others=3.0)]
    assert verdict(busy, "gap ≤ 4.0").holds, "what was not compared with may have been disturbed"


def test_a_chunk_that_buys_its_gaps_with_the_prompts_wait_is_not_the_best() -> None:
    """A quarter more than the least wait is allowed; beside 3,000 ms any split of ours would be quick."""
    ours, small, large = (
        interfered("ours 70/30", 190, 2900),
        interfered("vllm-64", 400, 3000),
        interfered("vllm-128", 420, 2000),
    )
    assert best_chunk(Comparison([small, large]), MODEL, "interference") == "vllm-128"
    found = verdict([ours, small, large], "gap ≤ 4.0")
    assert found.holds is False and "TTFT 1.45 ×, gap 0.45 × vllm-128 (the best of" in found.found
    just = replace(small, figures={**small.figures, "ttft_ms": 2500.0})
    assert best_chunk(Comparison([just, large]), MODEL, "interference") == "vllm-64"


def test_a_bargain_is_of_rounds_in_which_both_were_asked() -> None:
    """The machine was four times slower in the round of the peer: with medians over all rounds it looked like a win."""
    peers = [interfered("vllm-128", 1800, 8000, number=0)]
    ours = [interfered("ours 70/30", 190, 2800, number=1), interfered("ours 70/30", 170, 2800, 0, "other")]
    assert verdict(peers + ours, "gap ≤ 4.0").holds is None
    slow = interfered("ours 70/30", 760, 11200, number=0, longest_gap_ratio=3.8)
    assert "1.40 ×" in verdict([*peers, *ours, slow], "gap ≤ 4.0").found


def test_a_bargain_with_a_lost_or_late_prompt_does_not_hold() -> None:
    peer = interfered("vllm-128", 450, 2100)
    for more in ({"failed_prompts": 1.0}, {"late_prompts": 1.0}):
        found = verdict([peer, interfered("ours 70/30", 190, 2800, **more)], "gap ≤ 4.0")
        assert found.holds is False and "lost" in found.found
    lost = Sample(Turn(MODEL, "g", 1, "interference", "ours 70/30"), error="TimeoutError: ", run="1")
    assert verdict([peer, interfered("ours 70/30", 190, 2800), lost], "gap ≤ 4.0").holds is False


def test_a_loss_stays_a_loss_when_the_block_is_measured_again() -> None:
    again = [replace(one, run="2") for one in (interfered("vllm-128", 450, 2100), interfered("ours 70/30", 190, 2800))]
    assert verdict(again, "gap ≤ 4.0").holds
    first = replace(again[1], figures={}, error="vllm ended with 9", run="1")
    comparison = Comparison([first, *again])
    assert comparison.lost == [first] and comparison.samples == again
    assert verdict([first, *again], "gap ≤ 4.0").holds is False
    assert "Lost samples" in report.markdown([first, *again], {})


def test_a_loss_of_our_own_client_is_none_once_the_turn_is_measured() -> None:
    """The machine was too busy to ask in time: of no server does that say anything."""
    peer, ours = (
        replace(one, run="2") for one in (interfered("vllm-128", 450, 2100), interfered("ours 70/30", 190, 2800))
    )
    late = replace(ours, figures={}, error=f"{ClientLateError.__name__}: the client itself sent 80 ms late", run="1")
    comparison = Comparison([late, peer, ours])
    assert comparison.lost == [] and verdict([late, peer, ours], "gap ≤ 4.0").holds
    assert Comparison([late, peer]).lost == [late], "not measured yet"
    dead = replace(late, error=f"vllm-128 ended with -9\n{late.error}")
    assert Comparison([dead, peer, ours]).lost == [dead], "the server had died: that is why"


def test_the_best_is_of_one_set_of_chunks() -> None:
    """Rounds with other chunks, if as many, are other bargains: of two sets the one with more rounds counts."""

    def asked(other: str, ttft: float, numbers: Sequence[int]) -> list[Sample]:
        one = [(other, 400.0, ttft), ("vllm-128", 420.0, 2000.0), ("ours 70/30", 190.0, 2800.0)]
        return [interfered(*figures, number) for number in numbers for figures in one]

    first, second = asked("vllm-64", 3000, [0]), asked("vllm", 2600, [1, 2])
    found = verdict(first + second, "gap ≤ 4.0").found
    assert "vllm-128 (the best of vllm, vllm-128), 2 rounds" in found
    assert "vllm-128 (the best of vllm-128, vllm-64), 1 rounds" in verdict(first, "gap ≤ 4.0").found


def test_tasks_that_nobody_counted_are_not_none() -> None:
    assert Sample(Turn(MODEL, "g", 0, "eight", "vllm")).disturbed


def test_who_weighs_most_is_disturbed_all_the_same() -> None:
    """Others keep their share of the caches and of the memory, and some of the CPUs."""
    found = [replace(one, foremost=True, others=29.5) for one in at_budget(512, 1000, 125)]
    page = report.markdown(found, {})
    assert all(one.disturbed for one in found) and "In 4 of these there were over 2.5" in page
    assert "| 512 | 1,000† | 1,000† | 1.00† | 125† | 100† | 0.80† |" in page
    assert "beside other work: 512" in verdict(found, "one process at each budget").found


def test_the_best_chunk_is_chosen_where_chunks_met() -> None:
    """Asked alone in a slow round, the best one looks worse than another in a fast round."""
    fair = [interfered("vllm-64", 400, 2000), interfered("vllm-128", 500, 2000)]
    alone = [interfered("vllm-64", 1500, 2000, number=1, group="h"), interfered("vllm-64", 1500, 2000, 2, "h")]
    assert best_chunk(Comparison(fair + alone), MODEL, "interference") == "vllm-64"


def at_budget(budget: int, speed: float, gap: float, late: float = 0.0) -> list[Sample]:
    """The peer makes 1,000 tokens a second and a longest gap of 100 ms of each."""
    group = f"budget-{budget}"
    return [
        sample("budget-throughput", f"unified-{budget}", group=group, tokens_per_s=speed),
        sample("budget-throughput", f"vllm-{budget}", group=group, tokens_per_s=1000),
        interfered_at(f"unified-{budget}", gap, group, late),
        interfered_at(f"vllm-{budget}", 100, group),
    ]


def interfered_at(contender: str, gap: float, group: str, late: float = 0.0) -> Sample:
    return sample("budget-gap", contender, group=group, longest_gap_ms=gap, late_prompts=late)


def test_one_process_is_judged_at_every_budget() -> None:
    every = [one for budget in BUDGETS for one in at_budget(budget, 910, 109)]
    words = "one process at each budget"
    assert verdict(every, words).holds is True
    assert verdict(every[4:], words).holds is None and "not measured: 64" in verdict(every[4:], words).found
    for worse in (at_budget(512, 890, 100), at_budget(512, 1000, 111), at_budget(512, 1000, 100, late=1)):
        found = [one for one in every if not one.turn.contender.endswith("-512")] + worse
        assert verdict(found, words).holds is False
        assert "512: " in verdict(found, words).found


def test_budgets_are_no_chunks_of_a_bargain() -> None:
    struck = [interfered("ours 50/50", 50, 100), interfered("vllm-128", 200, 100)]
    budgets = [one for budget in BUDGETS for one in at_budget(budget, 910, 109)]
    words = "interference, a split with gap ≤ 4.0"
    assert verdict(struck + budgets, words) == verdict(struck, words)


def test_a_table_of_budgets() -> None:
    """Its head and the verdict say which is over which: of a gap, in the table, theirs over ours."""
    found = [one for budget in (128, 512) for one in at_budget(budget, 950, 125)]
    page = report.markdown(found, {})
    assert "tokens/s, vllm | ours over vllm |" in page and "longest gap, ms, vllm | vllm over ours |" in page
    assert "| 128 | 950 | 1,000 | 0.95 | 125 | 100 | 0.80 |" in page
    assert "ours over theirs; 128: 0.95 and 1.25 ×" in verdict(found, "one process at each budget").found


def test_a_lasting_bargain_says_what_the_longest_gap_is_without_prompts() -> None:
    ours, peer = interfered("ours 50/50", 140, 150), interfered("vllm-128", 500, 100)
    lasting = [replace(one, turn=replace(one.turn, part="back-to-back")) for one in (ours, peer)]
    alone = sample("undisturbed", "ours 50/50", quiet_gap_ms=50, longest_gap_ms=115, longest_gap_ratio=2.3)
    words = "back-to-back, a split with gap ≤ 2.5"
    assert verdict([*lasting, alone], words).found.endswith("; 2.3 × quiet where no prompt comes")
    assert "no prompt" not in verdict(lasting, words).found
    assert "### undisturbed" in (page := report.markdown([*lasting, alone], {}))
    assert "| ours 50/50 | 50.0 | 115 | 2.30 |" in page


def test_what_was_not_measured_is_open() -> None:
    assert {v.holds for v in verdicts(Comparison([sample(LIMITS, MACHINE, read_gb_per_s=20.0)]))} == {None}


HELD = {
    "weights_mb": 1000.0,
    "kv_mb": 1000.0,
    "pss_mb": 1740.0,
    "loading_peak_mb": 1700.0,
    "worker_private_mb": 20.0,
    "beside_weights_mb": 350.0,
}


def test_memory_is_judged_and_a_second_copy_fails() -> None:
    found = [sample("memory", "ours", **HELD)]
    assert verdict(found, "summed PSS").holds and not verdict(found, "loading peak").holds
    assert verdict(found, "a worker's private").holds and verdict(found, "no second copy").holds
    twice = {**HELD, "pss_mb": 2740.0, "beside_weights_mb": 1350.0}
    assert verdict([sample("memory", "ours", **twice)], "summed PSS").holds, "this limit alone does not see it"
    assert verdict([sample("memory", "ours", **twice)], "no second copy").holds is False
    tiny = sample("memory", "ours", **{**HELD, "weights_mb": 60.0})
    assert verdict([tiny], "no second copy").holds is None, "of such a model a copy would not show"


def test_the_likelihoods_difference_is_judged_where_it_is_sure() -> None:
    def judged(difference: float, error: float) -> bool | None:
        figures = {"difference_percent": difference, "error_percent": error}
        return verdict([sample("likelihood", "ours", **figures)], "NLL").holds

    assert judged(-0.05, 0.02) is True and judged(-0.2, 0.02) is False
    assert judged(0.0, 0.2) is None, "noise that would hide it"
    assert judged(0.09, 0.049) is None, "two of its errors reach 0.19"
    assert judged(0.8, 0.2) is False, "but not this"
    random_one = [sample("eight", "vllm", tokens_per_s=1)]
    assert not [v for v in verdicts(Comparison(random_one)) if "NLL" in v.claim], "random weights say nothing"


def test_a_difference_of_a_fifth_of_a_percent_is_noticed() -> None:
    source = random.Random(0)
    theirs = [source.expovariate(1 / 3) for _ in range(10_000)]
    ours = [value * 1.002 + source.gauss(0, 0.03) for value in theirs]
    found = compared(ours, theirs)
    assert found["difference_percent"] == pytest.approx(0.2, abs=0.03) and found["error_percent"] < 0.02
    assert abs(compared([v + source.gauss(0, 0.03) for v in theirs], theirs)["difference_percent"]) < 0.05


def test_the_share_of_the_read_bandwidth_is_of_the_same_round() -> None:
    limits = sample(LIMITS, MACHINE, read_gb_per_s=20.0, gemm_gflop_per_s=100.0, step_gb=0.5)
    ours = sample("decode-128", "ours 50/50", tokens_per_s=24)
    share = Comparison([limits, ours]).bandwidth_share(MODEL)
    assert share is not None and share.median == pytest.approx(60)
    assert Comparison([limits, replace(ours, run="2")]).bandwidth_share(MODEL) is None


ABOUT = {"machine": "two cores", "versions": {"torch": "2"}}


def test_the_report_prints_losses(tmp_path: Path) -> None:
    found = [
        sample("eight", "ours 50/50", tokens_per_s=50),
        sample("eight", "vllm", tokens_per_s=100),
        interfered("ours 50/50", 190, 2800),
        interfered("vllm", 2500, 2000),
        Sample(Turn(MODEL, "g", 0, "interference", "vllm-64"), error="vllm-64 ended with -9; it | said\nno", run="1"),
    ]
    report.write(found, tmp_path, ABOUT)
    page = (tmp_path / "cpu.md").read_text()
    assert "| eight, tokens_per_s | 50.0 | 100 | 0.50 |" in page and "**falls short**" in page
    assert "| vllm (the best) |  | 2,500 | 50.0 |" in page
    assert "| vllm-64 | (1 of the samples lost) |" in page
    assert "| llama-0.5b interference vllm-64 #0 | vllm-64 ended with -9; it / said no |" in page
    assert "two cores" in page and "torch 2" in page
    content = json.loads((tmp_path / "cpu.json").read_text())
    assert len(content["samples"]) == 5 and content["machine"] == "two cores"
    assert (tmp_path / "cpu.svg").read_text().count("<svg") == 1
    assert "Nothing has been measured" in report.markdown([], ABOUT)


def test_every_published_figure_has_its_samples_and_their_commit() -> None:
    page = Path(report.__file__).parents[2] / "docs" / "benchmarks.md"
    measured = re.compile(r"\d (ms|s|MB|GB/s|tok/s|tokens/s)\b[^|]*\|")
    for section in re.split(r"^## ", page.read_text(), flags=re.MULTILINE):
        files = re.findall(r"\((benchmarks/[^)]+\.json)\)", section)
        pictures = re.findall(r"!\[[^]]*\]\(([^)]+)\)", section)
        assert files or not (measured.search(section) or pictures), f"figures without samples: {section[:60]}"
        for file in files:
            samples = json.loads((page.parent / file).read_text())["samples"]
            assert samples and all(sample["commit"] for sample in samples), file


def test_what_was_measured_beside_other_work_is_marked() -> None:
    quiet = [sample("eight", "ours 50/50", tokens_per_s=50), sample("eight", "vllm", tokens_per_s=100)]
    assert "†" not in report.markdown(quiet, {}).partition("##")[2]
    page = report.markdown([quiet[0], replace(quiet[1], others=3.0)], {})
    assert "| 50.0 | 100† | 0.50† |" in page and "1 of 1 rounds beside other work" in page
    assert verdict([quiet[0], replace(quiet[1], others=3.0)], "eight").holds is False
    won = [sample("eight", "ours 50/50", tokens_per_s=100), sample("eight", "vllm", tokens_per_s=50)]
    assert verdict(won, "eight").holds is True
    assert verdict([won[0], replace(won[1], others=3.0)], "eight").holds is None, "the peer may only have been starved"
    assert verdict([won[0], replace(won[1], others=None)], "eight").holds is None, "nobody counted"
    assert "100 | 50.0† |" in report.markdown([won[0], replace(won[1], others=None)], {})
