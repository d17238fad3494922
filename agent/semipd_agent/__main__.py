"""``semipd-agent``: the agent's command line and wiring. PID 1 of a serving pod; a plain child under ``semipd run``.

``semipd-agent doctor`` checks the machine instead (`semipd_agent.doctor`).
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging
import os
import shutil
import signal
import socket
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

try:
    import uvicorn
except ModuleNotFoundError as missing:
    raise SystemExit(
        f"semipd-agent: {missing.name} is not in this image: take the engine's (spec.engine.image)"
    ) from None
from prometheus_client import CollectorRegistry

from semipd_agent.agent import Agent, load
from semipd_agent.api import create_app
from semipd_agent.api_probe import HUNG_SECONDS, ApiProbe
from semipd_agent.clock import SystemClock
from semipd_agent.config import ConfigFileError, ConfigRefused
from semipd_agent.contract import AGENT_PORT, Identity, Mode
from semipd_agent.control import SplitController
from semipd_agent.device import resolve_device
from semipd_agent.engine_client import EngineClient
from semipd_agent.gpu.metrics import GpuCollector
from semipd_agent.gpu.watch import Gpu
from semipd_agent.memory_limit import MemoryLimit
from semipd_agent.metrics import ReportCollector
from semipd_agent.partitioner import Partitioner, select
from semipd_agent.partitioner.mps import green
from semipd_agent.partitioner.mps.preflight import default_base
from semipd_agent.partitioner.mps.programs import Programs
from semipd_agent.reaper import Reaper, become_subreaper
from semipd_agent.slo.profiles import Profiles, folders
from semipd_agent.supervisor import Supervisor
from semipd_engine.contract import Device, EngineOptions, ProfileError, processor
from semipd_engine.cpu_grant import granted

BACKENDS = ("mps", "mps-green")

log = logging.getLogger("semipd_agent")


class BackendRefused(Exception):
    def __init__(self, found: str) -> None:
        flag = f"--partition-backend ({green.VARIABLE})"
        super().__init__(f"{flag}: mps-green is for two phases on an NVIDIA GPU, and here is {found}: leave it out")


@dataclass(frozen=True)
class EngineFlags:
    """What the agent itself must know of the engine's flags; all of them are passed on as they are."""

    device: Device
    unified: bool
    threads: int
    drain_seconds: float
    run_dir: Path | None
    host: str
    api_key_file: Path | None


def parse_engine_flags(flags: Sequence[str]) -> EngineFlags:
    defaults = EngineOptions.model_fields
    parser = argparse.ArgumentParser(prog="semipd-agent -- ", add_help=False, allow_abbrev=False)
    parser.add_argument("--device", type=Device, default=Device.AUTO)
    parser.add_argument("--unified", action=argparse.BooleanOptionalAction, default=False)
    parser.add_argument("--threads", type=int, default=int(defaults["threads"].default))
    parser.add_argument("--drain-seconds", type=float, default=float(defaults["drain_seconds"].default))
    parser.add_argument("--run-dir", type=Path, default=None)
    parser.add_argument("--host", default=str(defaults["host"].default))
    parser.add_argument("--api-key-file", type=Path, default=None)
    known, _ = parser.parse_known_args(list(flags))
    return EngineFlags(**vars(known))


def parse_arguments(arguments: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """The agent's own options, and the engine's flags after ``--``."""
    own, flags = list(arguments), []
    if "--" in own:
        at = own.index("--")
        own, flags = own[:at], own[at + 1 :]
    parser = argparse.ArgumentParser(
        prog="semipd-agent",
        description="Runs the engine, keeps its split and answers for it.",
        epilog="Everything after -- goes to `semipd-engine serve`.",
    )
    parser.add_argument("--config", type=Path, default=None, help="mounted AgentFile (JSON), reread when it changes")
    parser.add_argument("--host", default="::", help="address of the control API; :: is IPv4, too")
    parser.add_argument("--port", type=int, default=AGENT_PORT, help="port of the control API; 0 takes a free one")
    parser.add_argument("--port-file", type=Path, default=None, help="file to write the open port to")
    parser.add_argument("--mps-dir", type=Path, default=None, help="where MPS daemons have their directories (short)")
    parser.add_argument(
        "--partition-backend",
        type=_backend,
        default=os.environ.get(green.VARIABLE, "mps"),
        metavar="{" + ",".join(BACKENDS) + "}",
        help="how a GPU holds the shares: mps (a worker for each rung), or mps-green (a stream of one worker for each: "
        f"not executed on a GPU yet); default: {green.VARIABLE}, else mps",
    )
    parser.add_argument("--mps-probe", nargs=1, default=None, help="program that takes the place of the probe client")
    parser.add_argument(
        "--api-hung-seconds", type=float, default=HUNG_SECONDS, help="silence after which a hung api process is killed"
    )
    parser.add_argument(
        "--step-profile",
        type=Path,
        default=None,
        metavar="FILE",
        help="step times of this model on this machine, by `semipd-engine profile`; default: one that fits in "
        f"{' or '.join(map(str, folders()))}, else assumed ones",
    )
    parser.add_argument("--engine-command", nargs=1, default=None, help="program that takes the place of semipd-engine")
    parser.add_argument("--log-level", default="info", choices=["debug", "info", "warning", "error"])
    return parser.parse_args(own), flags


def _backend(name: str) -> str:
    if name not in BACKENDS:
        said = f"{name!r} is none ({green.VARIABLE} is its default): {' or '.join(BACKENDS)}"
        raise argparse.ArgumentTypeError(said)
    return name


def identity_from_environment() -> Identity:
    """Set by the downward API; empty under ``semipd run``."""
    env = os.environ.get
    return Identity(
        namespace=env("POD_NAMESPACE", ""),
        service=env("SEMIPD_SERVICE", ""),
        pod=env("POD_NAME", ""),
        pod_uid=env("POD_UID", ""),
        node=env("NODE_NAME", ""),
    )


def engine_program() -> str:
    """``semipd-engine`` of our own installation, else of the PATH."""
    beside = Path(sys.executable).with_name("semipd-engine")
    return str(beside) if beside.exists() else shutil.which("semipd-engine") or "semipd-engine"


class AddressRefused(Exception):
    """Nobody can listen there."""


class _Server(uvicorn.Server):
    """uvicorn without signal handlers: PID 1's signals are the agent's."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


async def serve(options: argparse.Namespace, flags: list[str]) -> None:
    clock = SystemClock()
    config_file, start = load(options.config)
    engine = parse_engine_flags(flags)
    device = resolve_device(engine.device)
    identity = identity_from_environment()
    grant = granted(identity.pod_uid)
    log.info("device %s, CPUs %s, quota %s", device, ",".join(map(str, grant.cpus)), grant.quota or "none")
    profiles = Profiles.read(options.step_profile, folders(), grant, processor())
    reaper = Reaper()
    programs = Programs.find(probe=options.mps_probe)
    asks_green = options.partition_backend == "mps-green"
    if asks_green and (device is not Device.CUDA or engine.unified):
        raise BackendRefused("one process for both phases" if engine.unified else f"device {device}")
    gpu = Gpu(device, programs, options.mps_dir or default_base(), reaper, clock, green=asks_green)

    def partitioner_for(mode: Mode) -> Partitioner:
        return select(device, mode, grant, unified=engine.unified, threads=engine.threads, mps=gpu.mps)

    with contextlib.ExitStack() as stack:
        run_dir = engine.run_dir
        if run_dir is None:
            run_dir = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="semipd-")))
            flags = [*flags, "--run-dir", str(run_dir)]
        if device is Device.CUDA and not engine.unified:
            flags = [*flags, "--await-partition"]  # no worker before it has its MPS environment
        program = options.engine_command[0] if options.engine_command else engine_program()
        agent = Agent(
            controller=SplitController(partitioner_for, start.config, clock, profiles),
            client=EngineClient(run_dir),
            # The engine's first split, before ours reaches it, is made for the CPUs that it starts on: the mask alone
            # would give it all of the node's, whatever the quota is.
            supervisor=Supervisor(
                [program, "serve", *flags], reaper, clock, cpus=grant.cpus if device is Device.CPU else ()
            ),
            reaper=reaper,
            config_file=config_file,
            tokens=start.token_sha256,
            identity=identity,
            clock=clock,
            drain_seconds=engine.drain_seconds,
            api=ApiProbe(run_dir, engine.host, clock, options.api_hung_seconds),
            memory=MemoryLimit(),
            api_key_file=engine.api_key_file,
        )
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGCHLD, reaper.reap)
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, agent.terminate)
        gpu.start(loop)
        await _serve_api(agent, gpu, options)


def listen(host: str, port: int) -> socket.socket:
    """``::`` takes both families, and IPv4 alone where the kernel has no IPv6. Raises OSError."""
    if host == "::" and not socket.has_dualstack_ipv6():
        host = "0.0.0.0"
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    return socket.create_server((host, port), family=family, backlog=128, dualstack_ipv6=host == "::")


async def _serve_api(agent: Agent, gpu: Gpu, options: argparse.Namespace) -> None:
    registry = CollectorRegistry()
    registry.register(ReportCollector(agent.report, lambda: agent.controller.log.counts))
    registry.register(GpuCollector(gpu.sampler, gpu.mps))
    try:
        listener = listen(options.host, options.port)
    except (OSError, OverflowError) as error:
        raise AddressRefused(
            f"cannot listen on {options.host}:{options.port} ({error}): use --port or --host"
        ) from None
    port = listener.getsockname()[1]
    if options.port_file:
        options.port_file.write_text(f"{port}\n")
    log.info("control API on port %d of %s", port, options.host)
    server = _Server(uvicorn.Config(create_app(agent, registry), log_level="warning", access_log=False))
    api = asyncio.create_task(server.serve(sockets=[listener]), name="api")
    try:
        await agent.run()  # the API answers until the engine has drained
    finally:
        server.should_exit = True
        await api


def main() -> None:
    if sys.argv[1:2] == ["doctor"]:
        from semipd_agent.doctor.command import doctor  # a short run: it needs no server

        sys.exit(doctor(sys.argv[2:]))
    options, flags = parse_arguments(sys.argv[1:])
    logging.basicConfig(level=options.log_level.upper(), format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    become_subreaper()
    try:
        asyncio.run(serve(options, flags))
    except (AddressRefused, BackendRefused, ConfigFileError, ConfigRefused, ProfileError) as e:
        sys.exit(f"semipd-agent: {e}")


if __name__ == "__main__":
    main()
