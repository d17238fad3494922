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

import msgspec

from semipd_engine.ipc.steps import Continuation, Row, StepPlan, StepResult, TargetScores, TokenResult
from semipd_engine.ipc.tokens import TokenLogprobs
from semipd_engine.memory.layout import KVComponent, KVLayout
from semipd_engine.pacing.quantum import Pacer
from semipd_engine.worker.servable import Following, StaleSlot, nothing_follows

VOCABULARY = 5000
ITEM_BYTES = 4


def layout(block_size: int) -> KVLayout:
    return KVLayout(num_layers=1, components=(KVComponent("id", 1),), block_size=block_size, itemsize=ITEM_BYTES)


def next_token(ids: array[int]) -> int:
    return zlib.crc32(ids.tobytes()) % VOCABULARY


def allowed(token: int, mask: bytes | None) -> int:
    """One that the mask has, each of them as likely as the next."""
    if mask is None:
        return token
    known = [i for i in range(min(VOCABULARY, 8 * len(mask))) if mask[i // 8] >> i % 8 & 1]
    return known[token % len(known)]


def reference(prompt: list[int], count: int) -> list[int]:
    """What the model answers when nothing goes wrong."""
    ids = array("i", prompt)
    for _ in range(count):
        ids.append(next_token(ids))
    return list(ids[len(prompt) :])


def score(ids: array[int], target: int) -> TokenLogprobs:
    """What a target is worth after these tokens: it depends on all of them, too."""
    return TokenLogprobs(-(zlib.crc32(ids.tobytes()) ^ target) % 1000 / 100 - 10)


def reference_scores(prompt: list[int]) -> list[float]:
    return [score(array("i", prompt[:i]), prompt[i]).logprob for i in range(1, len(prompt))]


def extended(running: tuple[Row, list[int], int], blocks: dict[int, list[int]]) -> tuple[Row, list[int], int]:
    row, tokens, start = running
    return msgspec.structs.replace(row, block_table=row.block_table + blocks[row.request]), tokens, start


class FakeRunner:
    """The interface of `worker.model_runner.ModelRunner` over a flat array of token ids."""

    def __init__(
        self,
        memory: memoryview,
        block_size: int,
        pacer: Pacer,
        prefill_seconds: Callable[[int], float] = lambda tokens: 0.0,
        decode_seconds: Callable[[int], float] = lambda rows: 0.0,
        ahead: bool = False,
    ) -> None:
        """`ahead`: a step begins before the tokens of the one before it are known, so a row that ended at a stop id is
        written once more."""
        self.ids = memory
        self.block_size = block_size
        self.pacer = pacer
        self.prefill_seconds = prefill_seconds
        self.decode_seconds = decode_seconds
        self.ahead = ahead
        self.running: list[tuple[Row, list[int], int]] = []
        """After a step: who goes on, with the token that comes next and its position."""

    def prepare(self) -> bool:
        return False

    def execute(
        self, plan: StepPlan, recalled: Callable[[int], bool], following: Following = nothing_follows
    ) -> Iterator[StepResult]:
        rows, stopped = [(row, row.tokens, row.start) for row in plan.rows], list[tuple[Row, list[int], int]]()
        seq, recall, final = plan.seq, plan.seq, plan.seq + plan.max_steps - 1
        while True:
            behind: Continuation | None = None
            if seq == final and not recalled(recall):
                behind = following(final + 1)
            results, alive, begin = [], [], time.monotonic()
            scores: list[TargetScores] = []
            with self.pacer.quantum():
                time.sleep(self.seconds([tokens for _, tokens, _ in rows]))
                self.write_stopped(stopped)
                for row, tokens, start in rows:
                    for offset, token in enumerate(tokens):
                        self.write(row.block_table, start + offset, token)
                    if row.targets:
                        known = [self.read(row.block_table, start + 1 + i) for i in range(len(row.targets))]
                        scores.append(TargetScores(row.request, list(map(score, known, row.targets))))
                    if row.sampling is None:
                        continue
                    end = start + len(tokens)
                    sampled = allowed(next_token(self.read(row.block_table, end)), row.mask)
                    results.append(TokenResult(row.request, sampled))
                    if row.output_index + (seq - plan.seq) + 1 < row.sampling.max_tokens:
                        ended = sampled in row.sampling.stop_token_ids
                        (stopped if ended else alive).append((row, [sampled], end))
            rows = alive
            if behind is not None:
                blocks = dict(behind.rows)
                rows = [extended(each, blocks) for each in rows if each[0].request in blocks]
                stopped = [extended(each, blocks) for each in stopped if each[0].request in blocks]
            self.running = rows
            last = not rows or (seq == final and behind is None) or recalled(recall)
            if last and (seq < final or behind is not None):
                self.write_stopped(stopped)
            yield StepResult(seq, results, last or seq == final, seconds=time.monotonic() - begin, scores=scores)
            if last and behind is not None:
                raise StaleSlot(behind.seq)
            if last:
                return
            if behind is not None:
                recall, final = behind.seq, final + behind.max_steps
            seq += 1

    def seconds(self, rows: list[list[int]]) -> float:
        """A step of single tokens takes decode's time, and each token of a chunk takes its own."""
        single = sum(len(tokens) == 1 for tokens in rows)
        chunks = sum(len(tokens) for tokens in rows if len(tokens) > 1)
        return (self.decode_seconds(single) if single else 0.0) + (self.prefill_seconds(chunks) if chunks else 0.0)

    def write_stopped(self, rows: list[tuple[Row, list[int], int]]) -> None:
        for row, tokens, start in rows if self.ahead else []:
            self.write(row.block_table, start, *tokens)
        rows.clear()

    def write(self, table: list[int], position: int, token: int) -> None:
        block, slot = divmod(position, self.block_size)
        self.ids[table[block] * self.block_size + slot] = token

    def read(self, table: list[int], count: int) -> array[int]:
        ids = array("i")
        for block in table[: -(-count // self.block_size)]:
            ids.extend(self.ids[block * self.block_size : (block + 1) * self.block_size])
        return ids[:count]
