"""The HTTP surface: routes, API key, and how exceptions become answers. What is behind a route lives elsewhere."""

from __future__ import annotations

import hmac
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

from fastapi import FastAPI, Request, Response
from fastapi import Path as PathParameter
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import HTMLResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from semipd_engine.cards.chat_template import ChatTemplateError
from semipd_engine.cards.tokenizer import TokenizerError
from semipd_engine.contract import EngineOptions, api_keys
from semipd_engine.server import body_schemas, handlers, tokenization
from semipd_engine.server.cors import Cors
from semipd_engine.server.docs_page import docs_page
from semipd_engine.server.errors import ApiError, bad_request, engine_failure
from semipd_engine.server.headers import RequestIds
from semipd_engine.server.held_bodies import HeldBodies
from semipd_engine.server.http_io import KEY, error_response, json_response
from semipd_engine.server.openapi import answers, describe, gives, takes
from semipd_engine.server.protocol import ChatRequest, CompletionRequest, DetokenizeRequest, TokenizeRequest
from semipd_engine.server.service import Service, software_version
from semipd_engine.server.unsupported import refuse_by_name

OPEN_PATHS = frozenset({"/health", "/ready", "/metrics", "/ping", "/openapi.json", "/docs"})
"""Probes, scrapes and readers carry no API key."""

READ = ["GET", "HEAD"]

log = logging.getLogger(__name__)


def create_app(service: Service, options: EngineOptions) -> ASGIApp:
    app = FastAPI(title="semipd", version=software_version(), docs_url=None, redoc_url=None, redirect_slashes=False)
    _add_operations(app, service)
    _add_api(app, service)
    _add_errors(app, service)

    def bound(schemas: Any) -> Any:
        return body_schemas.bound(schemas, service.card.name, service.card.vocab_size, service.max_model_len)

    open_paths = OPEN_PATHS if options.api_key_file is not None else None
    bodies = (CompletionRequest, ChatRequest, TokenizeRequest, DetokenizeRequest)
    describe(app, bound, lambda: service.max_model_len, *bodies, open_paths=open_paths)
    app.add_middleware(HeldBodies)
    if options.api_key_file is not None:
        app.add_middleware(ApiKey, file=options.api_key_file, rejected=lambda: _reject(service, "auth"))
    if origins := [origin.strip() for origin in options.allowed_origins.split(",") if origin.strip()]:
        # Around the key's check: a browser asks without a key whether it may send one.
        shown = ["x-request-id", "x-semipd-unknown-fields", "retry-after"]
        app.add_middleware(Cors, allow_origins=origins, allow_methods=["*"], allow_headers=["*"], expose_headers=shown)
    return RequestIds(app, lambda: service.admission.draining)


def _add_operations(app: FastAPI, service: Service) -> None:
    @app.api_route("/health", methods=READ, **gives(None))
    async def health() -> Response:
        """This process lives."""
        return Response()

    readiness = gives("Readiness")
    readiness["responses"][503] = answers("Not ready; the reason is in the body", "Readiness")

    @app.api_route("/ready", methods=READ, **readiness)
    async def ready() -> Response:
        """Requests are admitted: core is connected, and every phase has a verified worker."""
        reason = service.admission.not_ready_reason()
        return json_response({"ready": reason is None, "reason": reason}, 200 if reason is None else 503)

    @app.api_route("/metrics", methods=READ, **gives("", media_type="text/plain"))
    async def metrics() -> Response:
        """Figures for Prometheus."""
        service.metrics.set("semipd_admitting", service.admission.not_ready_reason() is None)
        return Response(service.metrics.render(), headers={"content-type": CONTENT_TYPE_LATEST})

    @app.api_route("/version", methods=READ, **gives("Version", 401))
    async def show_version() -> Response:
        """The engine's version."""
        return json_response({"version": software_version()})

    @app.api_route("/ping", methods=["GET", "HEAD", "POST"], **gives(None))
    async def ping() -> Response:
        """This process lives; under the name that some platforms ask for."""
        return Response()

    @app.api_route("/load", methods=READ, **gives("Load", 401))
    async def load() -> Response:
        """HTTP requests that are being answered."""
        return json_response({"server_load": len(service.generations.open)})

    page: tuple[Any, str] = (None, "")

    @app.api_route("/docs", methods=READ, include_in_schema=False)
    async def docs() -> Response:
        nonlocal page
        if page[0] is not (document := app.openapi()):
            page = document, docs_page(document)
        return HTMLResponse(
            page[1], headers={"content-security-policy": "default-src 'none'; style-src 'unsafe-inline'"}
        )


def _add_api(app: FastAPI, service: Service) -> None:
    @app.api_route("/v1/models", methods=READ, **gives("Models", 401))
    async def models() -> Response:
        """The one model that is served."""
        return json_response({"object": "list", "data": [_model(service)]})

    @app.api_route("/v1/models/{name:path}", methods=READ, **gives("Model", 401, 404))
    async def model(name: Annotated[str, PathParameter(json_schema_extra={"format": body_schemas.MODEL})]) -> Response:
        """The model, by its name."""
        service.check_model(name)
        return json_response(_model(service))

    @app.post("/v1/completions", **takes(CompletionRequest, "Completion", "CompletionChunk"))
    async def completions(request: Request) -> Response:
        """Continue prompts."""
        return await handlers.completions(service, request)

    @app.post("/v1/chat/completions", **takes(ChatRequest, "ChatCompletion", "ChatChunk"))
    async def chat_completions(request: Request) -> Response:
        """Answer a chat, through the model's chat template."""
        return await handlers.chat_completions(service, request)

    @app.post("/tokenize", **takes(TokenizeRequest, "Tokens"))
    async def tokenize(request: Request) -> Response:
        """Ids of a text, or of a chat's messages."""
        return await tokenization.tokenize(service, request)

    @app.api_route("/tokenizer_info", methods=READ, **gives("TokenizerInfo", 401))
    async def tokenizer_info() -> Response:
        """What evaluation harnesses ask for, to tokenise here: the special tokens and the chat template."""
        special = dict.fromkeys(("bos_token", "eos_token", "pad_token")) | service.card.special_tokens
        return json_response(special | {"chat_template": service.card.chat_templates.get("default")})

    @app.post("/detokenize", **takes(DetokenizeRequest, "Text"))
    async def detokenize(request: Request) -> Response:
        """The text of ids."""
        return await tokenization.detokenize(service, request)

    refuse_by_name(app)


def _add_errors(app: FastAPI, service: Service) -> None:
    @app.exception_handler(ApiError)
    async def api_error(_: Request, error: ApiError) -> Response:
        if error.status < 500 or error.status == 503:  # others were run
            _reject(service, _reason(error))
        return error_response(error)

    @app.exception_handler(TokenizerError)
    async def tokenizer_error(_: Request, error: TokenizerError) -> Response:
        _reject(service, "invalid")
        return error_response(bad_request("prompt", str(error)))

    @app.exception_handler(ChatTemplateError)
    async def template_error(_: Request, error: ChatTemplateError) -> Response:
        _reject(service, "invalid")
        return error_response(bad_request("messages", str(error)))

    @app.exception_handler(ClientDisconnect)
    async def disconnected(_: Request, error: ClientDisconnect) -> Response:
        return Response(status_code=499)  # nobody reads it

    @app.exception_handler(HTTPException)
    async def routing(request: Request, error: HTTPException) -> Response:
        asked, headers = f"{request.method} {request.url.path}", error.headers or {}
        use = f"use {headers['Allow']}" if "Allow" in headers else _where_it_is(request.url.path)
        response = error_response(ApiError(error.status_code, f"{asked}: {error.detail}; {use}", code="unknown_url"))
        response.headers.update(headers)
        return response

    @app.exception_handler(Exception)
    async def unexpected(request: Request, error: Exception) -> Response:
        log.exception("%s %s", request.method, request.url.path, exc_info=error)
        return error_response(engine_failure("the API process failed on this request"))


class ApiKey:
    """Demands ``Authorization: Bearer KEY``. The file is read again for each request, so a new key needs no restart."""

    def __init__(self, app: ASGIApp, file: Path, rejected: Callable[[], None]) -> None:
        self._app = app
        self._file = file
        self._rejected = rejected

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] not in OPEN_PATHS and (problem := self._problem(scope)):
            self._rejected()
            error = ApiError(401, problem, kind="authentication_error", code="invalid_api_key")
            await error_response(error)(scope, receive, send)
            return
        scope[KEY] = _given_key(scope)
        await self._app(scope, receive, send)

    def _problem(self, scope: Scope) -> str | None:
        try:
            keys = api_keys(self._file)
        except OSError:
            return "the server cannot read its API key file (--api-key-file), so it admits nobody"
        given = _given_key(scope)
        if given is not None and any(hmac.compare_digest(given, key) for key in keys):
            return None
        return "Authorization: the API key is missing or wrong; send 'Authorization: Bearer KEY'"


def _given_key(scope: Scope) -> bytes | None:
    header: bytes = dict(scope.get("headers", ())).get(b"authorization", b"")
    scheme, _, given = header.partition(b" ")
    return given.strip() if scheme.lower() == b"bearer" else None


def _where_it_is(path: str) -> str:
    """What a client's base URL often has too little, or too much of, and a path at its end."""
    right = "/v1" + path.removeprefix("/v1").removeprefix("/v1").rstrip("/")
    served = ("/v1/completions", "/v1/chat/completions", "/v1/models")
    if right not in served:
        return "see /docs for what there is"
    return f"use {right}" if path.rstrip("/") == right else f"use {right}, with a base URL that ends in /v1 once"


def _model(service: Service) -> dict[str, object]:
    return {
        "id": service.card.name,
        "object": "model",
        "created": service.started_at,
        "owned_by": "semipd",
        "root": service.card.name,
        "max_model_len": service.max_model_len,
    }


def _reject(service: Service, reason: str) -> None:
    service.metrics.count("semipd_rejected_requests_total", 1, reason)


def _reason(error: ApiError) -> str:
    if error.code == "context_length_exceeded":
        return "too_long"
    if error.status == 429 and error.code in ("ttft_target", "tpot_target"):
        return error.code
    return {404: "not_found", 413: "too_long", 429: "queue_full", 503: "unavailable"}.get(error.status, "invalid")
