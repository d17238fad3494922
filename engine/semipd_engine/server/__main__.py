"""``python -m semipd_engine.server``: the api process. Life cycle only: port, signals, drain, exit.

SIGTERM drains: `/ready` fails at once, requests are admitted for 5 s more, running ones finish, and the process exits 0
at the latest after --drain-seconds. A second SIGINT exits at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import uvicorn
from setproctitle import setproctitle
from starlette.types import ASGIApp

from semipd_engine.cards.model_card import ModelCardError
from semipd_engine.cards.tokenizer import TokenizerError
from semipd_engine.contract import EngineOptions
from semipd_engine.process import bind, die_with_parent
from semipd_engine.server.admission import ENDPOINT_LAG_SECONDS
from semipd_engine.server.app import create_app
from semipd_engine.server.connections import answering, bounded
from semipd_engine.server.errors import unavailable
from semipd_engine.server.service import Service
from semipd_engine.server.slow_clients import patient

PORT_FILE = "api.port"
"""File in the run directory with the bound port, written once the socket listens."""
FLUSH_SECONDS = 2
"""Time for the last answers to reach their clients after the drain."""

log = logging.getLogger(__name__)


class Server(uvicorn.Server):
    """uvicorn without its signal handlers: this module owns the signals."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def main() -> int:
    options = EngineOptions.parse(None, "python -m semipd_engine.server", "The OpenAI API of a running engine core.")
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s api: %(message)s", stream=sys.stderr)
    setproctitle("semipd: api")
    die_with_parent(os.getppid())
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the phases need the CPUs more
    try:
        service = Service(options)
    except (ModelCardError, TokenizerError, ValueError) as error:
        log.error("%s", error)
        return 2
    try:
        listener = bind(options.host, options.port)
    except OSError as error:
        log.error("--host %s --port %d: %s", options.host, options.port, error)
        return 1
    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        runner.run(serve(service, options, listener))
    return 0


def loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """uvloop's, where it is installed; None: asyncio's own."""
    try:
        import uvloop
    except ImportError:
        return None
    return uvloop.new_event_loop  # type: ignore[no-any-return,unused-ignore]


def http_protocol() -> type[asyncio.Protocol]:
    """uvicorn's protocol over httptools, where that is installed, else over h11; with what `connections` adds."""
    try:
        from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
    except ImportError:
        from uvicorn.protocols.http.h11_impl import H11Protocol

        return patient(answering(H11Protocol))
    return patient(bounded(answering(HttpToolsProtocol)))


def configuration(app: ASGIApp) -> uvicorn.Config:
    """A client's address is the one in `X-Forwarded-For`, from a trusted proxy: one on this machine, or of those that
    uvicorn's FORWARDED_ALLOW_IPS names."""
    return uvicorn.Config(
        app,
        http=http_protocol(),
        log_config=None,
        access_log=False,
        lifespan="off",
        ws="none",
        proxy_headers=True,
        server_header=False,
        timeout_keep_alive=75,
        timeout_graceful_shutdown=FLUSH_SECONDS,
    )


async def serve(service: Service, options: EngineOptions, listener: socket.socket) -> None:
    """Serve until a signal has drained the process."""
    server = Server(configuration(create_app(service, options)))
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()

    def on_interrupt() -> None:
        if stop.is_set():
            os._exit(130)
        stop.set()

    loop.add_signal_handler(signal.SIGTERM, stop.set)
    loop.add_signal_handler(signal.SIGINT, on_interrupt)
    assert options.run_dir is not None
    port = listener.getsockname()[1]
    _write_port(options.run_dir / PORT_FILE, port)
    log.info("serving %s on port %d of %s", service.card.name, port, options.host)
    gc.freeze()  # what is loaded now stays: the collector need not walk it between two tokens
    tasks = [
        asyncio.create_task(service.run(), name="core"),
        asyncio.create_task(server.serve(sockets=[listener]), name="http"),
        asyncio.create_task(_drain(service, server, options, stop), name="drain"),
    ]
    done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    server.should_exit = True
    await asyncio.wait({tasks[1]})
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)  # the process for grammars is gone before this one is
    service.close()
    for task in done:
        task.result()  # raises what ended the process early


async def _drain(service: Service, server: Server, options: EngineOptions, stop: asyncio.Event) -> None:
    """Return when a signal came and its grace is used up, or nothing is left to wait for.

    A connection ends with its next answer (`RequestIds`); one that has none to give by the time at which requests are
    refused ends then, so that its client opens one to another replica instead of being refused.
    """
    await stop.wait()
    log.info("draining: %d requests in flight", len(service.generations.open))
    service.admission.start_drain()
    started, told = time.monotonic(), False
    while (passed := time.monotonic() - started) < options.drain_seconds:
        if passed >= ENDPOINT_LAG_SECONDS:
            if not service.generations.open:
                return
            if not told:
                told = True
                for connection in list(server.server_state.connections):
                    connection.shutdown()
        await asyncio.sleep(0.05)
    if service.generations.open:
        log.warning("%d requests did not finish within --drain-seconds %g", len(service.generations.open), passed)
    service.generations.fail_all(unavailable("the server shut down before the request finished", "draining"))


def _write_port(path: Path, port: int) -> None:
    """A reader sees the whole number or no file."""
    temporary = path.with_suffix(".tmp")
    temporary.write_text(f"{port}\n")
    temporary.replace(path)


if __name__ == "__main__":
    sys.exit(main())
