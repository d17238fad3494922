"""A scheduler without a model: speaks core's messages on the real socket, with deterministic tokens."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import msgspec

from e2e.lib.waiting import PATIENCE_S
from semipd_engine.ipc import frames
from semipd_engine.ipc.requests import (
    ENGINE_ERROR,
    AbortRequest,
    AddRequest,
    ApiToCore,
    CoreState,
    Outputs,
    Rejected,
    RequestOutput,
)
from semipd_engine.ipc.tokens import TokenLogprobs, pack_logprobs

Answer = Callable[[AddRequest], list[int]]


def counted(first: int, many: int) -> Answer:
    """1,000 tokens from `first` on, of `many`, that depend on the prompt."""

    def answer(add: AddRequest) -> list[int]:
        start = sum(add.prompt_token_ids)
        return [first + (start + 7 * i) % many for i in range(1000)]

    return answer


class StandInCore:
    """Runs in a thread of its own. `answer` gives a request's tokens; stop ids and max_tokens are honoured here."""

    def __init__(self, run_dir: Path, vocab_size: int, max_model_len: int = 256) -> None:
        self.path = run_dir / "core.sock"
        self.state = CoreState(
            ready=True, state="ready", admitting=True, max_model_len=max_model_len, blocks_total=64, blocks_free=64
        )
        self.answer: Answer = counted(0, vocab_size)
        self.seconds_per_token = 0.0
        self.tokens_per_output = 1
        self.steps: asyncio.Semaphore | None = None
        """Each output waits for a `step` of its own."""
        self.hold = False
        """Accept requests and say nothing."""
        self.error: str | None = None
        self.error_code = ENGINE_ERROR
        self.added: list[AddRequest] = []
        self.aborted: list[str] = []
        self.rejected: list[Rejected] = []
        self._writers: set[asyncio.StreamWriter] = set()
        self._server: asyncio.Server | None = None
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()

    # ---- for tests, from their own thread ----------------------------------------------------------------------

    def start(self) -> None:
        self._call(self._start())

    def crash(self) -> None:
        """Close the socket and all connections, as a killed process would."""
        self._call(self._stop())

    def set_state(self, **changes: Any) -> None:
        self.state = msgspec.structs.replace(self.state, **changes)
        self._call(self._broadcast())

    def step(self) -> None:
        """Let one more output out."""
        assert self.steps is not None
        self._loop.call_soon_threadsafe(self.steps.release)

    def close(self) -> None:
        self.crash()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _call(self, work: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result(PATIENCE_S)

    # ---- on the loop -------------------------------------------------------------------------------------------

    async def _start(self) -> None:
        self.path.unlink(missing_ok=True)
        self._server = await asyncio.start_unix_server(self._serve, str(self.path))
        self._beat = self._loop.create_task(self._heartbeat())

    async def _stop(self) -> None:
        if self._server is None:
            return
        self._server.close()
        self._server = None
        self._beat.cancel()
        for task in self._tasks.values():
            task.cancel()
        self._tasks.clear()
        for writer in self._writers:
            writer.close()
        self.path.unlink(missing_ok=True)

    async def _heartbeat(self) -> None:
        while True:
            await self._broadcast()
            await asyncio.sleep(1)

    async def _broadcast(self) -> None:
        for writer in self._writers:
            writer.write(frames.encode(self.state))

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        writer.write(frames.encode(self.state))
        decoder: frames.Decoder[ApiToCore] = frames.Decoder(ApiToCore)
        try:
            while data := await reader.read(1 << 16):
                for message in decoder.feed(data):
                    if isinstance(message, AddRequest):
                        self.added.append(message)
                        self._tasks[message.key] = self._loop.create_task(self._generate(message, writer))
                    elif isinstance(message, AbortRequest):
                        self.aborted.append(message.key)
                        if task := self._tasks.pop(message.key, None):
                            task.cancel()
                    else:
                        self.rejected.append(message)
        except ConnectionError:
            pass
        finally:
            self._writers.discard(writer)
            writer.close()

    async def _generate(self, add: AddRequest, writer: asyncio.StreamWriter) -> None:
        if self.hold:
            return
        if self.error is not None:
            writer.write(frames.encode(Outputs([RequestOutput(add.key, error=self.error, error_code=self.error_code)])))
            return
        tokens, finish = self._tokens(add)
        scheduled_at = time.monotonic()
        for start in range(0, len(tokens), self.tokens_per_output):
            await (self.steps.acquire() if self.steps is not None else asyncio.sleep(self.seconds_per_token))
            part = tokens[start : start + self.tokens_per_output]
            output = RequestOutput(
                add.key,
                part,
                [logprobs_of(add, token) for token in part] if add.sampling.logprobs >= 0 else [],
                finish_reason=finish if start + len(part) == len(tokens) else None,
                first_token_at=time.monotonic() if start == 0 else None,
                scheduled_at=scheduled_at if start == 0 else None,
                cached_tokens=len(add.prompt_token_ids) // 2,
                prompt_logprobs=pack_logprobs(prompt_logprobs_of(add) if start == 0 else []),
            )
            writer.write(frames.encode(Outputs([output])))

    def _tokens(self, add: AddRequest) -> tuple[list[int], str]:
        tokens = []
        for token in self.answer(add):
            if token in add.sampling.stop_token_ids and len(tokens) < add.sampling.min_tokens:
                continue
            tokens.append(token)
            if token in add.sampling.stop_token_ids:
                return tokens, "stop"
            if len(tokens) == add.sampling.max_tokens:
                break
        return tokens, "length"


def prompt_logprobs_of(add: AddRequest) -> list[TokenLogprobs]:
    """-token/1000, ranked as its id says, with the ids after it as the most likely ones."""
    most = add.sampling.prompt_logprobs
    return [
        TokenLogprobs(-token / 1000, [(token + 1 + i, -i / 1000) for i in range(most)], token)
        for token in add.prompt_token_ids[1:]
        if most >= 0
    ]


def logprobs_of(add: AddRequest, token: int) -> TokenLogprobs:
    """Something recognisable: -token/1000, and the k ids after the token as the most likely ones."""
    return TokenLogprobs(-token / 1000, [(token + i, -(token + i) / 1000) for i in range(add.sampling.logprobs)])
