"""``python -m semipd_engine.worker.zygote PARENT ORDERS``: forks workers, their imports behind them, for a GPU.

Most of a worker's start goes to importing torch. This process has done that, and never touches the device: so each of
its children may, under the limit in its own environment, which the driver reads at its first call. Its children become
PARENT's, the resident's, who adopts orphans: the process in between is gone before the answer. Knows no model.
"""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from functools import partial
from importlib import import_module

from setproctitle import setproctitle

from semipd_engine.ipc.frames import BlockingChannel, ChannelClosed
from semipd_engine.process import die_with_parent
from semipd_engine.worker.__main__ import main as run_worker
from semipd_engine.worker.start_messages import Forked, ForkWorker

NEEDED = ("semipd_engine.worker.attach", "semipd_engine.kernels.gpu")
"""What a worker on a GPU imports; the second one only where Triton is."""
ADOPTION_SECONDS = 5.0

log = logging.getLogger(__name__)


def serve(parent: int, orders: BlockingChannel[ForkWorker], run: Callable[[int, int, int], int] = run_worker) -> None:
    """Until the parent is gone. ``run(parent, channel, start)`` is the worker. Raises `ChannelClosed`."""
    orders.send(Forked())
    while True:
        order = orders.recv()
        assert order is not None
        channel, start = orders.fds.popleft(), orders.fds.popleft()
        reading, writing = os.pipe()
        between = os.fork()
        if between == 0:
            pid = os.fork()
            if pid == 0:
                _be_worker(parent, order, partial(run, parent, channel, start), orders)
            os.write(writing, str(pid).encode())
            os._exit(0)
        for mine in (writing, channel, start):
            os.close(mine)
        pid = int(os.read(reading, 32) or 0)
        os.close(reading)
        os.waitpid(between, 0)  # the worker is its grandparent's now
        orders.send(Forked(pid))


def _be_worker(parent: int, order: ForkWorker, run: Callable[[], int], orders: BlockingChannel[ForkWorker]) -> None:
    code = 1
    try:
        orders.close()
        os.environ.clear()
        os.environ.update(order.environment)
        give_up_at = time.monotonic() + ADOPTION_SECONDS
        while os.getppid() != parent and time.monotonic() < give_up_at:
            time.sleep(0.0005)
        code = run()
    except BaseException:
        log.exception("a worker failed")
    finally:
        sys.stderr.flush()
        os._exit(code)


def obstacle() -> str:
    """Why no worker may be forked by this process; empty: one may."""
    import torch

    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        return "the imports have touched the device"
    tasks = len(os.listdir("/proc/self/task"))  # noqa: PTH208
    return "" if tasks == 1 else f"the imports have left {tasks} threads, which a fork would not have"


def main(parent: int, orders_fd: int) -> int:
    setproctitle("semipd: zygote")
    die_with_parent(parent)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    orders: BlockingChannel[ForkWorker] = BlockingChannel(socket.socket(fileno=orders_fd), ForkWorker)
    orders.sock.set_inheritable(False)
    for module in NEEDED:
        try:
            import_module(module)
        except ImportError as error:
            log.info("%s is not imported ahead: %s", module, error)
    if why := obstacle():
        log.error("%s: workers are started by exec", why)
        return 1
    gc.collect()
    gc.freeze()
    with contextlib.suppress(ChannelClosed):
        serve(parent, orders)
    return 0


if __name__ == "__main__":
    sys.exit(main(*map(int, sys.argv[1:3])))
