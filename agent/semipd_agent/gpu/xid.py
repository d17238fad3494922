"""What a critical Xid error of the driver means for us. Pure.

The first group is what an application does to itself (an illegal access, an exhausted channel): NVIDIA's own device
plugin ignores it, and for us it makes the MPS server suspect. Any other critical Xid speaks of the hardware.
"""

from __future__ import annotations

APPLICATION = frozenset({13, 31, 43, 45, 68, 109})


def is_hardware(xid: int) -> bool:
    return xid not in APPLICATION
