"""``make gpu-smoke``: shows on one GPU, in one call and without a network, what no test elsewhere can show.

``python -m tests.gpu.smoke [--device cuda|cpu] [--out DIR] [--smollm2 DIR]``. Eight minutes at most: parts that do not
fit any more are skipped. A part that fails does not keep the others from running. Writes ``smoke.json`` and
``smoke.md``; exit status 1 if a part failed. ``--device cpu`` is the dry run: every line but the device's runs, and no
figure counts. Run it in the repository; without an installation with ``PYTHONPATH=.:agent:engine``.

Where MPS cannot run it says why, and goes on with a worker for each rung and no limit.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
import tempfile
from pathlib import Path

from semipd_engine.resident.cuda_environment import without_mps

BUDGET_SECONDS = 440


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.gpu.smoke", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu: dry run")
    parser.add_argument("--out", type=Path, default=Path("docs/gpu"), help="directory of the report")
    parser.add_argument("--smollm2", type=Path, default=None, help="directory of SmolLM2-135M-Instruct")
    options = parser.parse_args()
    logging.basicConfig(level=logging.WARNING)
    environment = without_mps(os.environ)  # we look at the GPU as a process outside MPS
    os.environ.clear()
    os.environ.update(environment)

    import torch
    from tests.gpu.smoke.parts import Smoke
    from tests.gpu.smoke.report import Report
    from tests.gpu.smoke.rungs import Rungs

    from semipd_engine.hub.make_model import make_model

    report = Report(options.device, BUDGET_SECONDS)
    rungs = Rungs.start() if options.device == "cuda" else Rungs(why_not="a dry run on the CPU")
    with tempfile.TemporaryDirectory(prefix="smoke-") as folder:
        root = Path(folder)
        smoke = Smoke(torch.device(options.device, *([0] if options.device == "cuda" else [])), rungs, root / "run")
        try:
            report.run("machine", "what is here", smoke.machine)
            report.run("MPS", "a daemon of our own limits its clients", smoke.mps)
            report.run("rungs", "a rung has its SMs, in torch as in the probe, and the rate follows", smoke.rates)
            for architecture in ("qwen2",) if smoke.dry else ("qwen2", "llama", "qwen3"):
                tiny = root / architecture
                make_model("tiny", architecture, tiny, progress=False)
                kill = architecture == "qwen2"
                claim = "float32 tokens equal transformers', through two phase processes"
                claim += ", and after kill -9 of each worker" if kill else ""
                report.run(f"exact: tiny {architecture}", claim, smoke.exact(tiny, kill))
            small = root / "small"
            make_model("tiny" if smoke.dry else "small", "llama", small, progress=False)
            claim = "weights and KV pool are there once; a switch under load costs no worker and no token"
            report.run("memory and switches", claim, smoke.memory(small))
            if options.smollm2 is not None:
                claim = "float32 tokens equal transformers', through two phase processes"
                report.run("exact: SmolLM2", claim, smoke.exact(options.smollm2, kill=False))
        finally:
            rungs.stop()
            report.write(options.out)
    print(report.markdown())
    return 0 if report.ok else 1


if __name__ == "__main__":
    sys.exit(main())
