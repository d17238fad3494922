"""The one hook through which the model lets itself be paced. Knows nothing of shared memory or of the peer.

The model wraps each piece of work of at most about 5 ms in ``with pacer.quantum():``. What happens there (wait for the
turn, change the number of threads, move to other cores) is the pacer's business; between two quanta a phase holds
nothing that the other one could wait for.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol


class Pacer(Protocol):
    def quantum(self) -> AbstractContextManager[None]: ...


class Unpaced:
    """No limit: tests, GPUs (where MPS enforces the share), and the comparison mode."""

    @contextmanager
    def quantum(self) -> Iterator[None]:
        yield
