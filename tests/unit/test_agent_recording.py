"""The flight recorder: replayed offline it comes to the same decisions; it is bounded; what is none is refused."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from tests.unit.agent_plant import Pod, Speed, poisson

from semipd_agent import pilot
from semipd_agent.contract import SLO, Admission, AgentConfig, Bounds, Mode, PartitionConfig
from semipd_agent.slo import predictive, recording
from semipd_agent.slo.recording import RecordingError, replayed
from semipd_cli.simulator.command import simulate

pytestmark = pytest.mark.unit
FAST = Speed(prompt_token=5e-5, step=0.006, row=0.0003)


def config(generation: int = 1, *, mixed: bool = False, tpot: int = 30, bounds: Bounds | None = None) -> AgentConfig:
    partition = PartitionConfig(mode=Mode.AUTO, mixed_batches=mixed, bounds=bounds or Bounds())
    slo = SLO(ttft_milliseconds=750, tpot_milliseconds=tpot)
    return AgentConfig(generation=generation, slo=slo, partition=partition)


def flown(seconds: int, *, mixed: bool = False) -> Pod:
    """Prompts of 2,000 tokens, of which the policy makes at least one move."""
    pod = Pod(config(mixed=mixed), poisson(3.25, seconds, 2000, 60, 1), FAST)
    for second in range(1, seconds + 1):
        pod.tick(float(second))
    return pod


def recorded(pod: Pod) -> bytes:
    return b"".join(pod.controller.pilot.recorder.pieces())


@pytest.mark.parametrize("mixed", [False, True])
def test_a_recording_replayed_gives_the_same_decisions(mixed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its begin is lost by then: a segment holds all that the policy knew when it began."""
    monkeypatch.setattr(recording, "SEGMENT_TICKS", 15)
    pod = flown(90, mixed=mixed)
    ticks = list(replayed(recorded(pod).splitlines()))
    assert 30 <= len(ticks) <= 45, "three segments of fifteen ticks are kept"
    assert all(tick.same for tick in ticks)
    assert sum(tick.recorded is not None for tick in ticks) > 25
    assert ticks[-1].recorded == pod.controller.pilot.verdict
    assert pod.controller.faults.report() == ()


def test_what_the_gate_refused_by_is_in_it() -> None:
    """The policy chooses for those that are let in, so a replay must know who is."""
    settings = config().model_copy(update={"admission": Admission.ON})
    pod = Pod(settings, poisson(9.0, 40, 2000, 60, 1), FAST)
    for second in range(1, 41):
        pod.tick(float(second))
    assert any(done.ttft is None for done in pod.engine.done), "some were refused"
    lines = recorded(pod).splitlines()
    assert len(lines) > 30 and all(tick.same for tick in replayed(lines))
    forgotten = [json.loads(line) for line in lines]
    for entry in forgotten:
        entry.get("tick", {}).pop("late", None)
    assert not all(tick.same for tick in replayed(json.dumps(entry) for entry in forgotten))


def test_a_move_is_in_it_and_the_command_tells_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pod, file = flown(60), tmp_path / "recording.ndjson"
    file.write_bytes(recorded(pod))
    assert simulate(["--replay", str(file)]) == 0
    said = capsys.readouterr().out
    assert "100/100 -> " in said and "expected within both targets" in said and "; 0 differ" in said
    lines = file.read_text().splitlines()
    first = json.loads(lines[0])
    first["begin"]["slo"]["ttft_milliseconds"] = 75_000
    file.write_text("\n".join([json.dumps(first), *lines[1:]]))
    assert simulate(["--replay", str(file)]) == 1, "with another target it would have decided otherwise"
    assert " instead of " in capsys.readouterr().out


def test_any_reader_of_json_can_read_it() -> None:
    """Of a policy that never moved, too: RFC 8259 knows no infinity."""

    def refuses(word: str) -> object:
        raise AssertionError(word)

    lines = recorded(flown(3)).splitlines()
    begin, *ticks = (json.loads(line, parse_constant=refuses) for line in lines)
    assert float(begin["begin"]["state"]["evaluated_at"]) == -math.inf and len(ticks) == 3
    assert all(tick.same for tick in replayed(lines))


def test_what_no_tick_tells_begins_a_segment() -> None:
    pod = flown(5)
    pod.controller.configure(config(2, bounds=Bounds(min_prefill_percent=40)))
    pod.tick(6.0)
    pod.controller.configure(config(3, tpot=20))
    pod.tick(7.0)
    lines = [json.loads(line) for line in recorded(pod).splitlines()]
    assert ["begin" in line for line in lines] == [True, *[False] * 5, True, False, True, False]
    assert all(tick.same for tick in replayed(map(json.dumps, lines)))


def test_it_is_read_in_pieces_as_it_was_when_it_was_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """A reader who takes his time holds little of it, and sees no half of a later line."""
    pod = flown(10)
    then, pieces = recorded(pod), pod.controller.pilot.recorder.pieces()
    monkeypatch.setattr(recording, "PIECE_BYTES", 1000)
    read = [next(pieces)]
    pod.tick(11.0)
    read += pieces
    assert len(read) > 10 and max(map(len, read)) <= 1000
    assert b"".join(read) == then != recorded(pod)


def test_a_policy_that_failed_fails_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the same words: it is no other decision."""

    def fails(*_: object) -> None:
        raise ZeroDivisionError("of nothing")

    pod = flown(3)
    monkeypatch.setattr(predictive, "decide", fails)
    pod.tick(4.0)
    *_, last = replayed(recorded(pod).splitlines())
    assert last.recorded is not None and last.recorded.feasible_reason == "PolicyFailed"
    assert last.same and "ZeroDivisionError: of nothing" in last.recorded.message
    assert [fault.part for fault in pod.controller.faults.report()] == ["policy"]


@pytest.mark.parametrize("broken", ["advance", "_plain"])
def test_what_could_not_be_taken_or_written_begins_a_segment(broken: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """No tick stands behind a begin that it does not follow."""

    def fails(*_: object) -> None:
        raise ValueError("broken")

    pod = Pod(config(), poisson(3.25, 30, 2000, 60, 1), FAST)
    for second in range(1, 4):
        pod.tick(float(second))
    with monkeypatch.context() as patch:
        patch.setattr(recording if broken == "_plain" else pilot, broken, fails)
        pod.tick(4.0)
        pod.controller.configure(config(2, tpot=20))
        for second in range(5, 10):
            pod.tick(float(second))
    for second in range(10, 30):
        pod.tick(float(second))
    ticks = list(replayed(recorded(pod).splitlines()))
    assert [tick.observation.at for tick in ticks] == [1.0, 2.0, 3.0, *map(float, range(10, 30))]
    assert all(tick.same for tick in ticks)


@pytest.mark.parametrize(
    ("lines", "says"),
    [
        ([], "it is empty"),
        (["{}"], "line 1 is none of a recording"),
        (["nothing"], "line 1 is none of a recording"),
        (['{"version": 99, "begin": {}}'], "line 1: version 99; this program reads 2"),
    ],
)
def test_what_is_no_recording_is_said_in_one_line(
    lines: list[str], says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(RecordingError, match=says):
        list(replayed(lines))
    file = tmp_path / "f"
    file.write_text("\n".join(lines))
    assert simulate(["--replay", str(file)]) == 2
    error = capsys.readouterr().err
    assert says in error and error.count("\n") == 1


def test_a_tick_without_a_begin_is_refused() -> None:
    lines = recorded(flown(3)).splitlines()
    with pytest.raises(RecordingError, match="before the begin"):
        list(replayed(lines[1:]))
