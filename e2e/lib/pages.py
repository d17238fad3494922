"""Runs the command blocks of a Markdown page as a reader would: one shell, block after block, and what they print.

A fenced block of language `bash` is run. A comment before it may say more:

    <!-- serves until: TEXT -->   it goes on in another terminal; the next block is run once TEXT was printed
    <!-- until: TEXT -->          repeated once a second until TEXT is in its output

A block of another language right behind is what it prints: its lines must be found in that order, `…` stands for
anything. Prose, and blocks without a language, are not touched.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import threading
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

_BLOCK = re.compile(
    r"(?:^<!-- (?P<note>[^\n]*) -->\n)?^```(?P<language>\w+)\n(?P<text>.*?)^```\n", re.MULTILINE | re.DOTALL
)


@dataclass(frozen=True)
class Block:
    """One fenced command block; `shows` is the block of output behind it, empty where there is none."""

    line: int
    commands: str
    shows: str = ""
    until: str = ""
    serves: bool = False


class PageError(AssertionError):
    """A block failed, printed something else, or took too long."""


def blocks(page: str, section: str = "") -> list[Block]:
    """The command blocks in the order of the page; `section`: below the heading of this name only."""
    start, end = 0, len(page)
    if section:
        heading = re.search(rf"^(#+) {re.escape(section)}\n", page, re.MULTILINE)
        if not heading:
            raise PageError(f"no section {section!r}")
        following = re.compile(rf"^#{{1,{len(heading[1])}}} ", re.MULTILINE).search(page, heading.end())
        start, end = heading.end(), following.start() if following else end
    found: list[Block] = []
    last = -1
    for match in _BLOCK.finditer(page, start, end):
        line = page.count("\n", 0, match.start("text")) + 1
        if match["language"] == "bash":
            kind, _, text = (match["note"] or "").partition("until: ")
            if match["note"] and not (text and kind in ("", "serves ")):
                raise PageError(f"line {line}: the comment {match['note']!r} is not known")
            found.append(Block(line, match["text"], until=text, serves=kind == "serves "))
            last = match.end()
        elif found and page[last : match.start()].strip() == "":
            found[-1] = Block(**(vars(found[-1]) | {"shows": match["text"]}))
            last = -1
    return found


def missing(shown: str, printed: str) -> str | None:
    """The first line of `shown` that `printed` lacks, after those before it."""
    at = 0
    for line in filter(None, map(str.strip, shown.splitlines())):
        pattern = ".*?".join(re.sub(r"(\\ )+", r"\\s+", re.escape(part)) for part in line.split("…"))
        found = re.compile(pattern).search(printed, at)
        if not found:
            return line
        at = found.end()
    return None


def _runs(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


class Shell(AbstractContextManager["Shell"]):
    """A bash that is fed block after block. What serves is ended by SIGTERM with the `with`, and must end in 90 s."""

    def __init__(self, folder: Path, env: Mapping[str, str]) -> None:
        self._folder, self._env = folder, {**os.environ, **env}
        self._printed: list[str] = []
        self._serving: list[tuple[int, Path]] = []

    def __enter__(self) -> Shell:
        self._bash = subprocess.Popen(
            ["bash", "--noprofile", "--norc", "-eo", "pipefail"],
            cwd=self._folder,
            env=self._env,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        for pid, _file in self._serving:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)
        deadline = time.monotonic() + 90
        while (left := [pid for pid, _ in self._serving if _runs(pid)]) and time.monotonic() < deadline:
            time.sleep(0.2)
        with suppress(ProcessLookupError):
            os.killpg(self._bash.pid, signal.SIGKILL)
        self._bash.wait()
        for _pid, file in self._serving:
            file.unlink(missing_ok=True)
        if left and kind is None:
            raise PageError("what a block serves does not end after SIGTERM")

    def _read(self) -> None:
        assert self._bash.stdout is not None
        for line in self._bash.stdout:
            self._printed.append(line)

    def run(self, block: Block, timeout_s: float) -> str:
        """What it printed. Raises `PageError`."""
        deadline = time.monotonic() + timeout_s
        while True:
            printed = self._serve(block, deadline) if block.serves else self._once(block, deadline)
            if block.serves or block.until in printed:
                break
            if time.monotonic() > deadline:
                raise PageError(f"line {block.line}: {block.until!r} did not come within {timeout_s:.0f} s:\n{printed}")
            time.sleep(1)
        if (line := missing(block.shows, printed)) is not None:
            raise PageError(f"line {block.line}: it did not print {line!r} but\n{printed}")
        return printed

    def _once(self, block: Block, deadline: float) -> str:
        mark, begin = f"done-{uuid4().hex}", len(self._printed)
        self._feed(f"set -eo pipefail\n{block.commands}\nprintf '\\n%s\\n' {mark}\n")
        while not any(line.strip() == mark for line in self._printed[begin:]):
            if self._bash.poll() is not None:
                self._reader.join(5)
                raise PageError(f"line {block.line}: a command failed:\n{''.join(self._printed[begin:])}")
            if time.monotonic() > deadline:
                raise PageError(f"line {block.line}: it takes too long:\n{''.join(self._printed[begin:])}")
            time.sleep(0.05)
        return "".join(line for line in self._printed[begin:] if line.strip() != mark)

    def _serve(self, block: Block, deadline: float) -> str:
        file = Path(f"{self._folder}/.served-{len(self._serving)}")
        started = self._once(Block(block.line, f"{block.commands.rstrip()} >{file} 2>&1 & echo pid=$!"), deadline)
        pid = int(re.findall(r"pid=(\d+)", started)[0])
        self._serving.append((pid, file))
        while True:
            printed = file.read_text() if file.exists() else ""
            if block.until in printed:
                return printed
            if not _runs(pid) or time.monotonic() > deadline:
                raise PageError(f"line {block.line}: it does not say {block.until!r}:\n{printed}")
            time.sleep(0.1)

    def _feed(self, text: str) -> None:
        assert self._bash.stdin is not None
        self._bash.stdin.write(text)
        self._bash.stdin.flush()
