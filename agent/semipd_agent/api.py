"""The agent's HTTP API (FastAPI). Checks the token and the form of a request; what it means is `Service`'s business."""

from __future__ import annotations

import hmac
import json
from collections.abc import Awaitable, Callable, Iterator
from typing import Protocol

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, StreamingResponse
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from starlette.exceptions import HTTPException

from semipd_agent.config import ConfigRefused
from semipd_agent.contract import AgentConfig, Health, StatusReport, token_digest

ANSWERS = {"StaleGeneration": 409, "GenerationConflict": 409, "UnsupportedVersion": 422}


class Service(Protocol):
    """What the API serves."""

    def report(self) -> StatusReport: ...
    def configure(self, config: AgentConfig) -> None:
        """Raises `ConfigRefused`."""

    def ready(self) -> bool: ...
    def health(self) -> Health: ...
    def recording(self) -> Iterator[bytes]: ...
    def token_digests(self) -> tuple[str, ...]: ...


def create_app(service: Service, registry: CollectorRegistry) -> FastAPI:
    app = FastAPI(title="SemiPD agent", docs_url=None, redoc_url=None, openapi_url=None)

    @app.middleware("http")
    async def authenticate(request: Request, call_next: Callable[[Request], Awaitable[Response]]) -> Response:
        # Before routing and before the body is read: a caller without a token learns nothing about /v1.
        path = request.url.path
        if (path == "/v1" or path.startswith("/v1/")) and not authorized(
            request.headers.get("authorization", ""), service.token_digests()
        ):
            response = _error(401, "Unauthorized", "send Authorization: Bearer with the service's token")
            response.headers["WWW-Authenticate"] = "Bearer"
            return response
        return await call_next(request)

    @app.get("/v1/status")
    async def status() -> Response:
        return _json(service.report())

    @app.get("/v1/recording")
    async def recording() -> Response:
        return StreamingResponse(service.recording(), media_type="application/x-ndjson")

    @app.put("/v1/config")
    async def configure(config: AgentConfig) -> Response:
        try:
            service.configure(config)
        except ConfigRefused as e:
            return _error(ANSWERS[e.code], e.code, str(e))
        return _json(service.report())

    @app.get("/health")
    async def health() -> Response:
        return _json(service.health())

    @app.get("/ready")
    async def ready() -> Response:
        ok = service.ready()
        return JSONResponse({"ready": ok}, status_code=200 if ok else 503)

    @app.get("/metrics")
    async def metrics() -> Response:
        return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, e: RequestValidationError) -> Response:
        first = e.errors()[0]
        where = ".".join(str(part) for part in first["loc"] if part != "body")
        return _error(422, "InvalidConfig", f"{where or 'body'}: {first['msg']}")

    @app.exception_handler(HTTPException)
    async def http_error(_: Request, e: HTTPException) -> Response:
        return _error(e.status_code, {404: "NotFound", 405: "MethodNotAllowed"}.get(e.status_code, "Error"), e.detail)

    return app


def authorized(header: str, digests: tuple[str, ...]) -> bool:
    """Does ``Authorization: Bearer <token>`` carry a token whose SHA-256 is accepted? Time does not tell which."""
    scheme, _, token = header.partition(" ")
    digest = token_digest(token.strip())
    matches = [hmac.compare_digest(digest, accepted) for accepted in digests]
    return scheme.lower() == "bearer" and bool(token.strip()) and any(matches)


def _json(model: StatusReport | Health) -> Response:
    return Response(model.model_dump_json(by_alias=True), media_type="application/json")


def _error(status: int, code: str, message: str) -> Response:
    body = json.dumps({"error": {"code": code, "message": message}})
    return Response(body, status_code=status, media_type="application/json")
