#!/usr/bin/env python3
"""Stands in for ``nvidia-cuda-mps-control``, its server and a CUDA client, where there is no GPU: real processes.

It speaks version 2 of the command language over a socket in the pipe directory, as the control program does, but limits
nothing and knows no GPU. Called as

    mps_stand_in.py control -f      the daemon, in the foreground; ``start_server`` starts a server process
    mps_stand_in.py control         hands standard input to the daemon, prints its answers
    mps_stand_in.py server          a server process: lives until it is ended
    mps_stand_in.py probe           a client: sees the SMs of its rung, or all of them outside of MPS
    mps_stand_in.py green 20,40     the self-test of green contexts: groups of eight SMs

Faults are scripted in the file that STAND_IN_SCRIPT names, read at every command: lines ``COMMAND: ACTION``, with
the actions ``answer TEXT`` (``\\n`` is a new line), ``hang``, ``sleep SECONDS`` (and then go on), ``refuse`` (an error,
exit status 1) and ``die`` (the daemon ends without a word). COMMAND is a command or its first word, ``start`` for the
daemon's own start, ``probe`` (whose answers are ``unlimited`` and ``late``), or ``green`` (whose answers are JSON, put
over the good one; ``harm`` dies, and the server takes no probe any more; ``late`` dies behind its answer).
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

SMS = 132
NOT_READY = 807
_ABSENT = "Cannot find MPS control daemon process"


def scripted(command: str) -> str:
    """The action scripted for a command; empty: none."""
    script = os.environ.get("STAND_IN_SCRIPT", "")
    lines = Path(script).read_text().splitlines() if script and Path(script).exists() else []
    rules = dict(line.split(": ", 1) for line in lines if ": " in line)
    return next((rules[each] for each in (command, command.split()[0]) if each in rules), "")


def script_faults(script: Path, *lines: str) -> None:
    """What the stand-ins that read this file do wrong from now on; nobody reads half of it."""
    fresh = script.with_suffix(".new")
    fresh.write_text("".join(f"{line}\n" for line in lines))
    fresh.replace(script)


def socket_path() -> str:
    return str(Path(os.environ.get("CUDA_MPS_PIPE_DIRECTORY", "/tmp/nvidia-mps")) / "control")


def sms_seen(environment: Mapping[str, str]) -> int:
    """SMs that a CUDA process sees: its rung's whole pairs, if a daemon listens in its pipe directory."""
    percent = int(environment.get("CUDA_MPS_ACTIVE_THREAD_PERCENTAGE", "100"))
    inside = (Path(environment.get("CUDA_MPS_PIPE_DIRECTORY", "/tmp/nvidia-mps")) / "control").exists()
    return 2 * (SMS * percent // 200) if inside else SMS


def attach(environment: Mapping[str, str]) -> int:
    """Become a client of the daemon of this environment, as CUDA does when it is initialised; the SMs then seen."""
    path = str(Path(environment.get("CUDA_MPS_PIPE_DIRECTORY", "/nonexistent")) / "control")
    try:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(path)
            connection.sendall(f"attach {os.getpid()}\n".encode())
            connection.makefile().read()
    except OSError:
        return SMS  # not a word: the process goes on with the whole GPU
    return sms_seen(environment)


def clients(server: int) -> list[int]:
    """Live processes that were started with our pipe directory, but for our own."""
    ours = f"CUDA_MPS_PIPE_DIRECTORY={os.environ['CUDA_MPS_PIPE_DIRECTORY']}".encode()
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit() and int(folder.name) not in (os.getpid(), server):
            try:
                if (
                    ours in (folder / "environ").read_bytes().split(b"\0")
                    and b"CUDA_MPS_ACTIVE" in (folder / "environ").read_bytes()
                ):
                    found.append(int(folder.name))
            except OSError:
                continue
    return sorted(found)


class Daemon:
    def __init__(self) -> None:
        self.server: subprocess.Popen[bytes] | None = None
        self.attached: list[int] = []
        """Clients that said so themselves (`attach`); others are found by their environment."""

    def answer(self, line: str) -> str:
        words = line.split()
        server = self.server.pid if self.server and self.server.poll() is None else 0
        match words:
            case ["get_default_active_thread_percentage"]:
                return "100.0"
            case ["start_server", "-uid", _]:
                if not server:
                    self.server = subprocess.Popen([sys.executable, __file__, "server", "nvidia-cuda-mps-server"])
                return ""
            case ["get_server_list"]:
                return str(server) if server else ""
            case ["get_server_status", pid]:
                return "ACTIVE" if int(pid) == server else f"Server {pid} not found"
            case ["get_client_list", pid]:
                there = {*clients(server), *(each for each in self.attached if Path(f"/proc/{each}").exists())}
                return "\n".join(map(str, sorted(there))) if int(pid) == server else f"Server {pid} not found"
            case ["terminate_client", of, pid]:
                if int(of) != server or not Path(f"/proc/{pid}").exists():
                    return f"Failed to terminate client {pid}: CUDA_ERROR_INVALID_VALUE"
                os.kill(int(pid), signal.SIGKILL)  # a real one gets an error of its next call
                return ""
            case ["attach", pid]:  # what a real client does by its driver; no command of the language
                self.attached.append(int(pid))
                return ""
            case _:
                return f"Unknown command: {line}"

    def run(self) -> None:
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(socket_path())
        listener.listen(16)
        print(f"Starting control daemon using socket {socket_path()}", flush=True)
        while True:
            connection, _ = listener.accept()
            with connection:
                line = connection.makefile().readline().strip()
                action = scripted(line) if line else ""
                if action == "die":
                    os._exit(3)
                if action.startswith("answer "):
                    reply = action.removeprefix("answer ").replace("\\n", "\n")
                else:
                    reply = self.answer(line) if line != "quit" else ""
                connection.sendall(reply.encode() + b"\n")
            if line == "quit":
                if self.server:
                    self.server.terminate()
                    self.server.wait()
                return


def control() -> int:
    command = sys.stdin.readline().strip()
    action = scripted(command)
    if action == "hang":
        time.sleep(3600)
    if action.startswith("sleep "):
        time.sleep(float(action.removeprefix("sleep ")))
    if action == "refuse":
        print(f"Failed to execute {command}")
        return 1
    try:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(socket_path())
            connection.sendall(command.encode() + b"\n")
            print(connection.makefile().read().strip())
    except OSError:
        print(_ABSENT)
        return 1
    return 0


def probe() -> None:
    action = scripted("probe")
    if action == "hang":
        time.sleep(3600)
    inside = Path(socket_path()).exists()
    late = action == "answer late" and "--context" not in sys.argv  # the limit shows with a context only
    seen = SMS if action == "answer unlimited" or late else sms_seen(os.environ)
    print(json.dumps({"sm_count": seen, "error": NOT_READY if action == "refuse" and inside else 0}))


def green_sms(percent: int) -> int:
    return SMS * percent // 800 * 8


def green(percents: list[int]) -> None:
    action = scripted("green")
    if action == "hang":
        time.sleep(3600)
    if action == "harm":
        script_faults(Path(os.environ["STAND_IN_SCRIPT"]), "probe: refuse")
    if action in ("die", "harm"):
        os._exit(3)
    each = {percent: green_sms(percent) for percent in percents}
    said: dict[str, object] = {
        "error": "",
        "trouble": "",
        "total": SMS,
        "sms": {"prefill": each, "decode": each},
        "lost": {},
    }
    said |= {"apart": True, "why": "as the stand-in says"}
    if action.startswith("answer "):
        said |= json.loads(action.removeprefix("answer "))
    print(json.dumps(said), flush=True)
    if action == "late":
        os._exit(3)


def main() -> int:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    match sys.argv[1:]:
        case ["control", "-f"]:
            if scripted("start") == "refuse":
                print("An instance of this daemon is already running")
                return 1
            if scripted("start") == "die":
                return 3
            Daemon().run()
        case ["control"]:
            return control()
        case ["server", *_]:
            time.sleep(3600)
        case ["probe", *_]:
            probe()
        case ["green", text]:
            green([int(percent) for percent in text.split(",")])
    return 0


if __name__ == "__main__":
    sys.exit(main())
