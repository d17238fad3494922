"""``python -m semipd_engine.resident``: the resident process. Title and environment only."""

from __future__ import annotations

import os
import sys

from setproctitle import setproctitle

from semipd_engine.launcher import WORKER_ENVIRONMENT
from semipd_engine.resident.cuda_environment import without_mps


def main() -> int:
    setproctitle("semipd: resident")  # first: it finds its room by where the environment lies at the start
    # Read by OpenMP when torch is imported: one thread until the fork, and no spinning on shared cores after it.
    os.environ.update(WORKER_ENVIRONMENT, KMP_BLOCKTIME="0")
    environment = without_mps(os.environ)
    os.environ.clear()
    os.environ.update(environment)
    from semipd_engine.contract import EngineOptions
    from semipd_engine.resident.loading import load
    from semipd_engine.resident.resident import run

    return run(EngineOptions.parse(None, "python -m semipd_engine.resident", "Owner of the weights."), load)


if __name__ == "__main__":
    sys.exit(main())
