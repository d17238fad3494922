"""What was measured, beside what was predicted and what was promised: met, missed, or not measured, with the figures.

Pure: records of the parts and `docs/gpu/predictions.json` in, rows out. A figure that is not there is "not measured",
never a guess; a part that failed after it had measured keeps its figures, and a miss is a row like the others.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Any

from tests.gpu.check.report import Outcome, Record

Row = dict[str, Any]
PREDICTIONS = Path(__file__).resolve().parents[3] / "docs" / "gpu" / "predictions.json"
NEAR = 0.25
"""Part of itself by which a step may differ from what we expected of it and be called near."""
FLOOR_PART, PEAK_PART = 0.8, 0.6
"""Of the memory's rate in decode, and of the products' rate in a prompt: what the steps are built to reach."""
MOVE_STEPS, MOVE_US, AUTO_GAIN = 2.0, 100.0, 1.5
"""A move on an MPS rung lets a stream wait for two steps in place of one; on a green one it costs the host so much."""


class Verdict(StrEnum):
    MET = "met"
    MISSED = "missed"
    NOT_MEASURED = "not measured"
    NOT_PREDICTED = "not predicted for this card"


def card_of(records: Sequence[Record], predictions: Mapping[str, Any]) -> str:
    """The card for which predictions are registered; empty: another one."""
    name = str(_figures(records, "machine").get("GPU", ""))
    return next((card for card in predictions["assumed"]["cards"] if card in name), "")


def steps(records: Sequence[Record], predictions: Mapping[str, Any]) -> list[Row]:
    """A row for each step that was predicted: measured, expected, floor, and how near. On a card without predictions
    the measured ones alone; where no card is known, what is expected of each."""
    card, named, rows = card_of(records, predictions), _figures(records, "machine").get("GPU"), list[Row]()
    for model, described in predictions["models"].items():
        measured, captured = _steps_of(records, f"large-{model}"), _steps_of(records, f"graphs-{model}")
        for case, predicted in described["cases"].items():
            ms, row = measured.get(case), Row(model=model, step=case)
            row["measured ms"] = "" if ms is None else ms
            row["as a graph ms"] = captured.get(case, "")
            others = {} if named else predicted["ms"]
            if card:
                wanted = predicted["ms"][card]
                row |= {f"{what} ms": wanted[what] for what in ("expected", "in a graph", "floor")}
                row["measured / expected"] = "" if ms is None else round(ms / wanted["expected"], 2)
                row["verdict"] = _nearness(ms, wanted["expected"])
            else:
                row |= {f"expected on {one} ms": wanted["expected"] for one, wanted in others.items()}
                row["verdict"] = Verdict.NOT_MEASURED if ms is None else Verdict.NOT_PREDICTED
            rows.append(row)
    return rows


def targets(records: Sequence[Record], predictions: Mapping[str, Any]) -> list[Row]:
    """A row for each promise of the GPU path."""
    rows = [_exact(records), _weights_once(records)]
    rows += [_decode(records, predictions, batch) for batch in (1, 64)]
    rows += [_prompt(records, predictions), _move(records), _green(records)]
    return [*rows, _goodput(records)]


def _nearness(ms: float | None, expected: float) -> str:
    if ms is None:
        return Verdict.NOT_MEASURED
    if ms > (1 + NEAR) * expected:
        return "missed: slower"
    return "missed: faster" if ms < (1 - NEAR) * expected else "near"


def _row(target: str, wanted: str, measured: object, met: bool | None, word: str = "") -> Row:
    verdict = Verdict.NOT_MEASURED if met is None else Verdict.MET if met else Verdict.MISSED
    return {"target": target, "wanted": wanted, "measured": word if measured is None else measured, "verdict": verdict}


def _exact(records: Sequence[Record]) -> Row:
    ran = [one for one in records if one.name.startswith("exact-") and one.outcome in (Outcome.OK, Outcome.FAILED)]
    wrong = [one.name for one in ran if one.outcome is Outcome.FAILED]
    said = f"{len(ran) - len(wrong)} of {len(ran)} families" + (f", not {', '.join(wrong)}" if wrong else "")
    return _row("float32 tokens", "transformers' own", said if ran else None, not wrong if ran else None)


def _weights_once(records: Sequence[Record]) -> Row:
    found = _figures(records, "large-8B")
    names = ("memory taken by all, MiB", "weights, MiB", "KV pool, MiB")
    if not all(name in found for name in names):
        return _row("weights in memory", "once", None, None)
    taken, weights, pool = (float(found[name]) for name in names)
    rest = taken - weights - pool
    return _row("weights in memory", "once", f"{weights:.0f} MiB, and {rest:.0f} for workers", rest < weights)


def _decode(records: Sequence[Record], predictions: Mapping[str, Any], batch: int) -> Row:
    case = f"decode {batch}"
    ms, seconds = _fastest(records, case), _floor(records, predictions, case)
    part = None if ms is None or seconds is None else seconds * 1e3 / ms
    said = None if part is None else f"{part:.0%}"
    return _row(f"8B, {case}", f">= {FLOOR_PART:.0%} of the memory's rate", said, part and part >= FLOOR_PART)


def _floor(records: Sequence[Record], predictions: Mapping[str, Any], case: str) -> float | None:
    """Seconds: by the data sheet; of another card by the rate of a copy on it."""
    predicted = predictions["models"]["8B"]["cases"][case]
    if card := card_of(records, predictions):
        return float(predicted["ms"][card]["floor"]) / 1e3
    copied = _figures(records, "kernels").get("copy, GB/s")
    return None if copied is None else predicted["bytes"] / (float(copied) * 1e9)


def _prompt(records: Sequence[Record], predictions: Mapping[str, Any]) -> Row:
    case = "prefill 2048"
    ms = _fastest(records, case)
    rates = _figures(records, "rungs").get("matrix products of one client", [])
    peak = next((float(row["TFLOP/s"]) for row in rates if row["percent"] == 100), None)
    part = None
    if ms is not None and peak:
        part = predictions["models"]["8B"]["cases"][case]["flops"] / (ms / 1e3) / (peak * 1e12)
    said = None if part is None else f"{part:.0%}"
    return _row(f"8B, {case}", f">= {PEAK_PART:.0%} of the products' rate", said, part and part >= PEAK_PART)


def _move(records: Sequence[Record]) -> Row:
    rows = [row for row in _figures(records, "switches").get("moves, one after the other", []) if row["move"] == "warm"]
    wanted = "a stream waits for one step more at most"
    if not rows or _figures(records, "mps").get("rungs") is None:
        return _row("a move between warm MPS rungs", wanted, None, None)
    median, worst = float(rows[0]["a step ms, median"]), float(rows[0]["worst gap ms"])
    said = f"{worst:g} ms at worst of {rows[0]['moves']}, a step is {median:g} ms"
    return _row("a move between warm MPS rungs", wanted, said, worst <= MOVE_STEPS * median)


def _green(records: Sequence[Record]) -> Row:
    rows = _figures(records, "green").get("moves", [])
    wanted = f"<= {MOVE_US:g} us of the host, p99"
    p99 = float(rows[0]["p99 us"]) if rows else None
    return _row("a move between green contexts", wanted, p99, None if p99 is None else p99 <= MOVE_US)


def _goodput(records: Sequence[Record]) -> Row:
    """Of Auto's second time, when it knows the card; without MPS nothing it chooses has an effect."""
    wanted = f">= {AUTO_GAIN} x the best one-process setting, on the alternating trace"
    rates = {row["mode"]: float(row["goodput, 1/s"]) for row in _figures(records, "goodput").get("goodput by mode", [])}
    one = max((rate for mode, rate in rates.items() if mode.startswith("one process")), default=0.0)
    if not one or "Auto" not in rates or _figures(records, "mps").get("rungs") is None:
        return _row("goodput of Auto", wanted, None, None)
    gain = rates["Auto"] / one
    return _row("goodput of Auto", wanted, f"{gain:.2f} x ({rates['Auto']:g} to {one:g} per second)", gain >= AUTO_GAIN)


def _figures(records: Sequence[Record], part: str) -> Mapping[str, Any]:
    return next((one.figures for one in records if one.name == part), {})


def _fastest(records: Sequence[Record], case: str) -> float | None:
    """Of the 8 B model, as the engine serves it by itself or with graphs, milliseconds."""
    found = [_steps_of(records, f"{how}-8B").get(case) for how in ("large", "graphs")]
    return min((ms for ms in found if ms is not None), default=None)


def _steps_of(records: Sequence[Record], part: str) -> dict[str, float]:
    rows = _figures(records, part).get("steps", [])
    return {row["step"]: float(row["ms"]) for row in rows if row.get("ms") not in (None, "")}
