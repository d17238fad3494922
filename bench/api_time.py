"""What a streamed token costs the api process (``python -m bench.api_time``): CPU time, without an engine behind it.

The real api process serves a model folder; a core that computes nothing gives each of its streams (chats) a token every
10 ms. The process's CPU time over the measured tokens comes from /proc. `--tree`, given twice, measures two checkouts
in turns.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from tests.engine.proc import cpu_seconds

from bench.usage import count, guarded, made, number
from e2e.lib.models import smollm2
from e2e.lib.process import running
from semipd_engine.ipc import frames
from semipd_engine.ipc.requests import AbortRequest, AddRequest, ApiToCore, CoreState, Outputs, RequestOutput
from semipd_engine.usage import Parser

HELLO = CoreState(ready=True, state="ready", admitting=True, max_model_len=8192, blocks_total=1000, blocks_free=1000)


class TokenCore:
    """Core's socket: every sequence gets the next token of a text each `period` seconds, for ever."""

    def __init__(self, ids: list[int], period: float) -> None:
        self._ids, self._period = ids, period
        self._keys: dict[str, int] = {}
        self.tokens = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(frames.encode(HELLO))
        speaking = asyncio.create_task(self._speak(writer))
        decoder: frames.Decoder[ApiToCore] = frames.Decoder(ApiToCore)
        with contextlib.suppress(ConnectionResetError):  # the api is killed with words of ours unread
            while data := await reader.read(1 << 16):
                for message in decoder.feed(data):
                    if isinstance(message, AddRequest):
                        self._keys[message.key] = 0
                    elif isinstance(message, AbortRequest):
                        self._keys.pop(message.key, None)
        speaking.cancel()

    async def _speak(self, writer: asyncio.StreamWriter) -> None:
        due = time.monotonic()
        while True:
            outputs = []
            for key, at in self._keys.items():
                first = due if at == 0 else None
                token = [self._ids[at % len(self._ids)]]
                outputs.append(RequestOutput(key, token, first_token_at=first, scheduled_at=first))
                self._keys[key] = at + 1
            if outputs:
                writer.write(frames.encode(Outputs(outputs)))
            self.tokens += len(outputs)
            due += self._period
            await asyncio.sleep(max(0.0, due - time.monotonic()))


async def stream(port: int, model: str) -> None:
    """One chat, read for ever: raises if it is refused, or ends."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    body = {"model": model, "stream": True, "max_tokens": 8000, "messages": [{"role": "user", "content": "Tell me."}]}
    text = json.dumps(body).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: {len(text)}\r\n\r\n"
    writer.write(head.encode() + text)
    status = await reader.readline()
    if b" 200 " not in status:
        raise RuntimeError(f"{status!r} {await reader.read(1 << 12)!r}")
    while await reader.read(1 << 16):
        pass
    raise RuntimeError("the stream has ended")


async def measure(tree: Path, model: Path, streams: int, seconds: float) -> float:
    """CPU seconds of the api process for a token."""
    from tokenizers import Tokenizer

    text = Path(__file__).with_name("deployment.py").read_text(encoding="utf-8")
    ids = Tokenizer.from_file(str(model / "tokenizer.json")).encode(text, add_special_tokens=False).ids
    core = TokenCore(ids, period=0.01)
    with tempfile.TemporaryDirectory() as run_dir, contextlib.ExitStack() as child:
        server = await asyncio.start_unix_server(core.serve, f"{run_dir}/core.sock")
        port, log = Path(run_dir, "api.port"), Path(run_dir, "api.log")
        arguments = ["--model", str(model), "--run-dir", run_dir, "--port", "0", "--host", "127.0.0.1"]
        command = ["env", f"PYTHONPATH={tree / 'engine'}", sys.executable, "-m", "semipd_engine.server", *arguments]
        started = running([*command, "--served-model-name", "m"], log, port.exists, 120)
        api = await asyncio.to_thread(child.enter_context, started)
        async with asyncio.TaskGroup() as group:
            number = int(await asyncio.to_thread(port.read_text, encoding="utf-8"))
            clients = [group.create_task(stream(number, "m")) for _ in range(streams)]
            await asyncio.sleep(2)
            used, tokens = cpu_seconds(api.pid), core.tokens
            await asyncio.sleep(seconds)
            used, tokens = cpu_seconds(api.pid) - used, core.tokens - tokens
            for client in clients:
                client.cancel()
        api.kill()  # its streams would hold up its end
        await asyncio.to_thread(api.wait)
        server.close()
    return used / tokens


def checkout(text: str) -> Path:
    tree = Path(text).resolve()
    if not (tree / "engine" / "semipd_engine" / "server").is_dir():
        raise argparse.ArgumentTypeError(f"{text}: there is no engine/semipd_engine in it; name a checkout")
    return tree


def main(words: Sequence[str] | None = None) -> int:
    parser = Parser(prog="bench.api_time", description=__doc__)
    parser.add_argument("--streams", type=count, default=8)
    parser.add_argument("--seconds", type=number, default=8.0)
    parser.add_argument("--repeats", type=count, default=5)
    parser.add_argument(
        "--tree", type=checkout, action="append", help="to measure instead of this; several go in turns"
    )
    options = parser.parse_args(words)
    return guarded(parser.prog, lambda: carried_out(options))


def carried_out(options: argparse.Namespace) -> int:
    """What was found so far is told, too, where it is interrupted. Raises `RefusedError`."""
    model, found = made("SmolLM2-135M", smollm2), defaultdict[Path, list[float]](list)
    try:
        for _ in range(options.repeats):
            for tree in options.tree or [Path.cwd()]:
                seconds = asyncio.run(measure(tree, model, options.streams, options.seconds))
                found[tree].append(seconds)
    finally:
        for tree, values in found.items():
            each = " ".join(f"{1e6 * value:.0f}" for value in values)
            us = 1e6 * statistics.median(values)
            print(f"{tree}: {us:.0f} us of CPU for a token of {options.streams} streams ({each})")
    return 0


if __name__ == "__main__":
    sys.exit(main())
