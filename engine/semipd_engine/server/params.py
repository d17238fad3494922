"""From a request's fields to the engine's `Sampling`: defaults filled in, ranges checked against the model.

Pure. Precedence: the request, then generation_config.json, then the neutral value (temperature 1).
"""

from __future__ import annotations

import random
from typing import TypeVar

from semipd_engine.cards.model_card import ModelCard
from semipd_engine.ipc.tokens import Sampling, pack_bias
from semipd_engine.server.errors import ApiError, bad_request
from semipd_engine.server.protocol import ChatRequest, CompletionRequest, GenerationRequest

SEED_MASK = 2**63 - 1
ANY_SEED = -1
"""What clients of vLLM send for none."""
GREEDY_BELOW = 1e-5
"""A temperature below this is greedy: dividing logits by it would only overflow."""

LEAST_TOP_P = 1e-9
"""Smaller ones count as this, which keeps the likeliest token alone as well: it has more than that of any vocabulary.
The engine computes in float32, where less might be nothing."""
LEAST_REPETITION_PENALTY = 1e-6
"""Smaller ones count as this: logits over it, and then over a temperature of `GREEDY_BELOW`, stay finite in float32."""

COMPLETION_TOKENS = 16
"""The output of a completion that asks for no length."""

MAX_PROMPT_LOGPROBS = 1 << 18
"""Of one request, the chosen tokens' included: a whole prompt of 128k tokens with the likeliest of each."""

T = TypeVar("T", int, float)


def resolve(request: GenerationRequest, prompt_tokens: int, card: ModelCard, max_model_len: int) -> Sampling:
    """The sampling of choice 0. Raises `ApiError` (400) for what this model cannot do."""
    defaults = card.defaults
    max_tokens = _max_tokens(request, prompt_tokens, defaults.max_new_tokens, max_model_len)
    min_tokens = request.min_tokens or 0
    if min_tokens > (shown := 0 if request.scores_alone else max_tokens):
        raise bad_request("min_tokens", f"{min_tokens} is more than max_tokens ({shown}); lower it")
    temperature = _first(request.temperature, defaults.temperature, 1.0)
    greedy = temperature < GREEDY_BELOW
    stop_ids = dict.fromkeys(request.stop_token_ids or ())
    if not request.ignore_eos:
        stop_ids |= dict.fromkeys(card.eos_token_ids)
    logit_bias = request.logit_bias or {}
    for field, ids in (("logit_bias", logit_bias), ("stop_token_ids", request.stop_token_ids or ())):
        check_token_ids(field, ids, card.vocab_size)
    return Sampling(
        temperature=0.0 if greedy else temperature,
        top_p=1.0 if greedy else max(LEAST_TOP_P, _first(request.top_p, defaults.top_p, 1.0)),
        top_k=0 if greedy else max(0, _first(request.top_k, defaults.top_k, 0)),
        min_p=0.0 if greedy else _first(request.min_p, defaults.min_p, 0.0),
        seed=random.getrandbits(63) if request.seed in (None, ANY_SEED) else request.seed & SEED_MASK,
        presence_penalty=request.presence_penalty or 0.0,
        frequency_penalty=request.frequency_penalty or 0.0,
        repetition_penalty=max(
            LEAST_REPETITION_PENALTY, _first(request.repetition_penalty, defaults.repetition_penalty, 1.0)
        ),
        logit_bias=pack_bias(logit_bias),
        logprobs=_logprobs(request),
        prompt_logprobs=_prompt_logprobs(request),
        stop_token_ids=tuple(stop_ids),
        min_tokens=min_tokens,
        max_tokens=max_tokens,
    )


def check_scores(request: GenerationRequest, prompt_tokens: int) -> None:
    """Raises `ApiError` (400) for a request with more log-probabilities of its prompts, of so many tokens in all, than
    an answer may have. A completion shows them with each choice."""
    most = _prompt_logprobs(request)
    shown = 1 if isinstance(request, ChatRequest) else request.choices
    if prompt_tokens * (most + 1) * shown > MAX_PROMPT_LOGPROBS:
        raise bad_request(
            "prompt_logprobs" if most == request.prompt_logprobs else "logprobs",
            f"{prompt_tokens} tokens of prompts, {most + 1} log-probabilities of each, {shown} times: more than "
            f"{MAX_PROMPT_LOGPROBS}; ask for fewer, or send fewer prompts or choices in a request",
        )


def check_token_ids(field: str, token_ids: object, vocab_size: int) -> None:
    """Raises `ApiError` (400) for an id that the model has no embedding for."""
    assert isinstance(token_ids, list | tuple | dict)
    largest = max(token_ids, default=0)
    if largest >= vocab_size:
        raise bad_request(field, f"token id {largest} is outside the vocabulary; ids run from 0 to {vocab_size - 1}")


def check_prompt_length(prompt_tokens: int, max_model_len: int, scored: bool = False) -> None:
    """Raises `ApiError` (400) unless the prompt leaves room for at least one token, where it is not to be `scored`
    alone."""
    if prompt_tokens == 0:
        raise bad_request("prompt", "has no tokens; send at least one")
    if prompt_tokens > max_model_len - (not scored):
        raise too_long(str(prompt_tokens), max_model_len, scored)


def too_long(tokens: str, max_model_len: int, scored: bool = False) -> ApiError:
    """400 for a prompt with so many `tokens`."""
    output = "" if scored else ", of which one token is output"
    return ApiError(
        400,
        f"prompt: has {tokens} tokens, but this model takes at most {max_model_len} for prompt and output together"
        f"{output}; shorten the prompt",
        param="prompt",
        code="context_length_exceeded",
    )


def _max_tokens(request: GenerationRequest, prompt_tokens: int, default: int | None, max_model_len: int) -> int:
    """What fits, unless the request or generation_config.json asks for less; 16 for a completion, as OpenAI has it."""
    check_prompt_length(prompt_tokens, max_model_len, request.scores_alone)
    if request.scores_alone:
        return 1  # which is not shown
    room = max_model_len - prompt_tokens
    field, asked = "max_tokens", request.max_tokens
    if isinstance(request, ChatRequest) and request.max_completion_tokens is not None:
        field, asked = "max_completion_tokens", request.max_completion_tokens
    if asked is None:
        usual = COMPLETION_TOKENS if isinstance(request, CompletionRequest) else room
        return min(room, max(default or usual, request.min_tokens or 0))
    if asked > room:
        raise ApiError(
            400,
            f"{field}: {asked} is too large: the prompt has {prompt_tokens} tokens and this model takes at most "
            f"{max_model_len} for prompt and output together; ask for at most {room}",
            param=field,
            code="context_length_exceeded",
        )
    return asked


def _logprobs(request: GenerationRequest) -> int:
    if isinstance(request, CompletionRequest):
        return -1 if request.logprobs is None else request.logprobs
    if isinstance(request, ChatRequest) and request.logprobs:
        return request.top_logprobs or 0
    return -1


def _prompt_logprobs(request: GenerationRequest) -> int:
    """As many as the answer shows: an echo has log-probabilities like the tokens that follow it."""
    echoed = _logprobs(request) if request.echoes else -1
    return max(echoed, -1 if request.prompt_logprobs is None else request.prompt_logprobs)


def _first(asked: T | None, default: T | None, neutral: T) -> T:
    if asked is not None:
        return asked
    return neutral if default is None else default
