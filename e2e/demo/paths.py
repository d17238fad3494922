"""Where the demo finds its parts and leaves its results. Creates nothing."""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent
"""The virtual environment's programs."""
OUT = ROOT / "out" / "demo"
"""Logs, plans, records."""
REPORT = ROOT / "demo-report.html"
