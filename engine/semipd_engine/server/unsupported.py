"""Paths of OpenAI's and vLLM's servers that are not served here: known, so that a client learns more than that there is
no such page, and with what it can use instead."""

from __future__ import annotations

from collections.abc import Mapping

from fastapi import FastAPI, Request, Response

from semipd_engine.server.errors import ApiError

_COMPLETES = "this engine completes text, at /v1/completions and /v1/chat/completions"
_KEEPS_NOTHING = f"nothing is kept between requests; {_COMPLETES}"
_CHAT = "send the conversation to /v1/chat/completions"
_TOKENS = "send the messages to /tokenize, which counts and shows their tokens"
_OPERATED = "a model is loaded for as long as its service runs; change the SemiPDService"

NOT_SERVED: Mapping[str, str] = {
    # Each with all that is below it.
    "/v1/embeddings": _COMPLETES,
    "/v1/responses": _CHAT,
    "/v1/conversations": _CHAT,
    "/v1/chat/completions/render": _TOKENS,
    "/v1/completions/render": "send the prompt to /tokenize, which counts and shows its tokens",
    "/v1/chat/completions/batch": "send the requests beside each other: they are computed together",
    "/v1/chat/completions": _KEEPS_NOTHING,
    "/v1/messages/count_tokens": _TOKENS,
    "/v1/messages": _CHAT,
    "/v1/threads": _CHAT,
    "/v1/assistants": _CHAT,
    "/v1/chatkit": _CHAT,
    "/v1/realtime": "send text to /v1/chat/completions, with stream: true",
    "/v1/audio": _COMPLETES,
    "/v1/images": _COMPLETES,
    "/v1/videos": _COMPLETES,
    "/v1/moderations": _COMPLETES,
    "/v1/edits": _COMPLETES,
    "/v1/engines": "the model has its name in the body; see /v1/models",
    "/v1/files": _KEEPS_NOTHING,
    "/v1/uploads": _KEEPS_NOTHING,
    "/v1/batches": "send the requests beside each other: they are computed together",
    "/v1/vector_stores": _KEEPS_NOTHING,
    "/v1/containers": _KEEPS_NOTHING,
    "/v1/skills": _KEEPS_NOTHING,
    "/v1/evals": "evaluate from outside, with a harness that asks /v1/completions",
    "/v1/fine_tuning": "train elsewhere, and serve the result",
    "/v1/fine-tunes": "train elsewhere, and serve the result",
    "/v1/organization": "keys are lines of the file --api-key-file; figures are in /metrics",
    "/v1/projects": "keys are lines of the file --api-key-file; figures are in /metrics",
    "/v1/rerank": _COMPLETES,
    "/v1/score": _COMPLETES,
    "/v1/load_lora_adapter": "merge the adapter into the model",
    "/v1/unload_lora_adapter": "merge the adapter into the model",
    "/v2/rerank": _COMPLETES,
    "/v2/embed": _COMPLETES,
    "/inference/v1/generate": "send token ids as prompt to /v1/completions, with return_token_ids",
    "/pooling": _COMPLETES,
    "/classify": _COMPLETES,
    "/score": _COMPLETES,
    "/rerank": _COMPLETES,
    "/generative_scoring": "ask /v1/completions with echo and logprobs",
    "/invocations": _COMPLETES,
    "/server_info": "see /version and /v1/models",
    "/sleep": _OPERATED,
    "/wake_up": _OPERATED,
    "/is_sleeping": _OPERATED,
    "/pause": _OPERATED,
    "/resume": _OPERATED,
    "/reset_prefix_cache": "give requests another cache_salt",
}
_ALL = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"]


def refuse_by_name(app: FastAPI) -> None:
    """To be called after all that is served: the first route that fits answers."""
    for path, instead in NOT_SERVED.items():
        served = any(getattr(route, "path", None) == path for route in app.routes)

        async def refused(request: Request, instead: str = instead) -> Response:
            message = f"{request.url.path}: not served; {instead}"
            raise ApiError(404, message, code="unsupported_endpoint")

        # Below what is served there is a name: with the slash alone it is meant itself, and no such path.
        for below in ("/{name}", "/{name}/{rest:path}") if served else ("", "/{rest:path}"):
            app.add_route(path + below, refused, methods=_ALL, include_in_schema=False)
