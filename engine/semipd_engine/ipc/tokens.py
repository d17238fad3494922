"""How a token is chosen, and what is said of it: parts of the messages between the engine's processes.

Messages (`requests`, `steps`, `workers`) are msgpack-encoded by msgspec, one a datagram or frame. Torch-free: core, api
and workers all import them. Token and block ids are plain ints; request ids inside the engine are ints given by core.
"""

from __future__ import annotations

from array import array
from collections.abc import Mapping

import msgspec


class Sampling(msgspec.Struct, frozen=True, omit_defaults=True):
    """How one token of a request is chosen. Resolved by api: the seed is always set, the stop ids are complete."""

    temperature: float = 1.0
    """0 is greedy."""
    top_p: float = 1.0
    top_k: int = 0
    """0: all tokens."""
    min_p: float = 0.0
    seed: int = 0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: bytes = b""
    """Of `pack_bias`: every plan carries it, so nobody on the way takes it apart."""
    logprobs: int = -1
    """-1: none; k >= 0: the chosen token's logprob and the k most likely ones."""
    prompt_logprobs: int = -1
    """The same for each token of the prompt but the first."""
    stop_token_ids: tuple[int, ...] = ()
    """End-of-sequence ids (unless ignore_eos) and the request's own."""
    min_tokens: int = 0
    """Stop ids cannot be sampled before this many output tokens."""
    max_tokens: int = 16

    @property
    def needs_history(self) -> bool:
        return self.presence_penalty != 0 or self.frequency_penalty != 0 or self.repetition_penalty != 1


def pack_bias(bias: Mapping[int, float]) -> bytes:
    """What is added to the logits of these tokens: their ids, int32 in order, then as many float32."""
    ids = sorted(bias)
    return array("i", ids).tobytes() + array("f", [bias[token] for token in ids]).tobytes()


class TokenLogprobs(msgspec.Struct, frozen=True):
    logprob: float
    top: list[tuple[int, float]] = []
    """(token id, logprob), most likely first; length as asked."""
    rank: int = 0
    """1 for the most likely token; 0: unknown."""


_encoder = msgspec.msgpack.Encoder()
_entries = msgspec.msgpack.Decoder(list[msgspec.Raw])
_entry = msgspec.msgpack.Decoder(TokenLogprobs)
NO_LOGPROBS = msgspec.Raw()
"""Nothing that could be encoded: messages leave it out, being the field's default itself."""


def pack_logprobs(logprobs: list[TokenLogprobs]) -> msgspec.Raw:
    """As a message carries those of a prompt: they may be many, and whoever has the time decodes them."""
    return msgspec.Raw(_encoder.encode(logprobs)) if logprobs else NO_LOGPROBS


def unpack_logprobs(packed: msgspec.Raw) -> list[TokenLogprobs]:
    """One by one: in one go they hold all threads up."""
    return [_entry.decode(each) for each in _entries.decode(packed)] if packed else []
