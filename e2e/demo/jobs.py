"""Long steps that run side by side in the background, each with a log of its own and one line of progress.

A job may need others; it starts when they are done. All of them can be suspended for the moments in which something
is timed. Knows nothing of what the steps do.
"""

from __future__ import annotations

import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

import psutil
from rich.console import Console
from rich.live import Live
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from e2e.demo.outcome import DemoError, clock
from e2e.lib.process import tail


class State(StrEnum):
    WAITING = "waiting"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"


@dataclass
class Job:
    name: str
    command: Sequence[str]
    log: Path
    cwd: Path
    needs: tuple[str, ...] = ()
    nice: int = 10
    state: State = State.WAITING
    seconds: float = 0.0
    process: subprocess.Popen[bytes] | None = None
    finished: threading.Event = field(default_factory=threading.Event)

    def last_line(self) -> str:
        """The newest line of the log: what the step says that it is doing."""
        with suppress(OSError), self.log.open("rb") as file:
            file.seek(max(0, self.log.stat().st_size - 2_000))
            lines = file.read().decode(errors="replace").replace("\r", "\n").strip().splitlines()
            return lines[-1].strip() if lines else ""
        return ""


class Jobs:
    """The jobs by name, started as soon as what they need is done."""

    def __init__(self, jobs: Sequence[Job], console: Console) -> None:
        self.jobs = {job.name: job for job in jobs}
        if unknown := {need for job in jobs for need in job.needs} - set(self.jobs):
            raise ValueError(f"no such job: {', '.join(sorted(unknown))}")
        self.console = console
        self._lock = threading.Lock()
        self._stopped = False
        self._awake = threading.Event()
        self._awake.set()

    def start(self) -> None:
        for job in self.jobs.values():
            threading.Thread(target=self._run, args=(job,), name=job.name, daemon=True).start()

    def _run(self, job: Job) -> None:
        for need in job.needs:
            self.jobs[need].finished.wait()
        if self._stopped or any(self.jobs[need].state is State.FAILED for need in job.needs):
            job.state = State.FAILED
            job.finished.set()
            return
        self._awake.wait()
        job.log.parent.mkdir(parents=True, exist_ok=True)
        began = time.monotonic()
        with job.log.open("wb") as output:
            with self._lock:
                job.process = subprocess.Popen(
                    ["nice", "-n", str(job.nice), *job.command],
                    cwd=job.cwd,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
            job.state = State.RUNNING
            while job.process.poll() is None:
                job.seconds = time.monotonic() - began
                time.sleep(0.2)
        job.state = State.DONE if job.process.returncode == 0 else State.FAILED
        job.seconds = time.monotonic() - began
        if not self._stopped:
            mark = "[green]✓[/]" if job.state is State.DONE else "[red]✗[/]"
            self.console.print(f"{mark} [dim]{job.name} {job.state} in {clock(job.seconds)}[/]")
        job.finished.set()

    def wait(self, *names: str) -> None:
        """Until the named jobs (default: all) are done, with live lines. Raises DemoError if one failed."""
        wanted = [self.jobs[name] for name in names or self.jobs]
        if self.console.is_terminal:
            with Live(self._table(wanted), console=self.console, refresh_per_second=4, transient=True) as live:
                while not all(job.finished.wait(0.25) for job in wanted):
                    live.update(self._table(wanted))
        else:
            spoken = time.monotonic()
            while not all(job.finished.wait(0.25) for job in wanted):
                if time.monotonic() - spoken > 30:
                    spoken = time.monotonic()
                    for job in (job for job in wanted if job.state is State.RUNNING):
                        line = f"  … {job.name} {clock(job.seconds)}: {job.last_line()[:90]}"
                        self.console.print(line, markup=False)
        for job in wanted:
            if job.state is State.FAILED:
                raise DemoError(self.blame(job))

    def blame(self, job: Job) -> str:
        """Why a job failed: the end of its log, or of the one that it needed."""
        for need in job.needs:
            if self.jobs[need].state is State.FAILED:
                return self.blame(self.jobs[need])
        return f"{job.name} failed; the end of {job.log}:\n{tail(job.log)}"

    def _table(self, jobs: Sequence[Job]) -> Table:
        table = Table.grid(padding=(0, 1))
        for job in jobs:
            name = Text(job.name)
            match job.state:
                case State.RUNNING:
                    said = Text(job.last_line()[:80], style="dim")
                    table.add_row(Spinner("dots"), name, clock(job.seconds), said)
                case State.WAITING:
                    table.add_row(" ", name, "", Text(f"after {', '.join(job.needs)}", style="dim"))
                case _:
                    table.add_row("✓" if job.state is State.DONE else "✗", name, clock(job.seconds), "")
        return table

    def _processes(self) -> list[psutil.Process]:
        found: list[psutil.Process] = []
        for job in self.jobs.values():
            if job.process is not None and job.process.poll() is None:
                with suppress(psutil.Error):
                    root = psutil.Process(job.process.pid)
                    found += [root, *root.children(recursive=True)]
        return found

    @contextmanager
    def suspended(self) -> Iterator[None]:
        """No job runs inside: what is timed there has the machine to itself."""
        self._awake.clear()
        with self._lock:
            stopped: list[psutil.Process] = []
            # A process may fork while its siblings are being stopped: look again until nobody new appears.
            while new := [process for process in self._processes() if process not in stopped]:
                for process in new:
                    with suppress(psutil.Error):
                        process.suspend()
                stopped += new
        try:
            yield
        finally:
            for process in stopped:
                with suppress(psutil.Error):
                    process.resume()
            self._awake.set()

    def stop(self) -> None:
        """Ends what still runs."""
        self._stopped = True
        processes = self._processes()
        for process in processes:
            with suppress(psutil.Error):
                process.terminate()
        _, alive = psutil.wait_procs(processes, timeout=10)
        for process in alive:
            with suppress(psutil.Error):
                process.kill()
