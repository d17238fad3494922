"""Runs the command blocks of a Markdown page as a reader would: one shell, block after block, and what they print.

A fenced block of language `bash` is run. A comment before it may say more:

    <!-- serves until: TEXT -->   it goes on in another terminal; the next block is run once TEXT was printed
    <!-- until: TEXT -->          repeated once a second until TEXT is in its output

A block of another language right behind is what it prints, errors included: these lines and no others. `…` stands for
anything in a line, and alone on a line for any number of lines. Prose is not touched. A block of any other language, or
of none, is refused: it would be a command that nobody runs.
"""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import threading
import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from uuid import uuid4

from e2e.lib.process import runs

_BLOCK = re.compile(
    r"(?:^<!-- (?P<note>[^\n]*) -->\n)?^```(?P<language>[^\n]*)\n(?P<text>.*?)^```\n", re.MULTILINE | re.DOTALL
)

COMMANDS, SHOWN = "bash", ("text", "json")
"""Languages of blocks: what is run, and what is looked at."""

_WORD = r"""(?:[^\s'")]|'[^']*'|"[^"]*")+"""
_FLAG = re.compile(rf"(?<=\s)(?P<dashes>--?)(?P<name>[A-Za-z][\w-]*)(?P<value>(?:=|[ \t]+(?!-)){_WORD}|[ \t]+-(?=\s)|)")
_VALUELESS = ("-i", "-sS", "--fail-with-body", "--create-namespace", "--wait")


class Change(StrEnum):
    """What a reader may get wrong about a flag."""

    RENAMED = "renamed"
    """To a name that no program knows."""
    LEFT_OUT = "left out"
    ALTERED = "altered"
    """Its value has another end."""


@dataclass(frozen=True)
class Mutant:
    """A block, from one of its commands on, with one flag of that command changed."""

    flag: str
    change: Change
    commands: str
    whole: bool
    """From the first command on."""


@dataclass(frozen=True)
class Block:
    """One fenced command block; `shows` is the block of output behind it, empty where there is none."""

    line: int
    commands: str
    shows: str = ""
    until: str = ""
    serves: bool = False

    def split(self) -> list[str]:
        """Its commands; one may have several lines."""
        found: list[str] = []
        begun = ""
        for line in self.commands.splitlines(keepends=True):
            begun += line
            with suppress(ValueError):  # inside a quotation
                shlex.split(begun, comments=True)
                if begun.strip() and not begun.endswith("\\\n"):
                    found.append(begun)
                    begun = ""
        return found

    def mutants(self) -> Iterator[Mutant]:
        commands = self.split()
        for number, command in enumerate(commands):
            for match in _FLAG.finditer(command):
                for flag, change, text in _changes(match["dashes"], match["name"], match["value"]):
                    changed = command[: match.start()] + text + command[match.end() :]
                    yield Mutant(flag, change, "".join([changed, *commands[number + 1 :]]), whole=number == 0)


def _changes(dashes: str, name: str, value: str) -> Iterator[tuple[str, Change, str]]:
    """(flag, what is wrong with it, what stands in its place); letters behind one dash are flags of their own."""
    flag = dashes + name
    yield flag, Change.RENAMED, f"--{name}-renamed{value}"
    if flag not in _VALUELESS:
        yield flag, Change.LEFT_OUT, ""
        if value:
            end = -1 if value[-1] in "'\"" else len(value)
            yield flag, Change.ALTERED, f"{flag}{value[:end]}-altered{value[end:]}"
    elif dashes == "-" and len(name) > 1:
        for letter in name:
            yield f"-{letter}", Change.LEFT_OUT, f"-{name.replace(letter, '')}{value}"
    else:
        yield flag, Change.LEFT_OUT, value


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
        if match["language"] not in (COMMANDS, *SHOWN):
            raise PageError(f"line {line}: a block of {match['language']!r}; known are {COMMANDS}, {', '.join(SHOWN)}")
        if match["language"] == COMMANDS:
            kind, _, text = (match["note"] or "").partition("until: ")
            if match["note"] and not (text and kind in ("", "serves ")):
                raise PageError(f"line {line}: the comment {match['note']!r} is not known")
            found.append(Block(line, match["text"], until=text, serves=kind == "serves "))
            last = match.end()
        elif last >= 0 and page[last : match.start()].strip() == "":
            found[-1] = Block(**(vars(found[-1]) | {"shows": match["text"]}))
            last = -1
    return found


def pictures(page: str) -> list[str]:
    """The blocks that are neither commands nor what commands print."""
    outputs = [block.shows for block in blocks(page)]
    return [
        match["text"] for match in _BLOCK.finditer(page) if match["language"] in SHOWN and match["text"] not in outputs
    ]


def difference(shown: str, printed: str) -> str | None:
    """What is wrong with `printed`: a line of `shown` that it lacks at its place, or a line that is not shown."""
    lines = [line.strip() for line in shown.splitlines() if line.strip()]
    text = "".join(f"{line.strip()}\n" for line in re.split(r"[\r\n]+", printed) if line.strip())
    pattern = ""
    for line in lines:
        pattern += _ANY_LINES if line == "…" else ".*?".join(map(_flexible, line.split("…"))) + r"\n"
        if not re.match(pattern, text):
            return f"it did not print {line!r} there"
    return None if not lines or re.fullmatch(pattern, text) else "it printed more than the page shows"


_ANY_LINES = r"(?:.*\n)*?"


def _flexible(part: str) -> str:
    """Any white space where there is some: columns are as wide as what is in them."""
    return re.sub(r"(\\ )+", r"[ \\t]+", re.escape(part))


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
        while (left := [pid for pid, _ in self._serving if runs(pid)]) and time.monotonic() < deadline:
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
        if (wrong := difference(block.shows, printed)) is not None:
            raise PageError(f"line {block.line}: {wrong}:\n{printed}")
        return printed

    def attempt(self, commands: str, timeout_s: float) -> tuple[int, str]:
        """(exit status, what it printed); this shell goes on either way. 124: it took longer."""
        inner = f"timeout {timeout_s} bash -eo pipefail -c {shlex.quote(commands.rstrip())}"
        text = f"set +e\n{inner} </dev/null\nprintf '\\nstatus=%s\\n' $?\nset -e\n"
        printed = self._once(Block(0, text), time.monotonic() + timeout_s + 30)
        before, _, status = printed.rstrip().rpartition("status=")
        return int(status), before

    def survivors(self, block: Block, timeout_s: float, unseen: Collection[str] = ()) -> list[Mutant]:
        """Those of its mutants that neither fail nor print something else than the page shows. Flags in `unseen` are
        renamed only: what else is done to them does not show in this block."""
        found = []
        for mutant in block.mutants():
            if mutant.flag in unseen and mutant.change is not Change.RENAMED:
                continue
            status, printed = self.attempt(mutant.commands, timeout_s)
            if status == 0 and not (mutant.whole and block.shows and difference(block.shows, printed)):
                found.append(mutant)
        return found

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
            if not runs(pid) or time.monotonic() > deadline:
                raise PageError(f"line {block.line}: it does not say {block.until!r}:\n{printed}")
            time.sleep(0.1)

    def _feed(self, text: str) -> None:
        assert self._bash.stdin is not None
        self._bash.stdin.write(text)
        self._bash.stdin.flush()
