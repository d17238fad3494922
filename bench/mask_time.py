"""What a grammar costs its row (``python -m bench.mask_time``): masked streams' time per token over that of free ones.

One engine on the 0.5 B model; the same streams with and without a JSON schema, in turns, so that a machine that changes
its speed changes both. Then half of the streams have one. The first round is not counted. Also the time to the first
token of a stream whose schema is new, and of a free one asked at the same moment.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from bench import usage
from bench.cpu.identity import commit, machine, versions
from bench.usage import RefusedError, guarded, made, output
from e2e.lib.models import random_model
from e2e.lib.process import answers, free_port, running
from semipd_engine.usage import Parser

ENDLESS = {"type": "array", "items": {"type": "integer", "minimum": 0, "maximum": 99999}, "minItems": 1000}
"""Longer than any answer here."""
RECORDS = {
    "type": "array",
    "minItems": 1000,
    "items": {
        "type": "object",
        "properties": {
            "name": {"type": "string", "maxLength": 20},
            "kind": {"enum": ["a", "b"]},
            "on": {"type": "boolean"},
        },
        "required": ["name", "kind", "on"],
        "additionalProperties": False,
    },
}


@dataclass
class Stream:
    first: float
    """Seconds to the first token."""
    per_token: float


async def stream(client: httpx.AsyncClient, number: int, tokens: int, schema: Any) -> Stream:
    body: dict[str, Any] = {"prompt": [100 + number, *range(200, 263)], "max_tokens": tokens, "seed": number}
    body |= {"stream": True, "return_token_ids": True}
    body |= {"ignore_eos": True} if schema is None else {"structured_outputs": {"json": schema}}
    asked, times = time.monotonic(), list[float]()
    async with client.stream("POST", "/v1/completions", json=body) as answer:
        async for line in answer.aiter_lines():
            if line.startswith("data: {"):
                choice = json.loads(line[6:])["choices"][0]
                times += [time.monotonic()] * len(choice["token_ids"])
    if len(times) != tokens:
        raise RefusedError(f"--tokens {tokens}: an answer has ended after {len(times)}; name fewer")
    return Stream(times[0] - asked, (times[-1] - times[0]) / (tokens - 1))


async def together(client: httpx.AsyncClient, count: int, tokens: int, masked: int, schema: Any) -> list[Stream]:
    """`masked` of `count` streams have the schema; these come first."""
    schemas = [schema] * masked + [None] * (count - masked)
    return list(await asyncio.gather(*(stream(client, n, tokens, each) for n, each in enumerate(schemas))))


def mean(streams: list[Stream]) -> float:
    return statistics.mean(each.per_token for each in streams)


async def measure(url: str, count: int, tokens: int, rounds: int) -> dict[str, Any]:
    kinds = {"numbers": ENDLESS, "records": RECORDS}
    found: dict[str, Any] = {"streams": count, "tokens": tokens, "rounds": rounds, "free": [], "ratios": {}}
    async with httpx.AsyncClient(base_url=url, timeout=120) as client:
        new = RECORDS | {"maxItems": 5000}
        waits = await asyncio.gather(stream(client, 1, 2, new), stream(client, 2, 2, None))
        found["first_token_ms"] = {
            name: round(1e3 * each.first, 1) for name, each in zip(("masked", "free"), waits, strict=True)
        }
        for number in range(rounds + 1):
            free = mean(await together(client, count, tokens, 0, None))
            found["free"] += [round(1e3 * free, 2)] * bool(number)
            for name, schema in kinds.items():
                whole = mean(await together(client, count, tokens, count, schema))
                half = await together(client, count, tokens, count // 2, schema)
                if number:
                    for label, value in ((name, whole), (f"{name}, free beside", mean(half[count // 2 :]))):
                        found["ratios"].setdefault(label, []).append(round(value / free, 3))
    found["median_ratios"] = {name: round(statistics.median(values), 3) for name, values in found["ratios"].items()}
    return found


def main(words: Sequence[str] | None = None) -> int:
    parser = Parser(prog="bench.mask_time", description=__doc__)
    parser.add_argument(
        "--streams", type=usage.count, nargs="+", default=[1, 4], help="at once; one count after the other"
    )
    parser.add_argument("--tokens", type=usage.at_least(2), default=24, help="of an answer")
    parser.add_argument("--rounds", type=usage.count, default=3)
    parser.add_argument("--out", type=output, help="write the figures as JSON")
    options = parser.parse_args(words)
    return guarded(parser.prog, lambda: carried_out(options))


def carried_out(options: argparse.Namespace) -> int:
    """Raises `RefusedError`."""
    port, model = free_port(), made("the random model", lambda: random_model("llama", "small"))
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "semipd_engine.cli", "serve", "--model", str(model)]
        place = ["--port", str(port), "--run-dir", f"{folder}/run"]
        place += ["--dtype", "bfloat16", "--kv-cache-memory", str(1 << 29)]
        url = f"http://127.0.0.1:{port}"
        with running([*command, *place], Path(folder, "log"), lambda: answers(f"{url}/ready"), 180):
            runs = [asyncio.run(measure(url, count, options.tokens, options.rounds)) for count in options.streams]
    told = {"commit": commit(), "machine": machine(), "versions": versions(), "runs": runs}
    text = json.dumps(told, indent=1)
    print(text)
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(text + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
