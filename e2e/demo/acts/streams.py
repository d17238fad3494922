"""The point, live: four streams as lanes, a long prompt arriving, in one-process mode and then in split mode."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from pathlib import Path

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from bench.traffic.client import OnToken, replay, served_model
from bench.traffic.plan import Request, prompt_ids
from bench.traffic.records import Record
from e2e.demo import plots
from e2e.demo.lanes import IDLE, Scene, figures, picture, rows
from e2e.demo.outcome import OUT, DemoError, Outcome
from e2e.demo.service import serve

STREAMS = 4
PROMPT_TOKENS = 1_024
STEADY_TOKENS = 25
"""The prompt is sent when every stream has brought this many."""
STEADY_SECONDS = 25.0
"""Or after this time, if each has brought any."""
AFTER = 1.5
"""Seconds watched after the prompt's first token."""
PATIENCE = 60.0
"""Seconds after which a prompt without a first token is a failure."""
COMMON: dict[str, object] = {"dtype": "float32", "max-model-len": 4096, "kv-cache-memory": 256 * 2**20}
UNIFIED = "one process (chunked prefill within decode steps)"
SPLIT = "two processes (prefill and decode side by side, split 50/50)"


ATTEMPTS = 2
"""A machine that was busy with something else is measured once more, and both are told."""


def streams(outcome: Outcome, model: Path, split_url: str) -> None:
    """Both modes one after the other; `split_url` is an engine that runs already with 50/50."""
    seen: list[str] = []
    with serve(model, OUT / "engine-unified.log", COMMON, "--unified") as unified_url:
        for attempt in range(ATTEMPTS):
            frozen = asyncio.run(watch(UNIFIED, unified_url, outcome.console, seed=2 * attempt + 1))
            flowing = asyncio.run(watch(SPLIT, split_url, outcome.console, seed=2 * attempt + 2))
            seen.append(compared(frozen, flowing))
            if go_on(frozen, flowing):
                break
    outcome.scenes += [frozen, flowing]
    (OUT / "lanes.svg").write_text(plots.lanes_of_both([frozen, flowing]))
    outcome.check("streams go on while a long prompt is worked on", go_on(frozen, flowing), "; again: ".join(seen))


def go_on(frozen: Scene, flowing: Scene) -> bool:
    """Each stream of the split mode brings ten tokens before the prompt's first, and clearly faster."""
    return min(flowing.tokens_meanwhile) >= 10 and flowing.gap_meanwhile < frozen.gap_meanwhile / 1.5


def compared(frozen: Scene, flowing: Scene) -> str:
    return (
        f"a token each {frozen.gap_meanwhile * 1000:.0f} ms in one process, each {flowing.gap_meanwhile * 1000:.0f} ms "
        f"in two; longest gap {max(frozen.longest_gaps) * 1000:.0f} and {max(flowing.longest_gaps) * 1000:.0f} ms"
    )


async def watch(title: str, url: str, console: Console, *, seed: int) -> Scene:
    """Runs the scene against the server at `url`, drawing it as it goes where there is a terminal."""
    model = await served_model(url)
    warm = [Request(0.0, 8, prompt_ids(tokens, seed=seed * 1_000 + tokens)) for tokens in (64, 300)]
    if problem := next((record.error for record in await replay(warm, url, model=model) if not record.ok), None):
        raise DemoError(f"{title}: {problem}")
    plan = [Request(0.0, 2_000, prompt_ids(32, seed=seed * 10 + number)) for number in range(STREAMS)]
    times: list[list[float]] = [[] for _ in plan]
    first: list[float] = []
    began, sent = time.monotonic(), float("inf")

    def begin(requests: list[Request], on_token: OnToken) -> asyncio.Task[list[Record]]:
        return asyncio.create_task(replay(requests, url, model=model, start=began, on_token=on_token))

    tasks = [begin(plan, lambda index, at, _: times[index].append(at))]

    def scene() -> Scene:
        streams = tuple(tuple(stream) for stream in times)
        return Scene(title, streams, PROMPT_TOKENS, sent, first[0] if first else None)

    try:
        with Live(console=console, auto_refresh=False, transient=True) as live:
            while not (first and time.monotonic() - began > first[0] + AFTER):
                await asyncio.sleep(0.1)
                now = time.monotonic() - began
                if now < sent and _steady(times, now):
                    sent = now
                    prompt = [Request(sent, 1, prompt_ids(PROMPT_TOKENS, seed=seed * 10 + 9))]
                    tasks.append(begin(prompt, lambda _, at, __: first.append(at)))
                if tasks[0].done() or now > min(sent, STEADY_SECONDS) + PATIENCE:
                    raise DemoError(f"{title}: the prompt brought no token within {PATIENCE:.0f} s ({_why(tasks)})")
                if console.is_terminal:
                    live.update(drawing(scene(), now, console.width), refresh=True)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    found = settled(scene())
    console.print(picture(found, lane_width(console.width)), markup=False, highlight=False, soft_wrap=True)
    console.print(figures(found), style="dim", highlight=False)
    console.print()
    return found


def _steady(times: list[list[float]], now: float) -> bool:
    fewest = min(len(stream) for stream in times)
    return fewest >= STEADY_TOKENS or (fewest > 2 and now > STEADY_SECONDS)


def _why(tasks: list[asyncio.Task[list[Record]]]) -> str:
    errors = {record.error for task in tasks if task.done() for record in task.result() if record.error}
    return "; ".join(sorted(errors)) or "no error was reported"


def settled(scene: Scene) -> Scene:
    """Without the tokens that came after the window, so that both pictures end alike."""
    end = scene.window[1]
    return replace(scene, streams=tuple(tuple(time for time in stream if time <= end) for stream in scene.streams))


def lane_width(columns: int) -> int:
    return max(30, min(90, columns - 46))


def drawing(scene: Scene, now: float, columns: int) -> Group:
    """The last six seconds of the scene, its frozen parts in red."""
    grid = Table.grid(padding=(0, 1))
    for name, lane, note in rows(scene, lane_width(columns), (max(0.0, now - 6), max(6.0, now))):
        text = Text(lane, style="green")
        text.highlight_regex(rf"{IDLE}[{IDLE} 0-9ms]*", "bold red")
        text.highlight_regex(r"[├─┤╌]+", "yellow")
        grid.add_row(Text(name, justify="right"), text, Text(note, style="dim"))
    return Group(Text(scene.title, style="bold"), grid)
