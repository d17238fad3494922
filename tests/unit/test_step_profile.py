"""`semipd-engine profile`: what is measured, its file, and what the agent learns of it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.unit.agent_bench import Bench
from tests.unit.agent_bench import config as bench_config
from tests.unit.step_profile_bench import KEY, LIMITS, MODEL, Virtual, measured

from semipd_agent.pilot import Pilot
from semipd_agent.slo.profiles import Profiles, folders, learned
from semipd_agent.slo.share_law import FIT_SECONDS, SharesSeen, Under
from semipd_agent.slo.step_model import ASSUMED, ShareLaw, StepModel
from semipd_cli.simulator.oracle import OTHER_CPU, OTHER_GPU
from semipd_engine.contract import Phase, ProfileError, ProfileKey, Split, StepProfileFile, read_profile
from semipd_engine.cpu_grant import Grant
from semipd_engine.profiler.sweep import MOST_TOKENS, STALL_SECONDS, WHOLE, Limits, Point, Stalled, points, sweep

pytestmark = pytest.mark.unit

TWO = Grant(cpus=(0, 1))


@pytest.fixture(scope="module")
def of_cpu() -> StepProfileFile:
    return measured(OTHER_CPU)


# ---- what is measured ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "limits",
    [LIMITS, Limits(128, 1, 256, 300), Limits(512, 4, 256, 2048), Limits(131_072, 256, 2048, 1_000_000)],
)
def test_every_point_fits_into_the_engine(limits: Limits) -> None:
    found = points(limits, [Split(prefill=20), Split()])
    assert {p.split for p in found} == {Split(prefill=20), WHOLE}
    for p in found:
        assert max(p.context + p.answer, p.prompt + 1) <= limits.max_model_len
        assert p.rows <= limits.max_num_seqs
        assert p.rows * (p.context + p.answer) <= limits.kv_tokens
        assert p.rows * p.context + p.prompts * p.prompt <= 2 * MOST_TOKENS
        assert p.rows or p.prompts


def test_the_first_point_warms_up_and_does_not_count() -> None:
    once = Point(WHOLE, 1, 16, 8, 0, 0)
    assert sweep(Virtual(OTHER_CPU), [once], lambda _: None) == ()
    twice = sweep(Virtual(OTHER_CPU), [once, once], lambda _: None)
    assert {t.phase: t.steps for t in twice if t.phase is Phase.PREFILL} == {Phase.PREFILL: 1}
    assert sum(t.steps for t in twice if t.phase is Phase.DECODE) == 8


def test_an_engine_that_hangs_is_given_up() -> None:
    class Hung(Virtual):
        def unfinished(self) -> int:
            return 1

    engine = Hung(OTHER_CPU)
    with pytest.raises(Stalled, match="no step"):
        sweep(engine, [Point(WHOLE, 0, 0, 0, 1, 16)], lambda _: None)
    assert STALL_SECONDS < engine.now() < 1.1 * STALL_SECONDS


# ---- what the agent learns -------------------------------------------------------------------------------------------


def test_the_costs_of_the_device_are_found(of_cpu: StepProfileFile) -> None:
    """Steps of sizes that the sweep had none of, alone."""
    model = StepModel(learned(of_cpu, ShareLaw.PACED))
    for phase, truth, sizes in (
        (Phase.PREFILL, OTHER_CPU.prefill, ((100, 5000), (400, 400_000), (512, 1_000_000))),
        (Phase.DECODE, OTHER_CPU.decode, ((2, 900), (10, 8000), (48, 10_000))),
    ):
        fixed, token, position = model.costs(phase)
        for tokens, context in sizes:
            said = fixed + token * tokens + position * context
            true = OTHER_CPU.gap + truth[0] + truth[1] * tokens + truth[2] * context
            assert said == pytest.approx(true, rel=0.1), (phase, tokens, context)


def test_what_a_share_does_is_found_where_it_is_a_part_of_the_device() -> None:
    found = learned(measured(OTHER_GPU), ShareLaw.SPATIAL)
    assert found.measured and found.curves_measured
    assert found.prefill_curve.b == pytest.approx(OTHER_GPU.prefill_shrinkable, abs=0.1)
    assert found.decode_curve.b == pytest.approx(OTHER_GPU.decode_shrinkable, abs=0.1)
    model = StepModel(found)
    assert model.laws_known == 0, "its scale is not set by this device yet"
    beside = replace(model, decode_shares=SharesSeen({50: Under(shared=FIT_SECONDS)}))
    assert beside.laws_known == 1, "no policy needs to try a second share any more"


def test_without_shares_their_law_stays_assumed() -> None:
    """A GPU without an MPS daemon."""
    steps = sweep(Virtual(OTHER_GPU), points(LIMITS, [WHOLE]), lambda _: None)
    file = StepProfileFile(key=KEY, model="m", machine="x", measured_at="", seconds=1, steps=steps)
    found = learned(file, ShareLaw.SPATIAL)
    assert found.measured and not found.curves_measured
    assert (found.prefill_curve, found.decode_curve) == (ASSUMED.prefill_curve, ASSUMED.decode_curve)
    assert StepModel(found).laws_known == 0


# ---- the file --------------------------------------------------------------------------------------------------------


def test_a_file_is_read_as_it_was_written(of_cpu: StepProfileFile, tmp_path: Path) -> None:
    path = tmp_path / "p.json"
    path.write_text(of_cpu.model_dump_json())
    assert read_profile(path) == of_cpu


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"format": "other"}, "format: "),
        ({"version": 2}, "version: "),
        ({"steps": []}, "steps: "),
        ({"key": {}}, "key.architecture: "),
        ({"seconds": -1}, "seconds: "),
        ("zero", "steps.0: 0 steps"),
        ("one phase", "steps: none of prefill"),
        ("text", "document: "),
        ("none", "No such file"),
        ("large", "larger than 16 MB"),
    ],
)
def test_a_wrong_file_is_refused_by_field_and_with_the_remedy(
    change: dict[str, Any] | str, words: str, of_cpu: StepProfileFile, tmp_path: Path
) -> None:
    path, content = tmp_path / "p.json", json.loads(of_cpu.model_dump_json())
    if isinstance(change, dict):
        content |= change
    elif change == "zero":
        content["steps"][0]["steps"] = 0
    elif change == "one phase":
        content["steps"] = [s for s in content["steps"] if s["phase"] == "decode"]
    if change == "text":
        path.write_text("no JSON")
    elif change == "large":
        path.write_bytes(b" " * ((16 << 20) + 1))
    elif change != "none":
        path.write_text(json.dumps(content))
    with pytest.raises(ProfileError) as error:
        read_profile(path)
    said = str(error.value)
    assert str(path) in said and words in said and "semipd-engine profile MODEL --out FILE" in said


@pytest.mark.parametrize(
    ("change", "cpus", "field"),
    [
        ({"architecture": "qwen3"}, 2, "architecture"),
        ({"weight_bytes": 1001}, 2, "weight_bytes"),
        ({"dtype": "float32"}, 2, "dtype"),
        ({"kernels": "reference"}, 2, "kernels"),
        ({"device": "cuda", "sm_count": 132}, 2, "device"),
        ({}, 3, "cpus"),
    ],
)
def test_a_profile_of_something_else_is_told_by_what_differs(change: dict[str, Any], cpus: int, field: str) -> None:
    assert KEY.objection(ProfileKey.of(MODEL.model_copy(update=change), cpus)).startswith(f"{field}: ")
    assert KEY.objection(ProfileKey.of(MODEL.model_copy(update={"name": "another folder"}), 2)) == ""


def test_steps_that_a_quota_throttles_are_others(of_cpu: StepProfileFile, tmp_path: Path) -> None:
    """Two CPUs under 1500m stand still for a quarter of each period. On a GPU the CPUs do not matter."""
    path = tmp_path / "p.json"
    path.write_text(of_cpu.model_dump_json())
    found = Profiles.read(path, (), Grant((0, 1), 1.5)).of(MODEL, ShareLaw.PACED)
    assert not found.steps.measured and "cpu_quota: None was measured, 1.5 is served" in found.message
    within = of_cpu.model_copy(update={"key": ProfileKey.of(MODEL, 2, 1.5)})
    path.write_text(within.model_dump_json())
    assert Profiles.read(path, (), Grant((4, 5), 1.5)).of(MODEL, ShareLaw.PACED).steps.measured
    assert Profiles.read(path, (), Grant((4, 5), 2.0)).of(MODEL, ShareLaw.PACED).steps.measured is False
    on_gpu = MODEL.model_copy(update={"device": "cuda", "sm_count": 132})
    assert ProfileKey.of(on_gpu, 2, 1.5) == ProfileKey.of(on_gpu, 8)


def test_a_file_from_before_quotas_were_told_is_read(of_cpu: StepProfileFile, tmp_path: Path) -> None:
    content = json.loads(of_cpu.model_dump_json())
    del content["key"]["cpu_quota"]
    path = tmp_path / "p.json"
    path.write_text(json.dumps(content))
    assert Profiles.read(path, (), TWO).of(MODEL, ShareLaw.PACED).steps.measured


# ---- which one holds -------------------------------------------------------------------------------------------------


def test_the_one_that_fits_is_taken_and_a_broken_one_stops_nobody(of_cpu: StepProfileFile, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("broken")
    other = of_cpu.model_copy(update={"key": KEY.model_copy(update={"weight_bytes": 7})})
    (tmp_path / "b.json").write_text(other.model_dump_json())
    profiles = Profiles.read(None, [tmp_path / "missing", tmp_path], TWO)
    found = profiles.of(MODEL, ShareLaw.PACED)
    assert not found.steps.measured and "weight_bytes: 7 was measured, 1000 is served" in found.message
    (tmp_path / "c.json").write_text(of_cpu.model_dump_json())
    found = Profiles.read(None, [tmp_path], TWO).of(MODEL, ShareLaw.PACED)
    assert found.steps.measured and found.source == str(tmp_path / "c.json") and not found.message
    with pytest.raises(ProfileError, match=r"a\.json: document"):
        Profiles.read(tmp_path / "a.json", [tmp_path], TWO)


def test_one_of_another_processor_is_the_second_choice_and_says_so(of_cpu: StepProfileFile, tmp_path: Path) -> None:
    """Equal keys say nothing of its clock, its caches and its memory."""
    (tmp_path / "a.json").write_text(of_cpu.model_copy(update={"machine": "slow"}).model_dump_json())
    (tmp_path / "b.json").write_text(of_cpu.model_copy(update={"machine": "fast"}).model_dump_json())
    found = Profiles.read(None, [tmp_path], TWO, "fast").of(MODEL, ShareLaw.PACED)
    assert (found.source, found.message) == (str(tmp_path / "b.json"), "")
    found = Profiles.read(None, [tmp_path], TWO, "other").of(MODEL, ShareLaw.PACED)
    assert found.steps.measured and found.message.startswith("measured on slow, and this is other; semipd-engine")
    assert not Profiles.read(None, [tmp_path], TWO).of(MODEL, ShareLaw.PACED).message, "nobody knows"


def test_a_broken_file_is_named_where_it_leaves_the_prior_in_force(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("broken")
    found = Profiles.read(None, [tmp_path], TWO).of(MODEL, ShareLaw.SPATIAL)
    assert found.steps.law is ShareLaw.SPATIAL and found.steps.prefill == ASSUMED.prefill
    assert "assumed: " in found.message and "a.json" in found.message and "semipd-engine profile" in found.message


def test_the_pilot_begins_from_it_and_another_model_loses_it(of_cpu: StepProfileFile, tmp_path: Path) -> None:
    path = tmp_path / "p.json"
    path.write_text(of_cpu.model_dump_json())
    controller = Bench(bench_config()).controller
    pilot = Pilot(controller.faults, controller.log, None, Profiles.read(path, (), TWO))
    pilot.runs_on(ShareLaw.PACED)
    assert "no model is loaded yet" in pilot.profile.message
    pilot.serves(MODEL)
    pilot.serves(None)
    assert pilot.profile.steps.measured and pilot.profile.source == str(path)
    pilot.serves(MODEL.model_copy(update={"dtype": "float32"}))
    assert (
        not pilot.profile.steps.measured and "dtype: bfloat16 was measured, float32 is served" in pilot.profile.message
    )
    before = pilot.profile
    pilot.serves(MODEL.model_copy(update={"dtype": "float32", "kv_bytes": 2}))
    assert pilot.profile is before, "step times know nothing of the pool's size: what was learned of them holds"


def test_a_user_without_a_home_has_the_images_profiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """A pod's user need have neither a name nor HOME."""
    monkeypatch.setenv("XDG_CACHE_HOME", "/cache")
    image, cache = folders()
    assert cache == Path("/cache/semipd/profiles")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.delenv("HOME")
    monkeypatch.setattr("os.getuid", lambda: 4_000_000)
    assert folders() == (image,)
