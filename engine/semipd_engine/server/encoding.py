"""Texts of requests become ids: in turns, beside the streams, and no more of a text than may be served.

Knows no requests and no core. A thread tokenises while the event loop goes on; what is short is done on the loop.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from starlette.types import Receive

from semipd_engine.cards.tokenizer import TextTooLong, Tokenizer
from semipd_engine.server.body_values import Prompt
from semipd_engine.server.http_io import while_connected
from semipd_engine.server.params import check_prompt_length, check_token_ids, too_long

INLINE_BYTES = 4096
"""Bodies up to this size are tokenised on the event loop (well under a millisecond); larger ones in a thread."""
LARGE_BYTES = 1 << 16
"""Larger ones have a thread of their own: nobody waits for a text that is much longer than his."""
CHARACTERS_PER_TOKEN = 4.0
"""Of a text, until this model's own figure is known."""

T = TypeVar("T")


class Encoding:
    """Of one api. `most` is always the model's length, 0 while that is not known."""

    def __init__(self, tokenizer: Tokenizer, vocab_size: int) -> None:
        self._tokenizer = tokenizer
        self._vocab_size = vocab_size
        self._threads = [ThreadPoolExecutor(1, name) for name in ("tokenise", "tokenise-large")]
        self._encoded = (0, 0)
        """Characters and tokens of all texts so far."""

    def estimate(self, prompt: Prompt | int, most: int) -> int:
        """Tokens of a prompt, or of a text with so many characters; not tokenised, and at most what the model takes."""
        if isinstance(prompt, list):
            tokens = len(prompt)
        else:
            characters, encoded = self._encoded
            rate = characters / encoded if encoded else CHARACTERS_PER_TOKEN
            tokens = round((prompt if isinstance(prompt, int) else len(prompt)) / rate)
        return max(1, min(tokens, most or tokens))

    async def in_turn(self, size: int, work: Callable[[], T], receive: Receive) -> T:
        """Run `work` (rendering, encoding) for a body of `size` bytes without stopping the streams. Bodies of like size
        finish in the order they came in. Raises `ClientDisconnect` if the client does not wait for it; work of a client
        that leaves before its turn is never begun."""
        if size <= INLINE_BYTES:
            return work()
        thread = self._threads[size > LARGE_BYTES]

        async def done() -> T:
            return await asyncio.get_running_loop().run_in_executor(thread, work)

        return await while_connected(receive, done())

    def ids(self, prompts: list[Prompt], add_special_tokens: bool, most: int, scored: bool = False) -> list[list[int]]:
        """Of each prompt, checked against the vocabulary and the model's length. `scored`: nothing is to follow them.
        Raises `ApiError` (400)."""
        encoded = []
        for prompt in prompts:
            if isinstance(prompt, str):
                try:
                    ids = self._tokenizer.encode(prompt, add_special_tokens, most)
                except TextTooLong:
                    raise too_long(f"more than {most}", most, scored) from None
                self._encoded = (self._encoded[0] + len(prompt), self._encoded[1] + len(ids))
            else:
                ids = prompt
            check_token_ids("prompt", ids, self._vocab_size)
            check_prompt_length(len(ids), most, scored)
            encoded.append(ids)
        return encoded

    def close(self) -> None:
        for thread in self._threads:
            thread.shutdown(wait=False, cancel_futures=True)
