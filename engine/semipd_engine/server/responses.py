"""The JSON shapes of the two completion APIs, whole and in chunks. Pure; knows no sockets and no sampling."""

from __future__ import annotations

import time
from collections.abc import Mapping
from functools import cached_property
from typing import Any

from msgspec import Raw

from semipd_engine.cards.tokenizer import Tokenizer
from semipd_engine.ipc.tokens import TokenLogprobs
from semipd_engine.server.calls import CallDelta
from semipd_engine.server.chat import begun
from semipd_engine.server.json_text import dump, written
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

    def prompt(self, sequence: Sequence, most: int) -> list[Raw | None]:
        """vLLM's shape: for each token of the prompt itself and the likeliest ones, by id; nothing for the first."""
        shown: list[Raw | None] = [None]
        for token_id, logprobs in zip(sequence.prompt_token_ids[1:], sequence.prompt_logprobs, strict=True):
            ranked = {other: (value, rank) for rank, (other, value) in enumerate(logprobs.top[:most], 1)}
            ranked = {token_id: (logprobs.logprob, logprobs.rank)} | ranked
            named = {
                str(other): {"logprob": finite(value), "rank": rank, "decoded_token": self._tokenizer.text([other])}
                for other, (value, rank) in ranked.items()
            }
            shown.append(written(named))
        return shown

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
        echo = self._echo(delta.index, sequence)
        choice: Json = {
            "index": delta.index,
            "text": echo + delta.text,
            "logprobs": self._logprobs(delta, sequence),
            "finish_reason": delta.finish_reason,
            "stop_reason": delta.stop_reason,
        }
        if self._request.return_token_ids:
            choice["token_ids"] = delta.token_ids
            if delta.index not in self._started:
                choice["prompt_token_ids"] = sequence.prompt_token_ids
        if self._request.prompt_logprobs is not None:
            choice["prompt_logprobs"] = self._names.prompt(sequence, self._request.prompt_logprobs)
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

    def _logprobs(self, delta: Delta, sequence: Sequence) -> Json | None:
        """Those of an echo come first; nothing is known of a prompt's first token."""
        most = self._request.logprobs
        if most is None:
            return None
        ids, pairs, offsets = delta.token_ids, list(zip(delta.token_ids, delta.logprobs, strict=True)), delta.offsets
        unknown: list[None] = []
        if self._request.echo:
            number = delta.index // self._request.choices
            text = self._prompts[number]
            offsets = [len(text) + offset for offset in offsets]
            if delta.index not in self._started:
                prompt, literal = sequence.prompt_token_ids, isinstance(self._request.prompt[number], str)
                own = sequence.prompt_offsets(text, literal, self._request.add_special_tokens)
                ids, unknown, offsets = prompt + ids, [None], own + offsets
                pairs = [*zip(prompt[1:], (best(each, most) for each in sequence.prompt_logprobs), strict=True), *pairs]
        return {
            "tokens": [self._names.text(token_id) for token_id in ids],
            "token_logprobs": unknown + [finite(logprobs.logprob) for _, logprobs in pairs],
            "top_logprobs": unknown + [written(self._names.distinct(*each)) for each in pairs],
            "text_offset": offsets,
        }


class ChatShape:
    """POST /v1/chat/completions."""

    prefix = "chatcmpl"
    object = "chat.completion"
    chunk_object = "chat.completion.chunk"

    def __init__(self, request: ChatRequest, tokenizer: Tokenizer) -> None:
        self._request = request
        self._names = TokenNames(tokenizer, request.return_tokens_as_token_ids)

    @cached_property
    def _echo(self) -> str:
        """vLLM's, of a chat: the message that the answer goes on with."""
        return begun(self._request.messages) if self._request.echo else ""

    def opening(self, index: int) -> Json | None:
        """The first chunk of a choice names the role."""
        delta = {"role": "assistant", "content": self._echo}
        return {"index": index, "delta": delta, "logprobs": None, "finish_reason": None}

    def extra(self, sequences: list[Sequence]) -> Json:
        extra: Json = {"prompt_token_ids": sequences[0].prompt_token_ids} if self._request.return_token_ids else {}
        if self._request.prompt_logprobs is not None:
            extra["prompt_logprobs"] = self._names.prompt(sequences[0], self._request.prompt_logprobs)
        return extra

    def choice(self, delta: Delta, sequence: Sequence) -> Json:
        message: Json = {"role": "assistant", "content": self._echo + delta.text} | self._reasoning(delta)
        if delta.calls:
            message["tool_calls"] = [
                {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
                for call in merged(delta.calls)
            ]
        if len(message) > 2 and not message["content"]:
            message["content"] = None
        return {"index": delta.index, "message": message} | self._rest(delta)

    def chunk(self, delta: Delta, sequence: Sequence) -> Json:
        new: Json = {"content": delta.text} if delta.text else {}
        if delta.reasoning:
            new |= self._reasoning(delta)
        if delta.calls:
            new["tool_calls"] = [_call_chunk(call) for call in merged(delta.calls)]
        return {"index": delta.index, "delta": new} | self._rest(delta)

    def _reasoning(self, delta: Delta) -> Json:
        """Under both names that vLLM has given it."""
        shown = delta.reasoning and self._request.include_reasoning is not False
        return {"reasoning": delta.reasoning, "reasoning_content": delta.reasoning} if shown else {}

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
    if delta.calls or (delta.reasoning and isinstance(request, ChatRequest) and request.include_reasoning is not False):
        return True
    wants_tokens = request.return_token_ids or bool(delta.logprobs)
    return bool(delta.text) or delta.finish_reason is not None or (wants_tokens and bool(delta.token_ids))


def merged(calls: list[CallDelta]) -> list[CallDelta]:
    """One for each call, with all that is new of it."""
    found: dict[int, CallDelta] = {}
    for call in calls:
        known = found.setdefault(call.index, CallDelta(call.index))
        known.id, known.name = known.id or call.id, known.name or call.name
        known.arguments += call.arguments
    return list(found.values())


def _call_chunk(call: CallDelta) -> Json:
    """The first one of a call has its id and name."""
    function: Json = {"arguments": call.arguments}
    if not call.id:
        return {"index": call.index, "function": function}
    return {"index": call.index, "id": call.id, "type": "function", "function": {"name": call.name} | function}


def best(logprobs: TokenLogprobs, most: int) -> TokenLogprobs:
    """With no more of the likeliest tokens than that."""
    return TokenLogprobs(logprobs.logprob, logprobs.top[:most], logprobs.rank)


def finite(logprob: float) -> float:
    return max(logprob, LOWEST_LOGPROB)
