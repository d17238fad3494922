"""Streams drawn as lanes of text: a column is a slice of time, its height the tokens that came in it. Pure.

A frozen stream shows as a run of dots with the length of the gap written into it. Knows no terminal and no clock.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import median

from bench.traffic.records import gaps

LEVELS = "▁▂▃▄▅▆▇█"
IDLE = "·"


@dataclass(frozen=True)
class Scene:
    """Token times of each stream, and the prompt that arrives among them. Seconds from the start of the replay."""

    title: str
    streams: tuple[tuple[float, ...], ...]
    prompt_tokens: int
    prompt_sent: float
    prompt_first: float | None = None
    """When the prompt's first token came; None: not yet."""

    @property
    def prompt_ttft(self) -> float | None:
        """Seconds."""
        return None if self.prompt_first is None else self.prompt_first - self.prompt_sent

    def disturbed(self, stream: Sequence[float], now: float | None = None) -> float:
        """Longest gap of a stream, in seconds, of those that overlap the time from the prompt's arrival to its first
        token. A gap that is still open counts up to `now`."""
        end = self.prompt_first if self.prompt_first is not None else float("inf")
        times = [*stream, now] if now is not None and stream else list(stream)
        pairs = pairwise(times)
        return max((b - a for a, b in pairs if b > self.prompt_sent and a < end), default=0.0)

    @property
    def longest_gaps(self) -> tuple[float, ...]:
        return tuple(self.disturbed(stream) for stream in self.streams)

    @property
    def gap_meanwhile(self) -> float:
        """Mean seconds a token of a stream while the prompt is at work; its whole time where none comes."""
        return len(self.streams) * (self.prompt_ttft or 0.0) / max(1, sum(self.tokens_meanwhile))

    @property
    def quiet_gap(self) -> float:
        """Median gap of all streams before the prompt arrives, in seconds."""
        quiet = [gap for stream in self.streams for gap in gaps([t for t in stream if t < self.prompt_sent])]
        return median(quiet) if quiet else 0.0

    @property
    def tokens_meanwhile(self) -> tuple[int, ...]:
        """Tokens of each stream between the prompt's arrival and its first token."""
        end = self.prompt_first if self.prompt_first is not None else float("inf")
        return tuple(sum(self.prompt_sent < t < end for t in stream) for stream in self.streams)

    @property
    def window(self) -> tuple[float, float]:
        """A stretch that shows the whole of it: a second and a half before the prompt, until a second after it."""
        end = self.prompt_first if self.prompt_first is not None else self.prompt_sent + 3
        return max(0.0, self.prompt_sent - 1.5), end + 1.0


def cells(times: Sequence[float], begin: float, end: float, width: int, full: float) -> str:
    """One lane of `width` columns over [begin, end); a column with `full` tokens or more is full height.

    The longest run of empty columns carries the length of its gap in ms, where it fits.
    """
    step = (end - begin) / width
    counts = [0] * width
    for time in times:
        if begin <= time < end:
            counts[min(width - 1, int((time - begin) / step))] += 1
    text = "".join(
        IDLE if count == 0 else LEVELS[min(len(LEVELS), max(1, round(count / full * len(LEVELS)))) - 1]
        for count in counts
    )
    inside = [(b - a, a, b) for a, b in pairwise(times) if begin <= a and b < end]
    if not inside:
        return text
    gap, since, until = max(inside)
    first, last = int((since - begin) / step) + 1, int((until - begin) / step)
    label = f" {gap * 1000:.0f} ms "
    if last - first < len(label) or set(text[first:last]) != {IDLE}:
        return text
    place = first + (last - first - len(label)) // 2
    return text[:place] + label + text[place + len(label) :]


def prompt_row(scene: Scene, begin: float, end: float, width: int) -> str:
    """The prompt's own lane: where it arrives, how long it is at work, when its first token comes."""

    def column(time: float) -> int:
        return max(0, min(width - 1, int((time - begin) / (end - begin) * width)))

    if scene.prompt_sent >= end:
        return " " * width
    first = column(scene.prompt_sent)
    last = column(scene.prompt_first) if scene.prompt_first is not None else width - 1
    mark = "┤" if scene.prompt_first is not None else "╌"
    bar = "├" + "─" * max(0, last - first - 1) + (mark if last > first else "")
    return (" " * first + bar)[:width].ljust(width)


def full_height(scene: Scene, begin: float, end: float, width: int) -> float:
    """Tokens that a column holds when nothing disturbs the stream: the height of a full cell."""
    return max(1.0, (end - begin) / width / scene.quiet_gap) if scene.quiet_gap else 1.0


def rows(scene: Scene, width: int, window: tuple[float, float] | None = None) -> list[tuple[str, str, str]]:
    """(name, lane, note) for each stream and last for the prompt; every lane is `width` columns."""
    begin, end = window or scene.window
    now = end if window else None
    full = full_height(scene, begin, end, width)
    table = []
    for number, stream in enumerate(scene.streams, 1):
        seen = [time for time in stream if time < end]
        longest = scene.disturbed(seen, now if now and now > scene.prompt_sent else None)
        note = f"longest gap {longest * 1000:5.0f} ms" if longest else ""
        table.append((f"stream {number}", cells(seen, begin, end, width, full), note))
    note = f"first token {scene.prompt_ttft * 1000:5.0f} ms" if scene.prompt_ttft is not None else ""
    return [*table, (f"{scene.prompt_tokens:,}-token prompt", prompt_row(scene, begin, end, width), note)]


def picture(scene: Scene, width: int = 72) -> str:
    """The whole scene as plain text."""
    table = rows(scene, width)
    name_width = max(len(name) for name, _, _ in table)
    lines = [f"{name:>{name_width}} │{lane}│ {note}".rstrip() for name, lane, note in table]
    return "\n".join([scene.title, *lines])


def figures(scene: Scene) -> str:
    """One line of numbers."""
    longest = " ".join(f"{gap * 1000:.0f}" for gap in scene.longest_gaps)
    ttft = "none" if scene.prompt_ttft is None else f"{scene.prompt_ttft * 1000:.0f} ms"
    meanwhile = " ".join(str(count) for count in scene.tokens_meanwhile)
    return (
        f"longest gap per stream {longest} ms · a token each {scene.quiet_gap * 1000:.0f} ms before, "
        f"{scene.gap_meanwhile * 1000:.0f} ms meanwhile · prompt's TTFT {ttft} · tokens meanwhile {meanwhile}"
    )
