"""The resident: owns weights, KV pool and pacing page, and starts the workers.

A plain blocking loop in one thread, so that on the CPU it can fork at any time: a worker is born in milliseconds and
shares every page of the weights. On a GPU it exports its memory, and workers are started by exec (`resident.spawn`). It
computes nothing after the load, and it is no client of MPS. Core connects to ``<run_dir>/resident.sock``; a new core
re-attaches to the same weights and KV pool once the old core's workers are reaped.
"""

from __future__ import annotations

import gc
import logging
import os
import select
import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from setproctitle import setproctitle

from semipd_engine.cards.errors import ModelError
from semipd_engine.contract import EngineOptions
from semipd_engine.ipc.frames import BlockingChannel, ChannelClosed, FrameError
from semipd_engine.ipc.workers import (
    RESIDENT_SOCKET,
    CoreToResident,
    ResidentFailed,
    ResidentHello,
    ResidentLoading,
    Spawned,
    SpawnFailed,
    SpawnWorker,
    WorkerEnded,
)
from semipd_engine.memory.kv_size import num_kv_blocks
from semipd_engine.pacing.page import PacingPage
from semipd_engine.process import TRY_LATER, listen
from semipd_engine.resident.loaded_model import Load, LoadedModel
from semipd_engine.resident.spawn import start_worker
from semipd_engine.resident.zygote import Zygote

RETRY_AFTER_SECONDS = 5.0
"""How long a failure that may pass by itself is shown before the process ends. Any other waits for the model's folder
to change: what can never load is not tried for ever."""
LEAVE_GPU_SECONDS = 3.0
"""For a worker whose core is gone. One that is killed with work in flight may take MPS, and so its peers, with it: what
does not leave in this time is left to the agent, which has MPS end it, for as long as its order says."""
OF_FILES = frozenset({"NotFound", "NotReadable", "InvalidCheckpoint", "MissingTensors", "ShapeMismatch"})
"""Reasons for which a look at the whole folder says more than the first read that failed."""

log = logging.getLogger("resident")


class Resident:
    def __init__(self, options: EngineOptions, run_dir: Path) -> None:
        self._options = options
        self._listener = listen(run_dir / RESIDENT_SOCKET)
        self._core: BlockingChannel[CoreToResident] | None = None
        self._workers: dict[int, int] = {}  # pidfd -> pid
        self._terminate_seconds = 0.0  # of the latest order; all rungs have the same
        self._zygote = Zygote()
        self._percent = 0
        self._failure: ResidentFailed | None = None
        self._may_pass = False
        self._hello: ResidentHello | None = None

    def serve(self, load: Load) -> int:
        """Load, then answer core for ever. Returns an exit code when another start may help: `TRY_LATER`, or 0 where
        the model's folder has changed."""
        folder = _listing(self._options.model)
        try:
            self._prepare(load(self._options, self._on_progress))
        except ModelError as error:
            self._failure = ResidentFailed(reason=error.reason, message=self._words(error))
            self._may_pass = error.may_pass
        except Exception as error:
            log.exception("loading failed")
            self._failure = ResidentFailed(reason="LoadFailed", message=f"{type(error).__name__}: {error}")
        if self._failure is not None:
            log.error("%s: %s", self._failure.reason, self._failure.message)
        self._introduce()
        give_up_at = time.monotonic() + RETRY_AFTER_SECONDS
        while True:
            if self._failure is not None and self._may_pass and time.monotonic() > give_up_at:
                return TRY_LATER
            if self._failure is not None and not self._may_pass and _listing(self._options.model) != folder:
                return 0
            self._poll(timeout=1.0)
            self._zygote.bury_strangers(self._workers.values())

    def _words(self, error: ModelError) -> str:
        """Those of ``semipd-engine check``, where files are at fault and it refuses the folder, too."""
        if error.may_pass or error.reason not in OF_FILES:
            return str(error)
        from semipd_engine.hub.check import weights_refusal  # a tokenizer's library is loaded in this one case only

        return weights_refusal(self._options.model) or str(error)

    def close(self) -> None:
        self._drop_core()
        self._zygote.close()
        self._listener.close()

    # ---- loading -------------------------------------------------------------------------------------------------

    def _prepare(self, model: LoadedModel) -> None:
        options = self._options
        grant = model.kv_grant()
        num_blocks = num_kv_blocks(
            model.kv_layout, model.max_model_len, options.max_num_seqs, options.kv_cache_memory, grant
        )
        self._model = model
        self._kv_fd = model.create_kv(num_blocks)
        self._page = PacingPage.create()
        self._hello = ResidentHello(
            pid=os.getpid(),
            num_blocks=num_blocks,
            block_size=model.kv_layout.block_size,
            kv_bytes=model.kv_layout.pool_bytes(num_blocks),
            weight_bytes=model.weight_bytes,
            architecture=model.architecture,
            dtype=model.dtype,
            kernels=model.kernels,
            kernels_shortfall=model.kernels_shortfall,
            device=model.device,
            max_model_len=model.max_model_len,
            vocab_size=model.vocab_size,
            kv_descriptor=self._kv_fd >= 0,
            sm_count=model.sm_count(),
        )
        log.info(
            "%s, %s, %s: weights %.0f MiB, KV pool %d blocks of %d tokens, %.0f MiB (before it %s)",
            *(model.architecture, model.dtype, model.device, model.weight_bytes / 2**20),
            *(num_blocks, model.kv_layout.block_size, self._hello.kv_bytes / 2**20, grant),
        )
        gc.collect()
        gc.freeze()  # the collector of a forked worker shall not touch, and so copy, what it inherits

    def _on_progress(self, percent: int) -> None:
        self._percent = percent
        self._poll(timeout=0)
        self._tell(ResidentLoading(percent))

    # ---- core ----------------------------------------------------------------------------------------------------

    def _poll(self, timeout: float) -> None:
        """Handle what has happened, waiting at most `timeout` seconds for it."""
        poll = select.poll()
        handlers: dict[int, Callable[[], None]] = {self._listener.fileno(): self._accept}
        if self._core is not None:
            handlers[self._core.fileno()] = self._serve_core
        for pidfd in self._workers:
            handlers[pidfd] = lambda pidfd=pidfd: self._reap(pidfd)  # type: ignore[misc]
        for descriptor in handlers:
            poll.register(descriptor, select.POLLIN)
        for descriptor, _ in poll.poll(timeout * 1000):
            core = self._core.fileno() if self._core is not None else -1
            if descriptor in (self._listener.fileno(), core, *self._workers):  # still, after what came before it
                handlers[descriptor]()

    def _accept(self) -> None:
        """A new core. The old one and its workers are gone before the new one hears a word."""
        sock, _ = self._listener.accept()
        self._drop_core()
        self._core = BlockingChannel(sock, CoreToResident)
        self._introduce()

    def _introduce(self) -> None:
        if self._hello is not None:
            self._tell(self._hello, fds=(self._page.fd, *([self._kv_fd] if self._kv_fd >= 0 else [])))
        else:
            self._tell(self._failure or ResidentLoading(self._percent))

    def _tell(
        self, message: ResidentHello | ResidentFailed | ResidentLoading | WorkerEnded, fds: tuple[int, ...] = ()
    ) -> None:
        if self._core is not None:
            try:
                self._core.send(message, fds)
            except ChannelClosed:
                self._drop_core()

    def _serve_core(self) -> None:
        assert self._core is not None
        try:
            request = self._core.recv(timeout=0)
            while request is not None:
                self._spawn(self._core, request)
                request = self._core.recv(timeout=0)
        except (ChannelClosed, FrameError):
            self._drop_core()

    def _drop_core(self) -> None:
        if self._core is not None:
            self._core.close()
            self._core = None
        self._reap_all()

    # ---- workers -------------------------------------------------------------------------------------------------

    def _spawn(self, core: BlockingChannel[CoreToResident], order: SpawnWorker) -> None:
        """Start a worker; core gets its channel and its pidfd."""

        def close_inherited() -> None:
            core.close()
            self._listener.close()
            for pidfd in self._workers:
                os.close(pidfd)

        try:
            pid, channel = start_worker(order, self._model, self._page, close_inherited, self._zygote)
        except OSError as error:
            log.error("no %s worker could be started: %s", order.phase, error)
            core.send(SpawnFailed(order.phase, order.generation, str(error)))
            return
        pidfd = os.pidfd_open(pid)
        self._workers[pidfd] = pid
        self._terminate_seconds = order.terminate_seconds
        core.send(Spawned(phase=order.phase, generation=order.generation, pid=pid), fds=(channel.fileno(), pidfd))
        channel.close()

    def _reap(self, pidfd: int) -> None:
        pid = self._workers.pop(pidfd)
        _, status = os.waitpid(pid, 0)
        os.close(pidfd)
        code = os.waitstatus_to_exitcode(status)
        log.info("worker %d ended with %d", pid, code)
        self._tell(WorkerEnded(pid, code))

    def _reap_all(self) -> None:
        """Workers that wait for a core that is gone. Those on a GPU get time to leave it by themselves, and then time
        in which the agent, which sees that core is gone, has MPS end those that do not."""
        if self._hello is not None and not self._hello.kv_descriptor:
            deadline = time.monotonic() + LEAVE_GPU_SECONDS + self._terminate_seconds
            while self._workers and (left := deadline - time.monotonic()) > 0:
                poll = select.poll()
                for pidfd in self._workers:
                    poll.register(pidfd, select.POLLIN)
                for pidfd, _ in poll.poll(left * 1000):
                    self._reap(pidfd)
        for pidfd in self._workers:
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        for pidfd in list(self._workers):
            self._reap(pidfd)


def _listing(folder: Path) -> list[tuple[str, int, int]]:
    """Name, size and time of the folder and of each file in it, as far as they are seen. The time is ctime's: chmod and
    chown move that alone, and a file that is put in place with an old time moves it, too."""
    try:
        paths = [folder, *folder.iterdir()]
    except OSError:
        paths = [folder]
    found = []
    for path in paths:
        with suppress(OSError):
            status = path.stat()
            found.append((path.name, status.st_size, status.st_ctime_ns))
    return sorted(found)


def run(options: EngineOptions, load: Load) -> int:
    """The process: until SIGTERM, or an exit code."""
    if options.run_dir is None:
        raise ValueError("--run-dir is missing: the launcher sets it")
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    setproctitle("semipd: resident")
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    resident = Resident(options, options.run_dir)
    try:
        return resident.serve(load)
    finally:
        resident.close()
