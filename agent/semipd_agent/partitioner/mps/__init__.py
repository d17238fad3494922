"""NVIDIA MPS as partitioner: a ceiling on the SMs of each phase. `backend.Mps` joins the parts.

`preflight` judges the machine, `daemon` is one incarnation of the control program, `control` speaks its command
language, `probe` is the smallest client, `ladder` the rungs. None of them knows the engine but through its contract.
"""

from semipd_agent.partitioner.mps.backend import Mps
from semipd_agent.partitioner.mps.programs import Programs

__all__ = ["Mps", "Programs"]
