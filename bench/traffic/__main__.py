"""Command line of the load client, run from the repository's root.

python -m bench.traffic ask URL "What is the capital of France?"
python -m bench.traffic poisson URL --rate 2 --seconds 30 --prompt-tokens 512 --max-tokens 64
python -m bench.traffic trace URL bench/traces/azure2023_conv.csv.gz --rate 2 --seconds 60 --length-scale 0.25
python -m bench.traffic plan URL plan.jsonl --out records.jsonl
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import Sequence
from pathlib import Path

import httpx
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from bench.traffic import plan, records
from bench.traffic.client import ServerError, replay
from bench.traffic.plan import PlanError
from bench.traffic.records import Record, Target, summarise
from bench.usage import count, number, output
from semipd_engine.usage import Parser


def address(text: str) -> str:
    try:
        url = httpx.URL(text)
    except httpx.InvalidURL as error:
        raise argparse.ArgumentTypeError(f"{text}: {error}; write it like http://127.0.0.1:8000") from None
    if url.scheme not in ("http", "https") or not url.host:
        raise argparse.ArgumentTypeError(f"{text}: write it like http://127.0.0.1:8000")
    return text


def parser() -> argparse.ArgumentParser:
    raw = argparse.RawTextHelpFormatter
    top = Parser(prog="bench.traffic", description=__doc__, formatter_class=raw, allow_abbrev=False)
    commands = top.add_subparsers(dest="command", required=True)
    asking = commands.add_parser("ask", help="one chat question; prints the answer")
    poisson = commands.add_parser("poisson", help="Poisson arrivals of equal requests")
    trace = commands.add_parser("trace", help="a stretch of a trace (csv.gz: t_s,input_tokens,output_tokens)")
    planned = commands.add_parser("plan", help="a plan written as JSON Lines")
    for command in (asking, poisson, trace, planned):
        command.add_argument("url", type=address, help="address without /v1")
        command.add_argument("--out", type=output, help="write the records as JSON Lines")
        command.add_argument("--silence", type=number, default=120.0, help="longest silence of a stream, seconds")
        command.add_argument("--ttft", type=number, help="target in ms")
        command.add_argument("--tpot", type=number, help="target in ms")
        command.add_argument("--gap", type=number, help="target for a request's longest gap, in ms")
    asking.add_argument("question")
    asking.add_argument("--max-tokens", type=count, default=64)
    planned.add_argument("plan", type=Path)
    trace.add_argument("trace", type=Path)
    trace.add_argument("--length-scale", type=number, default=1.0)
    for command in (poisson, trace):
        command.add_argument("--rate", type=number, required=True, help="mean requests per second")
        command.add_argument("--seconds", type=number, required=True)
        command.add_argument("--seed", type=int, default=0)
    poisson.add_argument("--prompt-tokens", type=count, default=256)
    poisson.add_argument("--max-tokens", type=count, default=64)
    return top


def requests(arguments: argparse.Namespace) -> list[plan.Request]:
    match arguments.command:
        case "ask":
            return [plan.ask(arguments.question, max_tokens=arguments.max_tokens)]
        case "plan":
            return plan.read(arguments.plan)
        case "poisson":
            return plan.poisson_plan(
                arguments.rate,
                arguments.seconds,
                prompt_tokens=arguments.prompt_tokens,
                max_tokens=arguments.max_tokens,
                seed=arguments.seed,
            )
    return plan.trace_plan(
        plan.read_trace(arguments.trace),
        rate=arguments.rate,
        seconds=arguments.seconds,
        length_scale=arguments.length_scale,
        seed=arguments.seed,
    )


async def send(todo: list[plan.Request], arguments: argparse.Namespace) -> list[Record]:
    """Replays with a progress bar of the tokens expected (on stderr, where that is a terminal)."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as progress:
        task = progress.add_task("tokens", total=sum(request.max_tokens for request in todo))

        def advance(index: int, at: float, text: str) -> None:
            progress.advance(task)

        return await replay(todo, arguments.url, on_token=advance, silence_seconds=arguments.silence)


def main(words: Sequence[str] | None = None) -> int:
    """0: every request was answered or refused; 1: one was not; 2: nothing was sent, for the arguments are bad."""
    arguments = parser().parse_args(words)
    try:
        todo = requests(arguments)
    except PlanError as error:
        print(f"bench.traffic: {error}", file=sys.stderr)
        return 2
    try:
        found = asyncio.run(send(todo, arguments))
        if arguments.out:
            records.write(found, arguments.out)
    except (httpx.HTTPError, ServerError, OSError) as error:
        print(f"bench.traffic: {arguments.url}: {error or type(error).__name__}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    if arguments.command == "ask" and found:
        print(found[0].text.strip() if found[0].ok else found[0].error)
        return 0 if found[0].ok else 1
    targets = (arguments.ttft, arguments.tpot, arguments.gap)
    target = Target(*targets) if any(value is not None for value in targets) else None
    summary = summarise(found, target)
    print("\n".join(summary.lines()))
    return 1 if summary.failed else 0


if __name__ == "__main__":
    sys.exit(main())
