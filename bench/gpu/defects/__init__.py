"""Seeded defects of the GPU path, each with the tests that must find it without a GPU. Data.

A defect is one expression changed as a slip of the hand would change it: a mask, a stride, a block table, a slot of -1,
an offset of shared memory, a route, a variable of MPS, a seed. `bench.gpu.mutations` carries them out on a copy.
"""

from bench.gpu.defects.defect import Defect
from bench.gpu.defects.kernels import KERNELS
from bench.gpu.defects.mps import MPS
from bench.gpu.defects.rungs import RUNGS
from bench.gpu.defects.steps import STEPS

__all__ = ["DEFECTS", "Defect"]
DEFECTS = (*KERNELS, *STEPS, *RUNGS, *MPS)
