"""Of rungs and green contexts: groups of SMs, lanes of one worker, which rung a step runs on."""

from __future__ import annotations

from bench.gpu.defects.defect import AGENT, ENGINE, Defect, of

RUNGS: tuple[Defect, ...] = (
    *of(
        f"{ENGINE}/green/ladder.py",
        "tests/unit/test_green_ladder.py",
        (
            "groups",
            "range(self.boundary(100 - percent), len(self.sizes))",
            "range(self.boundary(percent), len(self.sizes))",
        ),
        ("groups", "below[phase] < found[phase] < self.total", "below[phase] <= found[phase] < self.total"),
    ),
    *of(
        f"{ENGINE}/green/driver.py",
        "tests/unit/cuda",
        ("groups", "*([rest] if rest.sm_count else [])", ""),
        (
            "signature",
            '("sm_count", ctypes.c_uint),\n        ("least", ctypes.c_uint),',
            '("least", ctypes.c_uint),\n        ("sm_count", ctypes.c_uint),',
        ),
    ),
    *of(
        f"{ENGINE}/green/hold.py",
        "tests/unit/cuda",
        ("offset", "memory.value + 4 * blocks, memory.value + 8 * blocks", "memory.value, memory.value + 8 * blocks"),
        ("self-test", "if 2 * block <= whole:", "if block > whole:"),
    ),
    *of(
        f"{ENGINE}/green/self_test.py",
        "tests/unit/cuda/test_green.py",
        ("self-test", "        if gone:\n", "        if gone < 0:\n"),
        ("self-test", "if sum(here) > total:", "if sum(here) > sum(wanted):"),
        ("self-test", "if here[0] < wanted[0]:", "if here[0] < 1:"),
    ),
    *of(
        f"{ENGINE}/green/probe.py",
        "tests/unit/cuda/test_green.py",
        ("order of ends", "preexec_fn=partial(die_with_parent, os.getpid()),", ""),
        ("order of ends", "        self._process.kill()\n        with", "        with"),
    ),
    *of(
        f"{ENGINE}/green/driver.py",
        "tests/unit/cuda/test_green.py -k cannot_be_made",
        (
            "order of ends",
            'cuGreenCtxDestroy", context)\n            raise',
            'cuStreamDestroy_v2", stream)\n            raise',
        ),
    ),
    *of(
        f"{ENGINE}/worker/lanes.py",
        "tests/unit/test_lanes.py",
        ("waits", "        stream.wait_stream(self.streams[self.chosen])  # one event\n", ""),
        ("rungs", "return lambda: programs[lanes.chosen]()", "return lambda: programs[WHOLE]()"),
        ("rungs", "line.groups(phase, percent)", "line.groups(Phase.PREFILL, percent)"),
        ("rungs", "            programs.pop(number, None)\n", "            pass\n"),
        ("rungs", "before - self._free() if number != WHOLE else 0", "before - self._free()"),
    ),
    *of(
        f"{ENGINE}/worker/model_runner.py",
        "tests/unit/test_lanes.py",
        ("rungs", "        self._choose(plan.rung)\n", ""),
    ),
    *of(
        f"{ENGINE}/core/partitions.py",
        "tests/unit/test_rungs.py",
        ("rungs", "index, alone = limit.rung or 0, limit.rung is None", "index, alone = 0, limit.rung is None"),
    ),
    *of(
        f"{ENGINE}/core/routing.py",
        "tests/engine/test_processes_green.py -k serves_on_the_whole",
        ("route", "self.pool.is_ready(phase, rung)", "holder.ready"),
    ),
    *of(
        f"{AGENT}/backend.py",
        "tests/unit/test_mps_green.py",
        (
            "MPS environment",
            "green.environment(daemon.variables(WHOLE))",
            "green.environment(daemon.variables(percent))",
        ),
        ("rungs", "if each not in self._lost", "if each"),
    ),
    *of(
        f"{ENGINE}/core/partitions.py",
        "tests/unit/test_rungs.py",
        ("route", "if alone and whole is not None else kept", "if whole is not None else kept"),
        ("route", "if seen == device != expected:", "if seen == device == expected:"),
    ),
)
