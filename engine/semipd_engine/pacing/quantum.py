"""The one hook through which the model lets itself be paced. Knows nothing of shared memory or of the peer.

The model does its work inside ``with pacer.quantum() as seconds:``, about so many seconds of it at a time. What happens
at the edges (wait for the turn, change the number of threads, move to other cores) is the pacer's business; between two
quanta a phase holds nothing that the other one could wait for.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol, TypeVar

T = TypeVar("T")


class Pacer(Protocol):
    def quantum(self) -> AbstractContextManager[float]:
        """Yields how many seconds of work on one core may be done before it ends."""


class Unpaced:
    """No limit: tests, GPUs (where MPS enforces the share), and the comparison mode."""

    @contextmanager
    def quantum(self) -> Iterator[float]:
        yield math.inf


def in_quanta(pacer: Pacer, rows: int, seconds: float, work: Callable[[int, int], list[T]]) -> list[T]:
    """``work(begin, end)`` of all rows, in order, as many in a quantum as fit if each takes so many seconds; one at
    least. What it gave, joined."""
    done = list[T]()
    begin = 0
    while begin < rows:
        with pacer.quantum() as left:
            end = begin + int(min(max(left / seconds, 1), rows - begin))
            done += work(begin, end)
        begin = end
    return done
