"""Which pages may ask (CORS): starlette's rules, and refusals in the shape that all others have."""

from __future__ import annotations

from starlette.datastructures import Headers
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response

from semipd_engine.server.errors import ApiError
from semipd_engine.server.http_io import error_response


class Cors(CORSMiddleware):
    def preflight_response(self, request_headers: Headers) -> Response:
        response = super().preflight_response(request_headers)
        if response.status_code < 400:
            return response
        message = (
            f"{bytes(response.body).decode()}: {request_headers['origin']}; --allowed-origins names those that may ask"
        )
        refused = error_response(ApiError(400, message, param="origin", code="origin_not_allowed"))
        refused.headers.update({name: value for name, value in response.headers.items() if name not in refused.headers})
        return refused
