"""Where a part of the check plays: its device, rungs, models and engines, as large as the device allows.

Knows no part.
"""

from __future__ import annotations

import time
from contextlib import AbstractContextManager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.engine.harness import Engine
from tests.gpu.check.engine import engine
from tests.gpu.check.report import Outcome, Record
from tests.gpu.check.rungs import Rungs

from semipd_engine.contract import DType

if TYPE_CHECKING:
    import torch

Figures = dict[str, Any]
MIB = 1 << 20
END_SECONDS = 8.0
"""For an engine and a daemon to end."""


class Stage:
    def __init__(
        self, device: str, folder: Path, records: Path, mps_probe: Path | None, smollm2: Path | None, seconds: float
    ) -> None:
        """`folder`: for models, sockets and logs; short. `records`: of the parts before this one. `mps_probe`: on the
        CPU, the stand-in with which rungs are measured. `seconds`: that the part may take."""
        self._device, self._end = device, time.monotonic() + seconds
        self.folder, self.mps_probe = folder, mps_probe
        self._records, self._smollm2 = records, smollm2
        self._rungs: Rungs | None = None

    @cached_property
    def device(self) -> torch.device:
        import torch  # here: a part that needs none begins some seconds sooner

        return torch.device(self._device, *([0] if self._device == "cuda" else []))

    @property
    def dry(self) -> bool:
        return self._device == "cpu"

    @property
    def left(self) -> float:
        """Seconds for what a part measures, if it is to end by itself."""
        return self._end - END_SECONDS - time.monotonic()

    def close(self) -> None:
        if self._rungs is not None:
            self._rungs.stop()

    @property
    def split(self) -> tuple[int, int]:
        """Four workers, or in a dry run two: each takes seconds to start."""
        return (100, 100) if self.dry else (60, 40)

    @property
    def moves(self) -> tuple[tuple[int, int], tuple[int, int]]:
        """A first split below 100/100, and one whose rungs nobody has held; in a dry run prefill's alone."""
        return ((60, 100), (40, 100)) if self.dry else ((60, 40), (40, 80))

    def start_rungs(self) -> Rungs:
        """For the part that finds out what they are."""
        self._rungs = Rungs.start(self.mps_probe)
        return self._rungs

    @property
    def rungs(self) -> Rungs:
        """As the part `mps` found them, with a daemon for this part alone: what one part does to it harms no other."""
        if self._rungs is None:
            found = Record.read(self._records / "mps.json")
            if found is None or found.outcome is not Outcome.OK:
                why = found.problem if found is not None else "the part `mps` did not run"
                self._rungs = Rungs(why_not=why or "the part `mps` did not end well")
            else:
                self._rungs = Rungs.start(self.mps_probe, known=found.figures["rungs"])
                if self._rungs.why_not:
                    raise RuntimeError(f"MPS served the part `mps`, and now: {self._rungs.why_not}")
        return self._rungs

    def model(self, name: str) -> Path:
        if name == "smollm2":
            assert self._smollm2 is not None
            return self._smollm2
        from semipd_engine.hub.make_model import make_model

        folder = self.folder / "model" / name
        make_model("tiny", name, folder, progress=False)
        return folder

    def engine(self, model: Path, dtype: DType, **options: Any) -> AbstractContextManager[Engine]:
        run = self.folder / "run"
        return engine(model, run, self.device, dtype, under_mps=bool(self.rungs.counts), **options)
