"""NVIDIA MPS as partitioner: a ceiling on the SMs of each phase. `backend.Mps` joins the parts.

`preflight` judges the machine, `daemon` is one incarnation of the control program, `keeper` keeps one in force,
`control` speaks the command language, `programs` has the programs and their environment, `prober` runs the probes,
`ladder` has the rungs and the watchdogs' times, `green` what becomes of them as streams. None of them knows the engine
but through its contract.
"""

from semipd_agent.partitioner.mps.backend import Mps
from semipd_agent.partitioner.mps.programs import Programs

__all__ = ["Mps", "Programs"]
