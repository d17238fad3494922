"""What `bench.slo` says before a run: knees from a profile, and a file that shows whether it was changed since."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import pytest

from bench.slo.prediction import ChangedError, Question, knee, main, oracle_of, predict, unchanged, write
from semipd_cli.simulator.engine import Size
from semipd_engine.contract import Phase, ProfileKey, Split, StepProfileFile, StepTimes
from semipd_engine.core.observation import StepSize

pytestmark = pytest.mark.unit

KEY = ProfileKey(
    architecture="llama", weight_bytes=10**9, device="cpu", dtype="bfloat16", kernels="avx512_bf16", cpus=2
)
ASKED = Question(prompt=400, output=20, ttft=2.0, tpot=0.2, seconds=40, seeds=(1,))
SIZE = Size(prefill_chunk_tokens=256)


def profile(slower: float = 1.0, beside: float = 1.0) -> StepProfileFile:
    """Prefill 1 ms a token and a millisecond a step, decode 10 ms a step and one a row: `slower` times that. `beside`:
    what steps at 50/50 take over twice as long."""
    seconds = {Phase.PREFILL: lambda tokens: 1e-3 + 1e-3 * tokens, Phase.DECODE: lambda rows: 1e-2 + 1e-3 * rows}
    steps = [
        StepTimes(
            phase=phase,
            split=Split(prefill=50, decode=50),
            batch=rows * times,
            context=0,
            steps=50,
            tokens=50 * rows * times,
            context_tokens=0,
            alone_seconds=0.0 if shared else 50 * slower * seconds[phase](rows * times),
            shared_seconds=2 * beside * 50 * slower * seconds[phase](rows * times) if shared else 0.0,
        )
        for shared in (False, True)
        for phase, times in ((Phase.PREFILL, 16), (Phase.DECODE, 1))
        for rows in (1, 2, 4, 8, 16)
    ]
    # A kind is there once: those beside the other phase are of another context.
    steps = [s.model_copy(update={"context": 1}) if s.shared_seconds else s for s in steps]
    return StepProfileFile(
        key=KEY, model="m", machine="here", measured_at="2026-01-02T00:00:00+00:00", seconds=60, steps=tuple(steps)
    )


@pytest.mark.parametrize("edge", [0.06, 1.7, 40.0])
def test_the_knee_is_found_where_it_is(edge: float) -> None:
    assert knee(lambda rate: rate <= edge) == pytest.approx(edge, rel=0.03)
    assert knee(lambda rate: False) == 0
    assert knee(lambda rate: True) == 64.0


def test_twice_the_time_for_twice_as_slow_a_device_is_half_the_rate() -> None:
    """400 tokens of 1 ms are 0.4 s: no more than 2.5 requests a second, whatever the targets."""
    (fast,) = predict(profile(), ASKED, SIZE, [Split()]).values()
    longer = replace(ASKED, ttft=2 * ASKED.ttft, tpot=2 * ASKED.tpot, seconds=2 * ASKED.seconds)
    (slow,) = predict(profile(2.0), longer, SIZE, [Split()]).values()
    assert 0.4 < fast < 2.5
    assert slow / fast == pytest.approx(0.5, rel=0.05)


def test_prefill_with_a_smaller_share_serves_less() -> None:
    found = predict(profile(), ASKED, SIZE, [Split(prefill=100, decode=30), Split(prefill=20, decode=100)])
    assert found["100/30"] > found["20/100"] > 0


def test_the_oracle_has_what_was_measured() -> None:
    found = oracle_of(profile(beside=1.3))
    rng = random.Random(0)
    assert found.work(Phase.PREFILL, StepSize(1, 200, 0), rng) == pytest.approx(0.201, rel=0.05)
    assert found.work(Phase.DECODE, StepSize(6, 6, 0), rng) == pytest.approx(0.016, rel=0.05)
    for phase in Phase:
        assert found.speed(phase, Split()) == pytest.approx(1 / 2.6, rel=0.05), "a core each"
    gpu = profile().model_copy(update={"key": KEY.model_copy(update={"device": "cuda", "cpus": 0, "sm_count": 132})})
    assert oracle_of(gpu).speed(Phase.DECODE, Split()) > 0.6, "decode needs few of a GPU's SMs"


def test_a_prediction_that_was_changed_is_told(tmp_path: Path) -> None:
    path = tmp_path / "prediction.json"
    write(path, profile(), ASKED, SIZE, {"100/100": 1.5})
    assert unchanged(path) == {"100/100": 1.5}
    path.write_text(path.read_text().replace("1.5", "1.6"))
    with pytest.raises(ChangedError, match="was changed after it was written"):
        unchanged(path)


def test_a_wrong_profile_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path / "absent"), "--out", str(tmp_path)]) == 2
    assert "No such file" in capsys.readouterr().err
