"""Who is asked: our engine under a split, in one process, and the whole product in Auto with the measured profile."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from bench.cpu.servers import SERVERS, Place, Server, contender_named
from bench.slo.plan import AGAIN, AUTO, ONE, WHOLE
from e2e.lib.models import cache_root
from semipd_engine.contract import Split

STATUS = "status.json"
PROFILES = Path("semipd") / "profiles"
"""Where an agent looks for profiles, below XDG_CACHE_HOME."""


def server(arm: str, profile: Path) -> Server:
    if arm == AUTO:
        return _auto(profile)
    return SERVERS["unified" if arm == ONE else "ours"]


def split(arm: str) -> Split | None:
    """None: it has none, or moves it itself."""
    if arm in (AUTO, ONE):
        return None
    return contender_named(f"ours {WHOLE if arm == AGAIN else arm}").split


def _auto(profile: Path) -> Server:
    plain = SERVERS["auto"]

    def command(place: Place) -> list[str]:
        return [*plain.command(place), "--status-file", str(place.folder / STATUS)]

    def variables(place: Place) -> Mapping[str, str]:
        return {"XDG_CACHE_HOME": str(place.folder / "cache"), "SEMIPD_CACHE": str(cache_root())}

    def files(place: Place) -> Mapping[str, str]:
        (place.folder / "cache" / PROFILES).mkdir(parents=True, exist_ok=True)
        return {**plain.files(place), str(Path("cache") / PROFILES / "profile.json"): profile.read_text()}

    return replace(plain, command=command, variables=variables, files=files)


def auto_says(folder: Path) -> tuple[int, str]:
    """Splits that Auto put in force, and its word on its step times ("" where it has none yet)."""
    try:
        status = json.loads((folder / STATUS).read_text())["status"]
    except (OSError, ValueError, KeyError):
        return 0, ""
    partition, slo = status.get("partition") or {}, status.get("slo") or {}
    moves = [d for d in partition.get("decisions") or [] if d.get("reason") != "ManualChange"]
    return len(moves), str(slo.get("stepTimes") or "")
