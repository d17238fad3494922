"""Can what is asked for be written? Said before minutes of simulation, not after them."""

from __future__ import annotations

import tempfile
from pathlib import Path


def check_file(flag: str, path: Path) -> None:
    """Raises ValueError with the remedy."""
    if path.is_dir():
        raise ValueError(f"{flag} {path}: is a folder; name a file in it")
    if not path.parent.is_dir():
        raise ValueError(f"{flag} {path}: there is no folder {path.parent}; make it, or name another")
    try:
        with tempfile.TemporaryFile(dir=path.parent):
            pass
        if path.exists():
            path.open("ab").close()
    except OSError as error:
        raise ValueError(f"{flag} {path}: it cannot be written: {error.strerror}; name another") from error


def check_picture(flag: str, path: Path) -> None:
    """Raises ValueError with the remedy, without matplotlib, too."""
    check_file(flag, path)
    try:
        from matplotlib.backend_bases import FigureCanvasBase
    except ImportError as error:
        raise ValueError(f"{flag} needs matplotlib: pip install matplotlib") from error
    if path.suffix[1:] not in (known := FigureCanvasBase.get_supported_filetypes()):
        raise ValueError(f"{flag} {path}: no such form of picture; name it .svg or .png, or one of {', '.join(known)}")
