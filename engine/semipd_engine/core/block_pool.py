"""The only owner of KV blocks: free list, reference counts, prefix cache and quarantine. Ids only, no memory.

Two processes write the KV pool and share no stream order: a block that is given to somebody else while a step in flight
still reads or writes it corrupts a stranger's tokens. So each phase has a clock of steps, each released block remembers
the last step of each phase that was planned with it, and it stays in quarantine until both clocks have passed.

States of a block; it is in exactly one::

    free ──alloc──► used (references > 0) ──release──► quarantined ──clocks pass──► free, or cached if it has a digest
                     ▲                                       │                          │
                     └───────────────── share (prefix hit) ──┴──────────────────────────┘   cached ──evict──► used

Knows nothing of requests, tokens or workers.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterable
from dataclasses import dataclass, field

from semipd_engine.contract import BlockCounts, Phase


@dataclass
class StepClock:
    """Steps of one phase: `planned` is the last number given out, `completed` the last one known to be over."""

    planned: int = 0
    completed: int = 0

    def plan(self, steps: int) -> int:
        """Number of the first of `steps` new steps."""
        first = self.planned + 1
        self.planned += steps
        return first


@dataclass(frozen=True)
class LastSteps:
    """Last step of each phase that was planned with a block; 0 is none."""

    prefill: int = 0
    decode: int = 0


class OutOfBlocks(Exception):
    """Fewer blocks can be had now than were asked for."""


class BlockAccountingError(AssertionError):
    """A bug of the engine: the block counts do not add up, or a block is used by nobody's leave."""


@dataclass
class _Block:
    references: int = 0
    prefill_step: int = 0
    decode_step: int = 0
    digest: bytes | None = None


@dataclass
class BlockPool:
    """Pool of blocks 0 .. num_blocks - 1."""

    num_blocks: int
    clocks: dict[Phase, StepClock] = field(default_factory=lambda: {p: StepClock() for p in Phase})

    def __post_init__(self) -> None:
        if self.num_blocks < 1:
            raise ValueError(f"num_blocks is {self.num_blocks}: a KV pool needs at least one block")
        self._blocks = [_Block() for _ in range(self.num_blocks)]
        self._free: deque[int] = deque(range(self.num_blocks))
        self._cached: OrderedDict[int, None] = OrderedDict()  # least recently used first
        self._quarantined: dict[int, None] = {}
        self._used = 0
        self._by_digest: dict[bytes, int] = {}

    @classmethod
    def replacing(cls, old: BlockPool) -> BlockPool:
        """New accounts of the same blocks. Nobody holds one, and all are in quarantine until every step that is planned
        by now is over."""
        pool = cls(old.num_blocks, old.clocks)
        pool._free.clear()
        pool._quarantined = dict.fromkeys(range(old.num_blocks))
        for state in pool._blocks:
            state.prefill_step, state.decode_step = (old.clocks[phase].planned for phase in Phase)
        for phase, clock in old.clocks.items():
            pool.complete(phase, clock.completed)
        return pool

    @property
    def available(self) -> int:
        """Blocks that `allocate` can give now: free ones and cached ones (which it evicts)."""
        return len(self._free) + len(self._cached)

    def allocate(self, count: int) -> list[int]:
        """`count` blocks with one reference each. Raises OutOfBlocks and takes none if there are fewer."""
        if count > self.available:
            raise OutOfBlocks(f"{count} blocks asked, {self.available} available")
        taken = []
        for _ in range(count):
            block = self._free.popleft() if self._free else self._evict()
            self._blocks[block].references = 1
            taken.append(block)
        self._used += count
        return taken

    def find(self, digest: bytes) -> int | None:
        """The block that holds the published content `digest`, whatever its state."""
        return self._by_digest.get(digest)

    def share(self, block: int) -> None:
        """One more reference to a block that `find` gave: a prefix hit. Reading needs no quarantine."""
        state = self._blocks[block]
        if state.references == 0:
            if state.digest is None:
                raise BlockAccountingError(f"block {block} is shared but has no published content")
            self._cached.pop(block, None)
            self._quarantined.pop(block, None)
            self._used += 1
        state.references += 1

    def publish(self, block: int, digest: bytes) -> None:
        """Let others find a full block. Only after the step that filled it was reported complete."""
        state = self._blocks[block]
        if state.references == 0:
            raise BlockAccountingError(f"block {block} is published by nobody")
        if state.digest is None and digest not in self._by_digest:
            state.digest = digest
            self._by_digest[digest] = block

    def release(self, blocks: Iterable[int], last: LastSteps) -> None:
        """Drop one reference to each block; `last` are the last steps planned with them by this holder."""
        for block in blocks:
            state = self._blocks[block]
            if state.references < 1:
                raise BlockAccountingError(f"block {block} is released but not used")
            state.references -= 1
            if last.prefill > state.prefill_step:
                state.prefill_step = last.prefill
            if last.decode > state.decode_step:
                state.decode_step = last.decode
            if state.references == 0:
                self._used -= 1
                self._settle(block) if self._passed(state) else self._quarantined.setdefault(block)

    def complete(self, phase: Phase, step: int) -> None:
        """All steps of `phase` up to `step` are over: reported, or their worker is reaped."""
        clock = self.clocks[phase]
        if step > clock.planned:
            raise BlockAccountingError(f"{phase} step {step} is complete but only {clock.planned} were planned")
        clock.completed = max(clock.completed, step)
        for block in [b for b in self._quarantined if self._passed(self._blocks[b])]:
            del self._quarantined[block]
            self._settle(block)

    def counts(self) -> BlockCounts:
        return BlockCounts(
            total=self.num_blocks,
            free=len(self._free),
            used=self._used,
            cached=len(self._cached),
            quarantined=len(self._quarantined),
        )

    def check(self) -> None:
        """Raise BlockAccountingError unless free + used + cached + quarantined = total."""
        counts = self.counts()
        if counts.free + counts.used + counts.cached + counts.quarantined != counts.total:
            raise BlockAccountingError(f"blocks do not add up: {counts}")

    def _passed(self, state: _Block) -> bool:
        """No step in flight can touch the block."""
        return (
            state.prefill_step <= self.clocks[Phase.PREFILL].completed
            and state.decode_step <= self.clocks[Phase.DECODE].completed
        )

    def _settle(self, block: int) -> None:
        if self._blocks[block].digest is None:
            self._free.append(block)
        else:
            self._cached[block] = None

    def _evict(self) -> int:
        block, _ = self._cached.popitem(last=False)
        digest = self._blocks[block].digest
        assert digest is not None  # only published blocks are cached
        del self._by_digest[digest]
        self._blocks[block].digest = None
        return block
