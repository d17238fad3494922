"""What is done with each field that vLLM's or OpenAI's completion endpoints have: nothing is dropped without a word.

One table. A field is honoured (the request models have it), harmless (accepted, makes no difference here), or refused
with its name and the remedy, unless its value asks for nothing. Any other field is unknown: it is named in a response
header and counted, and refused with --strict-fields. Knows no requests beyond their names and values.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from pydantic import BaseModel

from semipd_engine.server.errors import bad_request
from semipd_engine.server.protocol import ChatRequest, CompletionRequest

ONLY_COMPLETIONS = frozenset(CompletionRequest.model_fields) - frozenset(ChatRequest.model_fields)
ONLY_CHAT = frozenset(ChatRequest.model_fields) - frozenset(CompletionRequest.model_fields)

_ELSEWHERE: Mapping[type[BaseModel], frozenset[str]] = {ChatRequest: ONLY_COMPLETIONS, CompletionRequest: ONLY_CHAT}

HARMLESS: Mapping[str, str] = {
    "stream_options.include_obfuscation": "chunks are not padded",
    "user": "who asks makes no difference",
    "metadata": "kept by OpenAI with stored answers",
    "store": "nothing is stored",
    "service_tier": "there is one",
    "safety_identifier": "who asks makes no difference",
    "prompt_cache_key": "prefixes are found by their tokens",
    "prompt_cache_options": "prefixes are found by their tokens",
    "prompt_cache_retention": "the prefix cache keeps what it has room for",
    "prediction": "only makes OpenAI's answers come sooner",
    "spaces_between_special_tokens": "only slow tokenizers know it",
    "session_id": "a router's",
    "stream_interval": "chunks hold what has arrived",
    "return_token_offsets": "vLLM's render endpoints",
    "return_mm_kwargs": "vLLM's render endpoints",
    "mm_payload": "vLLM's render endpoints",
    "mm_processor_kwargs": "the model reads text",
    "media_io_kwargs": "the model reads text",
    "guided_decoding_backend": "there is one",
}

_LEAVE_OUT = "leave it out"
REFUSED: Mapping[str, tuple[str, tuple[Any, ...]]] = {
    # Field: (the remedy, values that ask for nothing beside null, false, empty strings, lists and objects).
    "logprob_token_ids": ("ask for top_logprobs (chat) or logprobs (completions) up to 20", ()),
    "allowed_token_ids": ("raise the allowed ones by logit_bias", ()),
    "bad_words": ("lower their tokens by logit_bias", ()),
    "truncate_prompt_tokens": ("shorten the prompt", ()),
    "truncation_side": ("shorten the prompt", ()),
    "prompt_embeds": ("send text or token ids as prompt", ()),
    "suffix": ("put it into the prompt as the model wants it", ()),
    "best_of": ("ask for n answers and choose", (1,)),
    "use_beam_search": ("sample n answers instead", ()),
    "length_penalty": ("it is beam search's", (1, 1.0)),
    "early_stopping": ("it is beam search's", ()),
    "logits_processors": ("use logit_bias", ()),
    "thinking_token_budget": ("use max_tokens", (-1,)),
    "repetition_detection": ("use repetition_penalty or stop", ()),
    "watermarking": (_LEAVE_OUT, ()),
    "chat_template": ("templates come with the model; send a rendered prompt to /v1/completions", ()),
    "functions": ("use tools", ()),
    "function_call": ("use tool_choice", ("none", "auto")),
    "modalities": ("this model writes text", (["text"],)),
    "audio": ("this model writes text", ()),
    "verbosity": ("ask for it in the prompt", ("medium",)),
    "web_search_options": (_LEAVE_OUT, ()),
    "moderation": ("judge what is asked and answered before and behind this engine", ()),
    "return_prompt_text": ("ask /tokenize for the prompt's tokens, /detokenize for their text", ()),
    "routed_experts_prompt_start": (_LEAVE_OUT, (0,)),
    "kv_transfer_params": ("prefill and decode share one cache here", ()),
    "ec_transfer_params": (_LEAVE_OUT, ()),
    "vllm_xargs": (_LEAVE_OUT, ()),
}


def judge(extra: Mapping[str, Any], model: type[BaseModel]) -> list[str]:
    """The unknown ones among the fields that the request model lacks. Raises `ApiError` (400) for a refused one."""
    unknown = []
    elsewhere = _ELSEWHERE.get(model, frozenset())
    for name, value in extra.items():
        if name in REFUSED:
            remedy, neutral = REFUSED[name]
            if not _asks_nothing(value, neutral):
                raise bad_request(name, f"not supported; {remedy}")
        elif name in elsewhere:
            if not _asks_nothing(value, ("none", "auto")):
                raise bad_request(name, f"only /v1/{'' if model is ChatRequest else 'chat/'}completions has it")
        elif name not in HARMLESS:
            unknown.append(name)
    return unknown


def _asks_nothing(value: Any, neutral: tuple[Any, ...]) -> bool:
    return value is None or value is False or value in ("", [], {}) or value in neutral


MOST_NAMES = 16
LONGEST_NAME = 64


def header_value(names: Iterable[str]) -> str:
    """Field names as a header may carry them: printable ASCII, not too many, not too long."""
    shown = [ascii(name)[1:-1].replace(",", "\\x2c")[:LONGEST_NAME] for name in names]
    return ", ".join(shown[:MOST_NAMES] + (["..."] if len(shown) > MOST_NAMES else []))
