"""Of a step on the device: its batch and graphs, the plans ahead, what is sampled, and the memory that it lies in."""

from __future__ import annotations

from bench.gpu.defects.defect import ENGINE, Defect, of

_BUFFERS = "tests/unit/test_input_buffers.py"
_PLANS = "tests/engine/test_model_plans.py"
_STEP = "tests/unit/test_gpu_step.py"
_GRAPHS = "tests/engine/test_decode_graphs.py"
STEPS: tuple[Defect, ...] = (
    *of(
        f"{ENGINE}/worker/input_batch.py",
        f"{_PLANS} -k 'share_a_step or last_tokens or no_token'",
        ("block table", "positions % self._block_size", "positions // self._block_size"),
        ("rows", '"seq_lens": self._starts + counts', '"seq_lens": self._starts + 1'),
        ("rows", "ends[self._samples] - 1", "firsts[self._samples]"),
    ),
    *of(
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
    *of(
        f"{ENGINE}/worker/input_batch.py",
        f"{_GRAPHS} -k 'before_they_are_known'",
        ("offset", "positions = self._starts + 1", "positions = self._starts"),
        ("block table", "self._extended or len(sources) < before", "self._extended"),
    ),
    *of(
        f"{ENGINE}/worker/decode_graphs.py",
        f"{_GRAPHS} -k 'padding or before or numbers'",
        ("slot -1", 'longer("slot_mapping", -1)', 'longer("slot_mapping")'),
        ("padding", "min=0, out=batch.token_ids", "min=-1, out=batch.token_ids"),
        ("waits", "for _ in range(2)])", "for _ in range(1)])"),
    ),
    *of(
        f"{ENGINE}/worker/decode_graphs.py",
        "tests/unit/test_gpu_graphs.py",
        ("padding", 'longer("seq_lens", 1)', 'longer("seq_lens")'),
        ("waits", "                event.synchronize()", "                pass"),
    ),
    *of(
        f"{ENGINE}/worker/captured_steps.py",
        f"{_GRAPHS} -k 'before_they_are_known or has_begun'",
        ("seed", "for i in going], 1)", "for i in going])"),
        ("rows", "sources = [places[i] for i in going]", "sources = list(range(len(going)))"),
        ("rows", "[found[place] for place in places]", "found[: len(places)]"),
    ),
    *of(
        f"{ENGINE}/core/scheduler.py",
        "tests/unit/test_scheduler_simulation.py -k no_token",
        ("quarantine", "min(result.seq + 1, final)", "result.seq"),
    ),
    *of(
        f"{ENGINE}/core/scheduler.py",
        "tests/unit/test_scheduler_ahead.py",
        ("quarantine", ".planned(Phase.DECODE, self.behind.seq + steps - 1)", ".planned(Phase.DECODE, plan.seq)"),
        ("epoch", "if plan is None or plan.seq != seq:", "if plan is None:"),
    ),
    *of(
        f"{ENGINE}/worker/model_runner.py",
        "tests/engine/test_continued_plans.py",
        ("quarantine", "more = [] if over else _going(requests, behind)", "more = range(len(requests))"),
        ("rows", "for i in _going(requests, behind) if not", "for i in range(len(requests)) if not"),
    ),
    *of(
        f"{ENGINE}/worker/input_batch.py",
        "tests/unit/test_gpu_graphs.py -k continues",
        ("block table", "self._extended, self._tables_there = True, None", "self._tables_there = None"),
    ),
    *of(
        f"{ENGINE}/worker/model_runner.py",
        _STEP,
        (
            "waits",
            "_check(tokens, requests[begin:end])",
            "_check([int(one) for one in part.argmax(1)], requests[begin:end])",
        ),
    ),
    *of(
        f"{ENGINE}/worker/model_runner.py",
        "tests/unit/test_gpu_graphs.py",
        ("quarantine", "            if last and ahead:\n", "            if ahead and not last:\n"),
    ),
    *of(
        f"{ENGINE}/sampling/sampler.py",
        "tests/unit/test_sampler.py",
        ("seed", 'f"{seed}:{index}"', 'f"{index}"'),
        ("seed", 'f"{seed}:{index}".encode()', 'f"{seed}".encode()'),
        ("seed", ">> 11) * 2.0**-53", ">> 12) * 2.0**-53"),
    ),
    *of(
        f"{ENGINE}/memory/driver.py",
        "tests/unit/cuda",
        ("offset", "-(-nbytes // GRANULE) * GRANULE", "nbytes"),
        (
            "signature",
            '"cuMemAlloc_v2": (POINTER(ctypes.c_uint64), ctypes.c_size_t)',
            '"cuMemAlloc_v2": (POINTER(ctypes.c_uint64), ctypes.c_int)',
        ),
    ),
    *of(
        f"{ENGINE}/memory/layout.py",
        "tests/engine/test_model_arena.py -k 'latent_width or another_mapping'",
        ("offset", "self.components[:index])", "self.components[:0])"),
    ),
)
