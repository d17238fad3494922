"""A service without Kubernetes: the same manifest, agent, engine and status, in the foreground.

It takes the place of the operator: it pushes configuration when the manifest changes, and summarises what the agent
reports. The kubelet's is taken by `agent_process`. Resources are not enforced.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import signal
import socket
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from semipd_agent.contract import CONFIG_FILE, AgentConfig, AgentFile, EnginePhase, PartitionReason, token_digest
from semipd_cli import preflight
from semipd_cli.agent_process import catch_signals, port_of, start_agent
from semipd_cli.manifest import Manifest, ManifestError, load_one
from semipd_cli.preflight import RunError
from semipd_cli.status_view import status_line, write_status
from semipd_operator.agents import AgentClient, AgentError
from semipd_operator.api.v1alpha1.resource import SemiPDService
from semipd_operator.api.v1alpha1.status import SemiPDServiceStatus
from semipd_operator.render import engine
from semipd_operator.render.configmap import agent_config
from semipd_operator.render.pod import served_name
from semipd_operator.render.rolling import Record
from semipd_operator.status import AgentView, Observed, PodView, summarise
from semipd_operator.status.events import events
from semipd_operator.status.summarise import write_due

_PERIOD_SECONDS = 1.0
_SLO_PERIOD = timedelta(seconds=5)
_RESTART_ALONE = frozenset({PartitionReason.NO_GPU, PartitionReason.USER_MISMATCH})
"""Refusals of the partitioner that only another start can mend. Others may pass, or go with another partition.mode."""
_NO_UID = ""
"""The agent has a uid only in a pod."""


@dataclass(frozen=True)
class RunOptions:
    manifest: Path
    settings: tuple[str, ...] = ()
    host: str = "127.0.0.1"
    port: int | None = None
    """Of the OpenAI API; None: spec.service.port."""
    claims: Path = Path()
    """Stands for the namespace's claims: pvc://CLAIM/FOLDER is this folder's CLAIM/FOLDER."""
    agent_port: int = 0
    status_file: Path | None = None
    api_key_file: Path | None = None
    """In the place of spec.service.apiKeySecretRef."""
    log_file: Path | None = None
    """For the output of agent and engine; None: the terminal."""
    token_file: Path | None = None
    """Where the agent's token is told, for its control API; None: nobody else needs it."""


class Embedded:
    def __init__(self, options: RunOptions, say: Callable[[str], None]) -> None:
        self._options, self._say = options, say
        self._source = load_one(options.manifest)
        self._stamp = _stamp(options.manifest)
        self._service = self._parse(self._source, generation=1)
        self._port = options.port if options.port is not None else self._service.spec.service.port
        self._token = secrets.token_hex(32)
        self._view = AgentView()
        self._status = SemiPDServiceStatus()
        self._last_write: datetime | None = None
        self._unwritten = False
        """The status file is older than the status."""
        self._stopping: signal.Signals | None = None
        """What asked us to end."""
        self._served = False
        """The engine was ready once."""
        self._refusal = ""
        """Why no engine can serve the model: the end of the run."""
        self._faults: dict[str, str] = {}
        """What fails at present, by part: said once, and tried again."""

    async def run(self) -> int:
        """Until the agent ends; its exit status. Ctrl-C and SIGTERM drain, a second one kills.

        0 after a service that was asked to end; 128 and the signal's number where it was never ready.
        """
        with tempfile.TemporaryDirectory(prefix="semipd-run-") as name:
            folder = Path(name)
            if self._service.spec.engine.device == "cuda":
                await preflight.check_gpu()
            model = self._service.spec.model
            directory = await preflight.model_directory(model.uri, model.revision, self._options.claims)
            await preflight.check_model(directory)
            preflight.check_address(self._options.host, self._port)
            preflight.check_address("127.0.0.1", self._options.agent_port, "--agent-port")
            preflight.check_outputs(self._options.status_file, self._options.log_file)
            if self._options.token_file:
                preflight.write_secret(self._options.token_file, self._token)
            self._write_config(folder)
            child = await self._start(folder, directory)
            catch_signals(child, self._say, self._asked_to_end)
            watching = asyncio.create_task(self._watch(folder, child))
            try:
                code = await child.wait()
            finally:
                watching.cancel()
                await asyncio.gather(watching, return_exceptions=True)
        if self._refusal:
            raise RunError(self._refusal)
        if self._stopping:
            return 0 if self._served else 128 + self._stopping
        if code:
            raise RunError(f"semipd-agent ended with exit status {code}: its last lines say why")
        return code

    def _parse(self, source: Manifest, generation: int) -> SemiPDService:
        service = source.service(self._options.settings, namespace="local", generation=generation)
        if service.spec.replicas != 1:
            raise ManifestError(f"{source.path}: spec.replicas must be 1 without Kubernetes: use --set replicas=1")
        if service.spec.service.api_key_secret_ref and self._options.api_key_file is None:
            # Never open where a key is wanted.
            message = "names a Secret, and there is none without Kubernetes: use --api-key-file FILE"
            raise ManifestError(f"{source.path}: spec.service.apiKeySecretRef {message}")
        return service

    def _write_config(self, folder: Path) -> None:
        content = AgentFile(token_sha256=(token_digest(self._token),), config=self._config())
        fresh = folder / "fresh.json"
        fresh.write_text(content.model_dump_json(by_alias=True, exclude_none=True))
        fresh.replace(folder / CONFIG_FILE)

    def _config(self) -> AgentConfig:
        return agent_config(self._service)

    async def _start(self, folder: Path, directory: str) -> asyncio.subprocess.Process:
        """The agent, with the engine's options that a pod has."""
        name, asked = served_name(self._service), self._options
        options = engine.options(
            self._service.spec.engine,
            name,
            model=directory,
            host=asked.host,
            port=self._port,
            run_dir=None,
            api_key_file=asked.api_key_file and asked.api_key_file.absolute(),
        )
        self._say(f"starting {name} from {directory} on http://{asked.host}:{self._port}")
        return await start_agent(folder, asked.agent_port, options.arguments(), asked.log_file)

    def _asked_to_end(self, number: signal.Signals) -> None:
        self._stopping = self._stopping or number

    async def _watch(self, folder: Path, child: asyncio.subprocess.Process) -> None:
        """Until the model is refused for good. What fails in one turn is said, and tried again in the next."""
        client: AgentClient | None = None
        try:
            while True:
                with self._contained("the manifest cannot be put in force"):
                    self._reread(folder)
                if client is None and (port := port_of(folder)):
                    client = AgentClient(port, timeout_seconds=2.0)
                if client is not None:
                    with self._contained("the agent cannot be asked"):
                        await self._look(client)
                self._refusal = _lasting(self._view)
                with self._contained("the status cannot be shown"):
                    self._show()
                with self._contained("--status-file cannot be written"):
                    self._write_status()
                if self._refusal:
                    with contextlib.suppress(ProcessLookupError):
                        child.send_signal(signal.SIGTERM)
                    return
                await asyncio.sleep(_PERIOD_SECONDS)
        finally:
            if client is not None:
                await client.close()

    @contextlib.contextmanager
    def _contained(self, part: str) -> Iterator[None]:
        """The engine serves on, and is watched on, whatever goes wrong here: a full disk, a reader that has left."""
        try:
            yield
        except Exception as error:
            problem = f"{part} ({type(error).__name__}: {error}); it is tried again"
            if self._faults.get(part) != problem:
                self._faults[part] = problem
                with contextlib.suppress(Exception):
                    self._say(problem)
        else:
            self._faults.pop(part, None)

    async def _look(self, client: AgentClient) -> None:
        config = None if self._service.spec.paused else self._config()
        try:
            report = await client.look("127.0.0.1", _NO_UID, (self._token,), config)
        except AgentError as error:
            self._view = self._view.failed(str(error))
        else:
            self._view = self._view.heard(report, datetime.now(UTC))
            self._served = self._served or report.engine.served

    def _reread(self, folder: Path) -> None:
        """The manifest is watched: what changes in place is pushed, as `kubectl apply` would have it."""
        stamp = _stamp(self._options.manifest)
        if stamp == self._stamp:
            return
        try:
            changed = self._parse(load_one(self._options.manifest), self._service.metadata.generation + 1)
        except ManifestError as error:
            self._stamp = stamp
            self._say(str(error))
            return
        if changed.spec != self._service.spec:
            if Record.of(changed).values != Record.of(self._service).values:
                self._say("model, engine or podTemplate changed: start `semipd run` again to put that in force")
            self._service = changed
        self._write_config(folder)
        self._stamp = stamp

    def _observed(self) -> Observed:
        report = self._view.report
        ready = bool(report and report.engine.ready and not self._stopping)
        name = f"{self._service.metadata.name}-local"
        pod = PodView(name=name, uid=_NO_UID, node=socket.gethostname(), ready=ready, started=True)
        return Observed(
            service=self._service,
            now=datetime.now(UTC),
            pods=(pod,),
            agents={_NO_UID: self._view},
            url=f"http://{self._options.host}:{self._port}",
            previous=self._status,
        )

    def _show(self) -> None:
        now, before = datetime.now(UTC), self._status
        status = summarise(self._observed())
        if not write_due(before, status, now=now, last_write=self._last_write, slo_period=_SLO_PERIOD):
            return
        self._status, self._last_write, self._unwritten = status, now, True
        if self._refusal:
            return  # the last line says it
        if (line := status_line(status)) != status_line(before):
            self._say(line)
        for event in events(before, status):
            self._say(f"{event.type} {event.reason}: {event.message}")

    def _write_status(self) -> None:
        if self._options.status_file and self._unwritten:
            write_status(self._options.status_file, self._service, self._status)
            self._unwritten = False


def _lasting(view: AgentView) -> str:
    """Why the engine will never serve; empty while it may. A bad model stays as it is, and no GPU comes; MPS may."""
    report = view.report
    if report is None or report.engine.state is not EnginePhase.FAILED:
        return ""
    if report.engine.reason in set(PartitionReason) - _RESTART_ALONE:
        return ""
    return f"the model cannot be served: {report.engine.reason}: {report.engine.message}"


def _stamp(path: Path) -> tuple[int, int]:
    try:
        stat = path.stat()
    except OSError:
        return (0, 0)  # an editor replaces the file; the next look finds it
    return (stat.st_mtime_ns, stat.st_ino)
