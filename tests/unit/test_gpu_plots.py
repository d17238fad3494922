"""The pictures of the GPU check's report: bars as long as what was measured, and no bar for what was not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from tests.gpu.check.bars import LEFT, RIGHT, WIDTH
from tests.gpu.check.plots import plots, section
from tests.gpu.check.report import Call, Outcome, Record, write_report
from tests.gpu.check.verdicts import PREDICTIONS, steps

pytestmark = pytest.mark.unit
PREDICTED = json.loads(PREDICTIONS.read_text())
SVG = "{http://www.w3.org/2000/svg}"
FILES = [f"plots-{name}.svg" for name in ("decode", "prefill", "kernels", "switches", "goodput")]


def record(name: str, **figures: Any) -> Record:
    return Record(name, "", Outcome.OK, figures=figures)


def moves(kind: str, worst: float) -> dict[str, Any]:
    return {"move": kind, "moves": 10, "a step ms, median": 6.1, "worst gap ms": worst}


def whole() -> list[Record]:
    """Records as a whole run on an H100 writes them; the figures are made up."""
    case = PREDICTED["models"]["8B"]["cases"]
    slower = [{"step": step, "ms": predicted["ms"]["H100"]["expected"] * 1.1} for step, predicted in case.items()]
    graphs = [{"step": s, "ms": p["ms"]["H100"]["in a graph"] * 1.05} for s, p in case.items() if "decode" in s]
    attention = [{"sequences": n, "of a copy": part} for n, part in ((1, 0.61), (16, 0.84), (64, 0.9))]
    rates = {"one process, steps of 512": 8.0, "both on the whole device": 9.5, "Auto": 14.0, "fixed 60/40": 12.0}
    return [
        record("machine", GPU="NVIDIA H100 80GB HBM3, 132 SMs, 81559 MiB"),
        record("mps", rungs={"total": 132, "counts": {}}),
        record("kernels", **{"decode attention": attention}),
        record("switches", **{"moves, one after the other": [moves("cold", 14.5), moves("warm", 9.0)]}),
        record("green", **{"served moves": [{"moves": 24, "median ms": 6.0, "longest ms": 7.5}]}),
        record("large-8B", steps=slower),
        record("graphs-8B", steps=graphs),
        record("goodput", **{"goodput by mode": [{"mode": m, "goodput, 1/s": rate} for m, rate in rates.items()]}),
    ]


def bars(path: Path) -> dict[str, float]:
    """Pixels by what a bar is of."""
    boxes = ElementTree.parse(path).getroot().iter(f"{SVG}rect")
    return {
        str(title.text): float(box.attrib["width"]) for box in boxes if (title := box.find(f"{SVG}title")) is not None
    }


def test_a_whole_run_has_all_pictures_and_bars_as_long_as_their_figures(tmp_path: Path) -> None:
    rows = steps(whole(), PREDICTED)
    assert plots(whole(), rows, tmp_path) == FILES
    decode = bars(tmp_path / "plots-decode.svg")
    row = next(row for row in rows if (row["model"], row["step"]) == ("8B", "decode 16"))
    ratio = decode["batch 16, measured"] / decode["batch 16, expected"]
    assert ratio == pytest.approx(1.1, rel=0.01)
    assert {"batch 16, measured as a graph", "batch 16, expected in a graph"} <= decode.keys()
    assert max(decode.values()) == pytest.approx(WIDTH - LEFT - RIGHT, abs=0.1), "the longest one fills the room"
    marks = [line.attrib for line in ElementTree.parse(tmp_path / "plots-decode.svg").getroot().iter(f"{SVG}line")]
    at = LEFT + row["floor ms"] / row["expected ms"] * decode["batch 16, expected"]
    assert any(float(m["x1"]) == pytest.approx(at, abs=0.3) for m in marks), "the floor stands where it is"
    gaps = bars(tmp_path / "plots-switches.svg")
    assert gaps["mps, 10 cold moves, longest gap"] == max(gaps.values())
    assert "mps-green, 24 moves, longest gap" in gaps
    goodput = bars(tmp_path / "plots-goodput.svg")
    assert goodput["Auto, goodput"] / goodput["one process, steps of 512, goodput"] == pytest.approx(14 / 8, rel=0.01)


def test_what_was_not_measured_has_no_bar_and_is_named(tmp_path: Path) -> None:
    left = [one for one in whole() if one.name not in ("green", "goodput", "graphs-8B")]
    left[-1].figures["steps"] = [{"step": "decode 1", "ms": 8.0}, {"step": "decode 16", "ms": ""}]
    (tmp_path / "plots-goodput.svg").write_text("of an earlier call")
    rows = steps(left, PREDICTED)
    assert plots(left, rows, tmp_path) == ["plots-decode.svg", "plots-kernels.svg", "plots-switches.svg"]
    assert not (tmp_path / "plots-goodput.svg").exists()
    assert {name.partition(",")[0] for name in bars(tmp_path / "plots-decode.svg")} == {"batch 1"}
    said = section(left, rows)
    assert "Decode steps, not measured: 1B, 8B at batch 16, 64, DeepSeek-V2-Lite." in said
    assert "Goodput on the alternating trace, not measured: all modes." in said
    assert "Moves under load, not measured: mps-green." in said
    assert not any("plots-goodput" in line for line in said)


def test_another_card_has_no_floor_and_no_prediction(tmp_path: Path) -> None:
    records = [record("machine", GPU="NVIDIA L4"), record("large-1B", steps=[{"step": "decode 1", "ms": 9.0}])]
    rows = steps(records, PREDICTED)
    assert plots(records, rows, tmp_path) == ["plots-decode.svg"]
    assert list(bars(tmp_path / "plots-decode.svg")) == ["batch 1, measured"]
    assert any("1B's floor (no predictions of this card)" in line for line in section(records, rows))


@pytest.mark.parametrize("records", [[], [record("machine", Python="3.12")]])
def test_without_figures_there_is_no_picture_and_the_report_says_so(records: list[Record], tmp_path: Path) -> None:
    rows = steps(records, PREDICTED)
    assert plots(records, rows, tmp_path) == []
    assert list(tmp_path.iterdir()) == []
    assert "None: nothing that they show was measured." in section(records, rows)


@pytest.mark.parametrize("device", ["cuda", "cpu"])
def test_the_report_shows_its_pictures_and_a_dry_run_none_of_the_models(device: str, tmp_path: Path) -> None:
    call = Call({"device": device, "commit": "c"}, 1.0)
    page = write_report(tmp_path, whole(), call, [], steps(whole(), PREDICTED), "")
    shown = FILES if device == "cuda" else FILES[2:]
    assert [name for name in FILES if f"]({name})" in page] == shown
    assert sorted(path.name for path in tmp_path.glob("*.svg")) == sorted(shown)
    assert page == (tmp_path / "report.md").read_text()
