"""What the records of one folder have in common: device, commit, versions. Those of others are put aside, never mixed.

Standard library only.
"""

from __future__ import annotations

import json
import platform
import re
import subprocess
import sys
from collections.abc import Mapping
from importlib.metadata import distributions
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
NAME = "circumstances.json"
OURS = ("parts", "report*", "plots*", "probe.json", "probe-kill.json", NAME)
"""What a run leaves in its folder."""
PACKAGES = ("torch", "triton", "numpy", "transformers")
DRIVER = Path("/proc/driver/nvidia")


def circumstances(device: str, unpacked: Path | None = None, driver: Path = DRIVER) -> dict[str, str]:
    """`unpacked`: the wheels' packages. `driver`: where the kernel module tells of itself and its cards."""
    path = [*([str(unpacked)] if unpacked is not None else []), *sys.path]
    found = {"device": device, "commit": commit(), "Python": platform.python_version()}
    for name in PACKAGES:
        found[name] = next((one.version for one in distributions(name=name, path=path)), "not here")
    if device == "cuda":
        said = re.search(r"\d+\.\d+[.\d]*", _text(driver / "version"))
        cards = (_text(file) for file in sorted(driver.glob("gpus/*/information")))
        models = [line[1] for text in cards if (line := re.search(r"^Model:\s*(.*\S)", text, re.MULTILINE))]
        found |= {"driver": said[0] if said else "not here", "GPU": ", ".join(models) or "not here"}
    return found


def settle(out: Path, now: Mapping[str, str]) -> str:
    """The folder holds records of these circumstances alone afterwards: others lie in a folder of their own in it. What
    to say of that, or nothing. Raises OSError."""
    try:
        before = json.loads((out / NAME).read_text())
    except (OSError, ValueError):
        before = {}
    found = [path for pattern in OURS for path in out.glob(pattern)]
    said = ""
    if found and before != now:
        aside = next(path for number in range(1, 10_000) if not (path := out / f"earlier-{number}").exists())
        aside.mkdir()
        for path in found:
            path.rename(aside / path.name)
        differ = [f"{key} {value}, not {now.get(key)}" for key, value in before.items() if now.get(key) != value]
        said = f"what {out} held is of {'; '.join(differ) or 'another version of the check'}: it is in {aside} now"
    (out / "parts").mkdir(parents=True, exist_ok=True)
    (out / NAME).write_text(json.dumps(dict(now), indent=2))
    return said


def commit() -> str:
    """Of the archive, or of the clone."""
    try:
        return (ROOT / "COMMIT").read_text().strip()
    except OSError:
        pass
    try:
        command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""
