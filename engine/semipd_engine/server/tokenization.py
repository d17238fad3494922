"""POST /tokenize and /detokenize: for clients that count tokens, or tokenise here. Both may be asked for much: texts
are bounded in length and in number, and answers are made where they hold up no stream."""

from __future__ import annotations

from fastapi import Request, Response

from semipd_engine.cards.tokenizer import TextTooLong
from semipd_engine.server.bodies import most_values
from semipd_engine.server.errors import ApiError
from semipd_engine.server.handlers import judge_fields, render
from semipd_engine.server.http_io import json_response
from semipd_engine.server.json_text import dump
from semipd_engine.server.params import check_token_ids
from semipd_engine.server.protocol import DetokenizeRequest, TokenizeRequest
from semipd_engine.server.service import Service


async def tokenize(service: Service, request: Request) -> Response:
    """Ids of a text of any length that `detokenize` would take back."""
    body, size = await service.bodies.read(request, TokenizeRequest, service.max_model_len)
    service.check_model(body.model or None)
    judge_fields(service, request, body)
    special = body.prompt is not None if body.add_special_tokens is None else body.add_special_tokens
    most = most_values(service.max_model_len)

    def answer() -> bytes:
        text = render(service, body) if body.prompt is None else body.prompt
        try:
            ids: list[int] | None = service.tokenizer.encode(text, special, most)
        except TextTooLong:
            ids = None
        if ids is None or len(ids) > most:
            field = "messages" if body.prompt is None else "prompt"
            message = f"{field}: more than {most} tokens; send less at once"
            raise ApiError(413, message, param=field, code="body_too_large")
        found = {"count": len(ids), "max_model_len": service.max_model_len, "tokens": ids}
        if body.return_token_strs:
            found["token_strs"] = [service.tokenizer.piece(token_id) for token_id in ids]
        return dump(found)

    with service.text_place():
        return json_response(await service.encoding.in_turn(size, answer, request.receive))


async def detokenize(service: Service, request: Request) -> Response:
    body, size = await service.bodies.read(request, DetokenizeRequest, service.max_model_len)
    service.check_model(body.model or None)
    judge_fields(service, request, body)
    check_token_ids("tokens", body.tokens, service.card.vocab_size)

    def answer() -> bytes:
        return dump({"prompt": service.tokenizer.decode_long(body.tokens)})

    with service.text_place():
        return json_response(await service.encoding.in_turn(size, answer, request.receive))
