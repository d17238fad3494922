"""The JSON shapes of the two completion APIs, whole and in chunks. Pure; knows no sockets and no sampling."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from semipd_engine.cards.tokenizer import Tokenizer
from semipd_engine.ipc.messages import TokenLogprobs
from semipd_engine.server.http_io import dump
from semipd_engine.server.protocol import ChatRequest, CompletionRequest, GenerationRequest
from semipd_engine.server.sequence import Delta, Sequence

Json = dict[str, Any]
LOWEST_LOGPROB = -9999.0
"""OpenAI's stand-in for minus infinity, which JSON cannot carry."""


def usage(sequences: list[Sequence], n: int) -> Json:
    """Token counts. A prompt with n choices counts once."""
    prompts = sequences[::n]
    prompt_tokens = sum(sequence.prompt_tokens for sequence in prompts)
    completion_tokens = sum(sequence.output_tokens for sequence in sequences)
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
        "prompt_tokens_details": {"cached_tokens": sum(sequence.cached_tokens for sequence in prompts)},
    }


class TokenNames:
    """How a token is written in logprobs."""

    def __init__(self, tokenizer: Tokenizer, as_ids: bool) -> None:
        self._tokenizer = tokenizer
        self._as_ids = as_ids

    def text(self, token_id: int) -> str:
        if self._as_ids:
            return f"token_id:{token_id}"
        return self._tokenizer.text([token_id])

    def distinct(self, token_id: int, logprobs: TokenLogprobs) -> dict[str, float]:
        """The likeliest tokens by name, the chosen one always among them, as OpenAI's API has it. Of those with equal
        text the chosen, or else the likeliest, has the name; the others are named by their bytes, as there, or id."""
        named = {self.text(token_id): finite(logprobs.logprob)}
        for other, value in logprobs.top:
            if other == token_id:
                continue
            octets = "".join(f"\\x{byte:02x}" for byte in self.utf8(other))
            names = (self.text(other), f"bytes:{octets}", f"token_id:{other}")
            named[next(name for name in names if name not in named)] = finite(value)
        return named

    def utf8(self, token_id: int) -> list[int]:
        return list(self._tokenizer.token_bytes(token_id))


class CompletionShape:
    """POST /v1/completions."""

    prefix = "cmpl"
    object = chunk_object = "text_completion"

    def __init__(self, request: CompletionRequest, tokenizer: Tokenizer) -> None:
        self._request = request
        self._names = TokenNames(tokenizer, request.return_tokens_as_token_ids)
        self._started: set[int] = set()
        self._prompts: dict[int, str] = {}
        """Their texts, by number: choices of one prompt share it."""

    def opening(self, index: int) -> Json | None:
        return None

    def extra(self, sequences: list[Sequence]) -> Json:
        return {}

    def choice(self, delta: Delta, sequence: Sequence) -> Json:
        choice: Json = {
            "index": delta.index,
            "text": self._echo(delta.index, sequence) + delta.text,
            "logprobs": self._logprobs(delta),
            "finish_reason": delta.finish_reason,
            "stop_reason": delta.stop_reason,
        }
        if self._request.return_token_ids:
            choice["token_ids"] = delta.token_ids
            if delta.index not in self._started:
                choice["prompt_token_ids"] = sequence.prompt_token_ids
        self._started.add(delta.index)
        return choice

    chunk = choice

    def _echo(self, index: int, sequence: Sequence) -> str:
        """The prompt, before the first text of a choice."""
        if not self._request.echo or index in self._started:
            return ""
        number = index // self._request.choices
        if number not in self._prompts:
            prompt = self._request.prompt[number]
            self._prompts[number] = prompt if isinstance(prompt, str) else sequence.prompt_text
        return self._prompts[number]

    def _logprobs(self, delta: Delta) -> Json | None:
        if self._request.logprobs is None:
            return None
        pairs = list(zip(delta.token_ids, delta.logprobs, strict=True))
        return {
            "tokens": [self._names.text(token_id) for token_id in delta.token_ids],
            "token_logprobs": [finite(logprobs.logprob) for logprobs in delta.logprobs],
            "top_logprobs": [self._names.distinct(token_id, logprobs) for token_id, logprobs in pairs],
            "text_offset": delta.offsets,
        }


class ChatShape:
    """POST /v1/chat/completions."""

    prefix = "chatcmpl"
    object = "chat.completion"
    chunk_object = "chat.completion.chunk"

    def __init__(self, request: ChatRequest, tokenizer: Tokenizer) -> None:
        self._request = request
        self._names = TokenNames(tokenizer, request.return_tokens_as_token_ids)

    def opening(self, index: int) -> Json | None:
        """The first chunk of a choice names the role."""
        delta = {"role": "assistant", "content": ""}
        return {"index": index, "delta": delta, "logprobs": None, "finish_reason": None}

    def extra(self, sequences: list[Sequence]) -> Json:
        return {"prompt_token_ids": sequences[0].prompt_token_ids} if self._request.return_token_ids else {}

    def choice(self, delta: Delta, sequence: Sequence) -> Json:
        return {"index": delta.index, "message": {"role": "assistant", "content": delta.text}} | self._rest(delta)

    def chunk(self, delta: Delta, sequence: Sequence) -> Json:
        return {"index": delta.index, "delta": {"content": delta.text} if delta.text else {}} | self._rest(delta)

    def _rest(self, delta: Delta) -> Json:
        rest: Json = {
            "logprobs": self._logprobs(delta),
            "finish_reason": delta.finish_reason,
            "stop_reason": delta.stop_reason,
        }
        if self._request.return_token_ids:
            rest["token_ids"] = delta.token_ids
        return rest

    def _logprobs(self, delta: Delta) -> Json | None:
        if not self._request.logprobs:
            return None
        pairs = zip(delta.token_ids, delta.logprobs, strict=True)
        return {"content": [self._token(token_id, logprobs) for token_id, logprobs in pairs]}

    def _token(self, token_id: int, logprobs: TokenLogprobs) -> Json:
        top = [self._named(other, value) for other, value in logprobs.top]
        return self._named(token_id, logprobs.logprob) | {"top_logprobs": top}

    def _named(self, token_id: int, logprob: float) -> Json:
        return {
            "token": self._names.text(token_id),
            "logprob": finite(logprob),
            "bytes": self._names.utf8(token_id),
        }


Shape = CompletionShape | ChatShape


def envelope(
    request_id: str, kind: str, model: str, fingerprint: str, choices: list[Json], created: int | None = None
) -> Json:
    """What every answer and every chunk carries; the choices last."""
    return {
        "id": request_id,
        "object": kind,
        "created": int(time.time()) if created is None else created,
        "model": model,
        "system_fingerprint": fingerprint,
        "choices": choices,
    }


class Chunks:
    """The events of one stream. What all of them carry is encoded once."""

    def __init__(self, request_id: str, kind: str, model: str, fingerprint: str, created: int) -> None:
        common = dump(envelope(request_id, kind, model, fingerprint, [], created))
        self._head = b"data: " + common.removesuffix(b"]}")

    def event(self, choices: list[Json], more: Mapping[str, Any]) -> bytes:
        """`more`: fields beside the choices."""
        rest = b"]," + dump(more)[1:] if more else b"]}"
        return self._head + b",".join(map(dump, choices)) + rest + b"\n\n"


def worth_a_chunk(delta: Delta, request: GenerationRequest) -> bool:
    """A token inside a character, or held back for a stop string, has nothing to show yet."""
    wants_tokens = request.return_token_ids or bool(delta.logprobs)
    return bool(delta.text) or delta.finish_reason is not None or (wants_tokens and bool(delta.token_ids))


def finite(logprob: float) -> float:
    return max(logprob, LOWEST_LOGPROB)
