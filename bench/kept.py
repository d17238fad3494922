"""What a command has found so far, on disk, so that the same command goes on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def read(path: Path, otherwise: str = "name another --out") -> dict[str, Any]:
    """Empty where there is no file yet. Raises SystemExit with the remedy."""
    try:
        told = json.loads(path.read_text()) if path.exists() else {}
    except (OSError, ValueError) as error:
        raise SystemExit(f"{path}: it cannot be read ({type(error).__name__}); remove it, or {otherwise}") from error
    if not isinstance(told, dict):
        raise SystemExit(f"{path}: it is none of this command's; remove it, or {otherwise}")
    return told
