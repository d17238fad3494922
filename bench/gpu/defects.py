"""Seeded defects of the GPU path, each with the tests that must find it without a GPU. Data.

A defect is one expression changed as a slip of the hand would change it: a mask, a stride, a block table, a slot of -1,
an offset of shared memory, a route, a variable of MPS, a seed. `bench.gpu.mutations` carries them out on a copy.
"""

from __future__ import annotations

from dataclasses import dataclass

ENGINE, AGENT = "engine/semipd_engine", "agent/semipd_agent/partitioner/mps"


@dataclass(frozen=True)
class Defect:
    kind: str
    file: str
    right: str
    """Occurs once in the file."""
    wrong: str
    tests: str
    """pytest's arguments."""

    @property
    def key(self) -> str:
        return f"{self.file}: {self.name}"

    @property
    def name(self) -> str:
        return f"`{self.right.strip()}` → `{self.wrong.strip() or 'nothing'}`".replace("\n", " ")


def _of(file: str, tests: str, *changes: tuple[str, str, str]) -> list[Defect]:
    return [Defect(kind, file, right, wrong, tests) for kind, right, wrong in changes]


_KERNELS = "tests/unit/kernels/test_gpu.py"
_EXPERTS = "tests/unit/kernels/test_gpu_experts.py"
_BUFFERS = "tests/unit/test_input_buffers.py"
_PLANS = "tests/engine/test_model_plans.py"
_STEP = "tests/unit/test_gpu_step.py"
_GRAPHS = "tests/engine/test_decode_graphs.py"
DEFECTS: tuple[Defect, ...] = (
    *_of(
        f"{ENGINE}/kernels/gpu/attention.py",
        f"{_KERNELS} -k chunks_and_decode_rows",
        ("mask", "seen[None, :] <= position[:, None]", "seen[None, :] < position[:, None]"),
        ("mask", "seen[None, :] > position[:, None] -", "seen[None, :] >= position[:, None] -"),
        (
            "mask",
            "visible_end = length - end + tl.minimum(begin_row + ROWS, end)",
            "visible_end = length - end + begin_row",
        ),
        ("stride", "tl.load(tables + s * table_stride", "tl.load(tables + s * block_size"),
        (
            "stride",
            "row.to(tl.int64)[:, None] * q_stride + head[:, None] * HEAD_DIM",
            "row.to(tl.int64)[:, None] * q_stride + member[:, None] * HEAD_DIM",
        ),
        ("block table", "seen // block_size, mask=there", "seen // POSITIONS, mask=there"),
        ("block table", "entry * block_size + seen % block_size) * width", "entry * block_size + seen) * width"),
        ("rows", "// ROWS + middle <= block", "// ROWS + middle < block"),
        ("softmax", "total = total * fade + tl.sum(weights, axis=1)", "total = total + tl.sum(weights, axis=1)"),
    ),
    *_of(
        f"{ENGINE}/kernels/gpu/attention.py",
        f"{_KERNELS} -k 'split or padding'",
        ("split", "tile_begin += split * share", "tile_begin += share"),
        ("split", "tl.sum(total * weights, axis=0)", "tl.sum(total, axis=0)"),
        ("rows", "mine = (row < end) & (row >= first_row)", "mine = (row >= first_row)"),
        ("padding", "if row >= tl.load(starts + sequences):", "if row > tl.load(starts + sequences):"),
    ),
    *_of(
        f"{ENGINE}/kernels/gpu/rows.py",
        f"{_KERNELS} -k 'norm or activation'",
        ("slot -1", "if is_key & (slot < 0):", "if is_key & (slot < -1):"),
        ("rotation", "tl.where(places < HALF, -second, second)", "tl.where(places < HALF, second, -second)"),
        ("rotation", "angle = row * angle_stride + places % HALF", "angle = row * angle_stride + places"),
        ("stride", "base + kv_heads * HEAD_DIM + places", "base + heads * HEAD_DIM + places"),
        ("stride", "x + row * x_stride + width + columns", "x + row * x_stride + BLOCK + columns"),
        ("stride", "place = residual + row * residual_stride + columns", "place = residual + row * x_stride + columns"),
    ),
    *_of(
        f"{ENGINE}/kernels/gpu/latent.py",
        f"{_KERNELS} -k latent",
        ("mask", "seen[None, :] <= position[:, None]", "seen[None, :] < position[:, None]"),
        ("slot -1", "written = paired & ((head < heads) | (slot >= 0))", "written = paired"),
        ("stride", "entry[None, :] + RANK + turned[:, None]", "entry[None, :] + turned[:, None]"),
    ),
    *_of(
        f"{ENGINE}/kernels/gpu/experts.py",
        f"{_EXPERTS} -k 'order or twins_experts or equals'",
        ("route", "put += tl.sum((chosen < expert)", "put += tl.sum((chosen <= expert)"),
        ("offset", "order + put + rank - 1, place", "order + put + rank, place"),
        ("route", "value += tl.max(", "value = tl.max("),
        ("route", "tl.sum(tl.sum(tl.where(mine, score, 0.0)", "tl.sum(tl.sum(tl.where(mine, choice, 0.0)"),
    ),
    *_of(
        f"{ENGINE}/kernels/gpu/experts.py",
        f"{_EXPERTS} -k 'products or panels or summed or tiles_enough'",
        ("mask", "mask=mine[:, None] & inside[None, :])", "mask=inside[None, :])"),
        ("route", "tl.cumsum(tiles, axis=0) <= tile", "tl.cumsum(tiles, axis=0) < tile"),
        ("rows", "(tile - before) * ROWS + tl.arange", "tile * ROWS + tl.arange"),
        ("stride", "matrix + (features // 2).to(tl.int64) * inner", "matrix + (end_column + 0 * features) * inner"),
        ("rows", "places // ROWS + min(places, experts)", "places // ROWS + 1"),
        ("stride", "tl.load(weights + row * CHOSEN + k)", "tl.load(weights + k)"),
    ),
    *_of(
        f"{ENGINE}/kernels/gpu/adjusting.py",
        "tests/unit/kernels/test_gpu_adjusting.py",
        ("mask", "(word >> (tokens % 32)) & 1", "(word >> (tokens // 32)) & 1"),
        ("mask", "tl.load(mask_of + row), words, tokens", "row.to(tl.int32), words, tokens"),
        ("stride", "edits + at.to(tl.int64) * 4", "edits + at.to(tl.int64) * 3"),
        ("penalty", "tl.where(value > 0.0, tl.div_rn", "tl.where(value < 0.0, tl.div_rn"),
        ("stop ids", "(kind & 2) != 0", "(kind & 1) != 0"),
    ),
    *_of(
        f"{ENGINE}/worker/input_batch.py",
        f"{_PLANS} -k 'share_a_step or last_tokens or no_token'",
        ("block table", "positions % self._block_size", "positions // self._block_size"),
        ("rows", '"seq_lens": self._starts + counts', '"seq_lens": self._starts + 1'),
        ("rows", "ends[self._samples] - 1", "firsts[self._samples]"),
    ),
    *_of(
        f"{ENGINE}/worker/input_batch.py",
        _BUFFERS,
        ("rows", "self._starts = self._starts[keep] + self._counts[keep]", "self._starts = self._starts[keep] + 1"),
        ("offset", "end += -(-math.prod(shape) // ALIGNED) * ALIGNED", "end += ALIGNED"),
        (
            "offset",
            "self._there[first:end].copy_(self._host[first:end]",
            "self._there[first : end - 1].copy_(self._host[first : end - 1]",
        ),
        ("waits", "if self._ahead else other", "if not self._ahead else other"),
    ),
    *_of(
        f"{ENGINE}/worker/input_batch.py",
        f"{_GRAPHS} -k 'before_they_are_known'",
        ("offset", "positions = self._starts + 1", "positions = self._starts"),
        ("block table", "self._extended or len(sources) < before", "self._extended"),
    ),
    *_of(
        f"{ENGINE}/worker/decode_graphs.py",
        f"{_GRAPHS} -k 'padding or before or numbers'",
        ("slot -1", 'longer("slot_mapping", -1)', 'longer("slot_mapping")'),
        ("padding", "min=0, out=batch.token_ids", "min=-1, out=batch.token_ids"),
        ("waits", "for _ in range(2)])", "for _ in range(1)])"),
    ),
    *_of(
        f"{ENGINE}/worker/decode_graphs.py",
        "tests/unit/test_gpu_graphs.py",
        ("padding", 'longer("seq_lens", 1)', 'longer("seq_lens")'),
        ("waits", "                event.synchronize()", "                pass"),
    ),
    *_of(
        f"{ENGINE}/worker/captured_steps.py",
        f"{_GRAPHS} -k 'before_they_are_known or has_begun'",
        ("seed", "for i in going], 1)", "for i in going])"),
        ("rows", "sources = [places[i] for i in going]", "sources = list(range(len(going)))"),
        ("rows", "[found[place] for place in places]", "found[: len(places)]"),
    ),
    *_of(
        f"{ENGINE}/core/scheduler.py",
        "tests/unit/test_scheduler_simulation.py -k no_token",
        ("quarantine", "min(result.seq + 1, final)", "result.seq"),
    ),
    *_of(
        f"{ENGINE}/core/scheduler.py",
        "tests/unit/test_scheduler_ahead.py",
        ("quarantine", ".planned(Phase.DECODE, self.behind.seq + steps - 1)", ".planned(Phase.DECODE, plan.seq)"),
        ("epoch", "if plan is None or plan.seq != seq:", "if plan is None:"),
    ),
    *_of(
        f"{ENGINE}/worker/model_runner.py",
        "tests/engine/test_continued_plans.py",
        ("quarantine", "more = [] if over else _going(requests, behind)", "more = range(len(requests))"),
        ("rows", "for i in _going(requests, behind) if not", "for i in range(len(requests)) if not"),
    ),
    *_of(
        f"{ENGINE}/worker/input_batch.py",
        "tests/unit/test_gpu_graphs.py -k continues",
        ("block table", "self._extended, self._tables_there = True, None", "self._tables_there = None"),
    ),
    *_of(
        f"{ENGINE}/worker/model_runner.py",
        _STEP,
        (
            "waits",
            "_check(tokens, requests[begin:end])",
            "_check([int(one) for one in part.argmax(1)], requests[begin:end])",
        ),
    ),
    *_of(
        f"{ENGINE}/worker/model_runner.py",
        "tests/unit/test_gpu_graphs.py",
        ("quarantine", "            if last and ahead:\n", "            if ahead and not last:\n"),
    ),
    *_of(
        f"{ENGINE}/sampling/sampler.py",
        "tests/unit/test_sampler.py",
        ("seed", 'f"{seed}:{index}"', 'f"{index}"'),
        ("seed", 'f"{seed}:{index}".encode()', 'f"{seed}".encode()'),
        ("seed", ">> 11) * 2.0**-53", ">> 12) * 2.0**-53"),
    ),
    *_of(
        f"{ENGINE}/memory/driver.py",
        "tests/unit/cuda",
        ("offset", "-(-nbytes // GRANULE) * GRANULE", "nbytes"),
        (
            "signature",
            '"cuMemAlloc_v2": (POINTER(ctypes.c_uint64), ctypes.c_size_t)',
            '"cuMemAlloc_v2": (POINTER(ctypes.c_uint64), ctypes.c_int)',
        ),
    ),
    *_of(
        f"{ENGINE}/green/ladder.py",
        "tests/unit/test_green_ladder.py",
        (
            "groups",
            "range(self.boundary(100 - percent), len(self.sizes))",
            "range(self.boundary(percent), len(self.sizes))",
        ),
        ("groups", "below[phase] < found[phase] < self.total", "below[phase] <= found[phase] < self.total"),
    ),
    *_of(
        f"{ENGINE}/green/driver.py",
        "tests/unit/cuda",
        ("groups", "*([rest] if rest.sm_count else [])", ""),
        (
            "signature",
            '("sm_count", ctypes.c_uint),\n        ("least", ctypes.c_uint),',
            '("least", ctypes.c_uint),\n        ("sm_count", ctypes.c_uint),',
        ),
    ),
    *_of(
        f"{ENGINE}/green/hold.py",
        "tests/unit/cuda",
        ("offset", "memory.value + 4 * blocks, memory.value + 8 * blocks", "memory.value, memory.value + 8 * blocks"),
        ("self-test", "if 2 * block <= whole:", "if block > whole:"),
    ),
    *_of(
        f"{ENGINE}/green/self_test.py",
        "tests/unit/cuda/test_green.py",
        ("self-test", "        if gone:\n", "        if gone < 0:\n"),
        ("self-test", "if sum(here) > total:", "if sum(here) > sum(wanted):"),
        ("self-test", "if here[0] < wanted[0]:", "if here[0] < 1:"),
    ),
    *_of(
        f"{ENGINE}/green/probe.py",
        "tests/unit/cuda/test_green.py",
        ("order of ends", "preexec_fn=partial(die_with_parent, os.getpid()),", ""),
        ("order of ends", "        self._process.kill()\n        with", "        with"),
    ),
    *_of(
        f"{ENGINE}/green/driver.py",
        "tests/unit/cuda/test_green.py -k cannot_be_made",
        (
            "order of ends",
            'cuGreenCtxDestroy", context)\n            raise',
            'cuStreamDestroy_v2", stream)\n            raise',
        ),
    ),
    *_of(
        f"{ENGINE}/worker/lanes.py",
        "tests/unit/test_lanes.py",
        ("waits", "        stream.wait_stream(self.streams[self.chosen])  # one event\n", ""),
        ("rungs", "return lambda: programs[lanes.chosen]()", "return lambda: programs[WHOLE]()"),
        ("rungs", "line.groups(phase, percent)", "line.groups(Phase.PREFILL, percent)"),
        ("rungs", "            programs.pop(number, None)\n", "            pass\n"),
        ("rungs", "before - self._free() if number != WHOLE else 0", "before - self._free()"),
    ),
    *_of(
        f"{ENGINE}/worker/model_runner.py",
        "tests/unit/test_lanes.py",
        ("rungs", "        self._choose(plan.rung)\n", ""),
    ),
    *_of(
        f"{ENGINE}/core/partitions.py",
        "tests/unit/test_rungs.py",
        ("rungs", "index, alone = limit.rung or 0, limit.rung is None", "index, alone = 0, limit.rung is None"),
    ),
    *_of(
        f"{ENGINE}/core/routing.py",
        "tests/engine/test_processes_green.py -k serves_on_the_whole",
        ("route", "self.pool.is_ready(phase, rung)", "holder.ready"),
    ),
    *_of(
        f"{AGENT}/backend.py",
        "tests/unit/test_mps_green.py",
        (
            "MPS environment",
            "green.environment(daemon.variables(WHOLE))",
            "green.environment(daemon.variables(percent))",
        ),
        ("rungs", "if each not in self._lost", "if each"),
    ),
    *_of(
        f"{ENGINE}/memory/layout.py",
        "tests/engine/test_model_arena.py -k 'latent_width or another_mapping'",
        ("offset", "self.components[:index])", "self.components[:0])"),
    ),
    *_of(
        f"{ENGINE}/core/partitions.py",
        "tests/unit/test_rungs.py",
        ("route", "if alone and whole is not None else kept", "if whole is not None else kept"),
        ("route", "if seen == device != expected:", "if seen == device == expected:"),
    ),
    *_of(
        f"{ENGINE}/resident/cuda_environment.py",
        "tests/unit/test_cuda_environment.py",
        ("MPS environment", 'if not name.startswith("CUDA_MPS_")', 'if name != "CUDA_MPS_PIPE_DIRECTORY"'),
        ("MPS environment", "without_mps(resident) | dict(rung)", "dict(rung) | without_mps(resident)"),
    ),
    *_of(
        f"{AGENT}/programs.py",
        "tests/unit/test_mps_preflight.py tests/unit/test_mps_lifecycle.py tests/unit/test_mps_engine.py",
        ("MPS environment", "| {PERCENTAGE: str(percent)}", "| {PERCENTAGE: str(100)}"),
    ),
    *_of(
        f"{ENGINE}/core/worker_pool.py",
        "tests/unit/test_worker_ends.py",
        (
            "order of ends",
            "        if not holder.rung.terminate_seconds:\n",
            "        if holder.rung.terminate_seconds:\n",
        ),
        ("order of ends", "environment, rung.terminate_seconds))", "environment))"),
    ),
    *_of(
        f"{ENGINE}/resident/resident.py",
        "tests/unit/test_resident_ends.py",
        ("order of ends", "LEAVE_GPU_SECONDS + self._terminate_seconds", "LEAVE_GPU_SECONDS"),
    ),
    *_of(
        f"{AGENT}/backend.py",
        "tests/unit/test_mps_workers.py -k 'core_is_gone'",
        ("order of ends", "self._keeper.terminate(pid for pid in left", "list(pid for pid in left"),
        ("order of ends", "if snapshot.core_id != self._core:", "if self._core in ('', snapshot.core_id):"),
    ),
)
