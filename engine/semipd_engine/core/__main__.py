"""``python -m semipd_engine.core``: the core process. Signals, title and options only.

Until the agent sets a plan, the shares of the options are in force on the CPUs that the container grants.
"""

from __future__ import annotations

import gc
import logging
import signal
import socket
import sys

from setproctitle import setproctitle

from semipd_engine.contract import EngineOptions, Split
from semipd_engine.core.engine_core import EngineCore
from semipd_engine.cpu_grant import granted
from semipd_engine.cpu_plan import cpu_plan


def main() -> int:
    options = EngineOptions.parse(None, "python -m semipd_engine.core", "Scheduler and owner of all requests.")
    if options.run_dir is None:
        raise SystemExit("--run-dir is missing: the launcher sets it")
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s core: %(message)s", stream=sys.stderr)
    setproctitle("semipd: core")
    split = Split(prefill=options.prefill_share, decode=options.decode_share)
    cpus = granted(socket.gethostname()).cpus
    core = EngineCore(options, options.run_dir, cpu_plan(split, cpus, options.threads))
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: core.terminate())
    gc.freeze()  # what is loaded now stays: the collector need not walk it between two steps
    core.run()
    return 0


if __name__ == "__main__":
    sys.exit(main())
