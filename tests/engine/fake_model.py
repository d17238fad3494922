"""A deterministic language model of sixteen lines whose tokens depend on every byte of its KV entries.

Its K/V entry of a token is the token id; the next token is a checksum of the ids of the whole sequence, read back
through the block table. A block that is handed on too early, lost or written by a stranger changes the tokens, so
comparing tokens with `reference` checks hand-over, quarantine, preemption and recovery at once.
"""

from __future__ import annotations

import time
import zlib
from array import array
from collections.abc import Callable, Iterator

from semipd_engine.ipc.messages import DecodePlan, PrefillPlan, StepResult, TokenResult
from semipd_engine.memory.layout import KVComponent, KVLayout
from semipd_engine.pacing.quantum import Pacer

VOCABULARY = 5000
ITEM_BYTES = 4


def layout(block_size: int) -> KVLayout:
    return KVLayout(num_layers=1, components=(KVComponent("id", 1),), block_size=block_size, itemsize=ITEM_BYTES)


def next_token(ids: array[int]) -> int:
    return zlib.crc32(ids.tobytes()) % VOCABULARY


def reference(prompt: list[int], count: int) -> list[int]:
    """What the model answers when nothing goes wrong."""
    ids = array("i", prompt)
    for _ in range(count):
        ids.append(next_token(ids))
    return list(ids[len(prompt) :])


class FakeRunner:
    """The interface of `worker.model_runner.ModelRunner` over a flat array of token ids."""

    def __init__(
        self,
        memory: memoryview,
        block_size: int,
        pacer: Pacer,
        prefill_seconds: Callable[[int], float] = lambda tokens: 0.0,
        decode_seconds: Callable[[int], float] = lambda rows: 0.0,
    ) -> None:
        self.ids = memory
        self.block_size = block_size
        self.pacer = pacer
        self.prefill_seconds = prefill_seconds
        self.decode_seconds = decode_seconds

    def prefill(self, plan: PrefillPlan) -> StepResult:
        tokens = []
        begin = time.monotonic()
        with self.pacer.quantum():
            time.sleep(self.prefill_seconds(sum(len(c.token_ids) for c in plan.chunks)))
            for chunk in plan.chunks:
                for offset, token in enumerate(chunk.token_ids):
                    self.write(chunk.block_table, chunk.start + offset, token)
                if chunk.sampling is not None:
                    end = chunk.start + len(chunk.token_ids)
                    tokens.append(TokenResult(chunk.request, next_token(self.read(chunk.block_table, end))))
        return StepResult(seq=plan.seq, tokens=tokens, last=True, seconds=time.monotonic() - begin)

    def decode(self, plan: DecodePlan, recalled: Callable[[int], bool]) -> Iterator[StepResult]:
        rows = [(row, row.token, row.position) for row in plan.rows]
        for step in range(plan.max_steps):
            results, alive, begin = [], [], time.monotonic()
            with self.pacer.quantum():
                time.sleep(self.decode_seconds(len(rows)))
                for row, token, position in rows:
                    self.write(row.block_table, position, token)
                    sampled = next_token(self.read(row.block_table, position + 1))
                    results.append(TokenResult(row.request, sampled))
                    ended = sampled in row.sampling.stop_token_ids
                    if not ended and row.output_index + step + 1 < row.sampling.max_tokens:
                        alive.append((row, sampled, position + 1))
            rows = alive
            last = not rows or step == plan.max_steps - 1 or recalled(plan.seq)
            yield StepResult(plan.seq + step, results, last, seconds=time.monotonic() - begin)
            if last:
                return

    def write(self, table: list[int], position: int, token: int) -> None:
        block, slot = divmod(position, self.block_size)
        self.ids[table[block] * self.block_size + slot] = token

    def read(self, table: list[int], count: int) -> array[int]:
        ids = array("i")
        for block in table[: -(-count // self.block_size)]:
            ids.extend(self.ids[block * self.block_size : (block + 1) * self.block_size])
        return ids[:count]
