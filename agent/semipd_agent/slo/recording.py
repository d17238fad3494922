"""The flight recorder: what the policy was shown and what it made of it, bounded, and enough to decide it all again.

A recording is lines of JSON, in segments. A segment begins with all that the policy knew then; each tick after it has
what the ones before it did not tell of the observation, and the verdict. So `replayed` runs the production code over
it and comes to the same verdicts, on any machine. Only `ModelPredictive` is recorded: no other policy's state is in the
open. It knows no engine, no clock and no transport.
"""

from __future__ import annotations

import dataclasses
import json
import math
import zlib
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, TypeAdapter

from semipd_agent.contract import SLO, Bounds
from semipd_agent.slo.advance import advance
from semipd_agent.slo.feasibility import Judge
from semipd_agent.slo.grid import Grid
from semipd_agent.slo.load import Load
from semipd_agent.slo.policy import SplitPolicy, Verdict, ask
from semipd_agent.slo.predictive import ModelPredictive, State
from semipd_agent.slo.preparation import Preparation
from semipd_agent.slo.step_model import Kind, kinds
from semipd_agent.slo.window import Evidence
from semipd_engine.contract import Observation, Split, StepTimes

VERSION = 2
SEGMENT_TICKS, SEGMENT_BYTES = 300, 500_000
"""A segment ends with the first of the two; bytes are compressed ones."""
SEGMENTS = 3
"""Kept, the one that is being written included: ten to fifteen minutes, at most 1.5 MB."""
PIECE_BYTES = 1 << 18
"""Unpacked at once for a reader: a recording may be tens of megabytes, and the agent has few."""
_LOAD, _STATE, _JUDGE, _KINDS = TypeAdapter(Load), TypeAdapter(State), TypeAdapter(Judge), TypeAdapter(set[Kind])
_VERDICT: TypeAdapter[Verdict | None] = TypeAdapter(Verdict | None)
_PREPARATION: TypeAdapter[Preparation | None] = TypeAdapter(Preparation | None)


class RecordingError(Exception):
    """This is no recording, or not one of this version; says which line."""


class Recorder:
    """One for a pod. `begin` before the load advances, `tick` after the policy was asked, or was not."""

    def __init__(self) -> None:
        self._segments: deque[_Segment] = deque(maxlen=SEGMENTS)
        self._policy: ModelPredictive | None = None
        self._load: Load | None = None
        self._bounds: Bounds | None = None
        self._steps: dict[Kind, StepTimes] = {}

    def begin(self, policy: SplitPolicy | None, load: Load, bounds: Bounds) -> None:
        """Opens a segment where the last one is full, or something came to be that no tick tells."""
        if not isinstance(policy, ModelPredictive):
            self._policy = None
            return
        same = policy is self._policy and load is self._load and bounds == self._bounds
        if same and not self._segments[-1].full:
            return
        known = {
            "slo": policy.slo,
            "bounds": bounds,
            "rungs": policy.grid.rungs,
            "home": policy.home,
            "mixes": policy.mixes,
            "load": load,
            "state": policy.state,
            "judge": policy.judge,
        }
        self._policy = None  # until it is written: ticks without a begin are of no use
        segment = _Segment()
        segment.write(json.dumps({"version": VERSION, "begin": _plain(known)}))
        if self._segments and not self._segments[-1].ticks:
            self._segments.pop()  # what fails in each tick pushes nothing out that was recorded before
        self._segments.append(segment)
        self._policy, self._load, self._bounds, self._steps = policy, load, bounds, {}

    def tick(
        self,
        before: Load,
        after: Load,
        o: Observation,
        split: Split,
        now: float,
        verdict: Verdict | None,
        late: float = math.inf,
        preparation: Preparation | None = None,
    ) -> None:
        """`before`, `after`: the load without and with `o`. `verdict`: None where the policy was not asked. `late` and
        `preparation`: as `Evidence` has them.

        What is not written whole is followed by a new segment: a load that no tick led to is not the one of before."""
        if self._policy is None:
            return
        self._load = None
        if after is before:  # the observation was of no use, and would be to nobody else
            return
        newest, cursor = (before.newest, before.cursor) if o.core_id == before.core_id else (-1, -1)
        steps, told = kinds(o.steps), self._steps if o.core_id == before.core_id else {}
        fresh = o.model_copy(
            update={
                "arrivals": tuple(a for a in o.arrivals if a.id > newest),
                "finished": tuple(f for f in o.finished if f.cursor > cursor),
                "steps": tuple(times for kind, times in steps.items() if told.get(kind) != times),
            }
        )
        gone = [kind for kind in told if kind not in steps]
        self._steps = steps
        told_now = {"now": now, "split": split, "gone": gone, "verdict": verdict}
        told_now |= {"late": late} if late < math.inf else {}
        told_now |= {"preparation": preparation} if preparation is not None else {}
        line = json.dumps(_plain(told_now))
        self._segments[-1].write(f'{{"o":{fresh.model_dump_json()},"tick":{line}}}')
        self._load = after

    def pieces(self) -> Iterator[bytes]:
        """Lines of JSON as of now, oldest first, in pieces of at most `PIECE_BYTES`; none: nothing was recorded."""
        packed = [segment.packed() for segment in self._segments]
        return (piece for one in packed for piece in _unpacked(one))


class _Segment:
    def __init__(self) -> None:
        self._pack = zlib.compressobj()
        self._packed = bytearray()
        self.ticks = -1  # the first line is the begin

    def write(self, line: str) -> None:
        self._packed += self._pack.compress(line.encode() + b"\n")
        self.ticks += 1

    @property
    def full(self) -> bool:
        return self.ticks >= SEGMENT_TICKS or len(self._packed) > SEGMENT_BYTES

    def packed(self) -> bytes:
        return bytes(self._packed) + self._pack.copy().flush()


def _unpacked(packed: bytes) -> Iterator[bytes]:
    unpack = zlib.decompressobj()
    while not unpack.eof:
        if piece := unpack.decompress(packed, PIECE_BYTES):
            yield piece
        packed = unpack.unconsumed_tail


@dataclass(frozen=True)
class Replayed:
    """One tick."""

    observation: Observation
    split: Split
    recorded: Verdict | None
    """None: the policy was not asked."""
    now: Verdict | None
    """What today's code makes of it."""

    @property
    def same(self) -> bool:
        return self.recorded == self.now


def replayed(lines: Iterable[str | bytes]) -> Iterator[Replayed]:
    """Decides it all again. Raises `RecordingError`."""
    policy: ModelPredictive | None = None
    number = 0
    load, bounds, steps = Load(), Bounds(), dict[Kind, StepTimes]()
    for number, line in enumerate(lines, 1):
        try:
            entry = json.loads(line)
            if "begin" in entry:
                if entry["version"] != VERSION:
                    raise RecordingError(f"line {number}: version {entry['version']}; this program reads {VERSION}")
                known, steps = _revived(entry["begin"]), {}
                policy, load, bounds = _policy(known), _LOAD.validate_python(known["load"]), known["bounds"]
                bounds = Bounds.model_validate(bounds)
                continue
            tick, o = _revived(entry["tick"]), Observation.model_validate(entry["o"])
            split, verdict = Split.model_validate(tick["split"]), _VERDICT.validate_python(tick["verdict"])
            gone = _KINDS.validate_python(tick["gone"])
            late = float(tick.get("late", math.inf))
            preparation = _PREPARATION.validate_python(tick.get("preparation"))
        except (KeyError, TypeError, ValueError) as error:
            raise RecordingError(f"line {number} is none of a recording ({type(error).__name__})") from error
        if policy is None:
            raise RecordingError(f"line {number}: a tick before the begin of a segment")
        told = steps if o.core_id == load.core_id else {}
        # Those that were seen last come last, as in core: the order of a sum is in its last bits.
        fresh = kinds(o.steps)
        steps = {kind: times for kind, times in told.items() if kind not in gone and kind not in fresh} | fresh
        o = o.model_copy(update={"steps": tuple(steps.values())})
        try:
            load = advance(load, o)
        except Exception as error:
            raise RecordingError(f"line {number}: nothing follows from it ({type(error).__name__})") from error
        again = None
        if verdict is not None:
            evidence = Evidence(observation=o, load=load, late=late, preparation=preparation)
            again, _ = ask(policy, evidence, split, bounds, policy.grid, tick["now"])
        yield Replayed(o, split, verdict, again)
    if not number:
        raise RecordingError("it is empty")


def _policy(known: dict[str, Any]) -> ModelPredictive:
    home = Split.model_validate(known["home"]) if known["home"] else None
    grid = Grid(tuple(known["rungs"]))
    policy = ModelPredictive(SLO.model_validate(known["slo"]), grid, home=home, mixes=known["mixes"])
    policy.state, policy.judge = _STATE.validate_python(known["state"]), _JUDGE.validate_python(known["judge"])
    return policy


def _plain(value: Any) -> Any:
    """As JSON can hold it: dictionaries whose keys are no strings become pairs, "never" (-inf) a word."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, BaseModel):
        return _plain(dict(value))
    if dataclasses.is_dataclass(value):
        return {field.name: _plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, dict):
        if all(type(key) is str for key in value):
            return {key: _plain(one) for key, one in value.items()}
        return {"pairs": [[_plain(key), _plain(one)] for key, one in value.items()]}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    return value


def _revived(value: Any) -> Any:
    if isinstance(value, list):
        return [_revived(one) for one in value]
    if isinstance(value, dict):
        if set(value) == {"pairs"}:
            return {tuple(k) if isinstance(k, list) else k: _revived(one) for k, one in value["pairs"]}
        return {key: _revived(one) for key, one in value.items()}
    return value
