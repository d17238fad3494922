"""Facts about the machine and the programs, for the report. Knows nothing of the acts."""

from __future__ import annotations

import os
import platform
from datetime import datetime
from importlib.metadata import version
from pathlib import Path

import psutil  # type: ignore[import-untyped]


def facts() -> dict[str, str]:
    """Names and values, in the order to be shown."""
    system = platform.freedesktop_os_release().get("PRETTY_NAME", platform.system())
    return {
        "processor": _processor(),
        "CPUs granted": str(len(os.sched_getaffinity(0))),
        "memory": f"{psutil.virtual_memory().total / 2**30:.0f} GiB",
        "system": f"{system}, Linux {platform.release()}",
        "programs": ", ".join(f"{name} {version(name)}" for name in ("semipd", "torch", "transformers")),
        "Python": platform.python_version(),
        "load average at the end": " ".join(f"{load:.1f}" for load in os.getloadavg()),
    }


def now() -> str:
    return datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z")


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()
