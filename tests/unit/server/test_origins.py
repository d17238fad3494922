"""Who asks, and how: methods, pages of other origins, a client behind a proxy."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import httpx
import pytest
from tests.unit.server.api_process import Api, StartApi

from e2e.lib.waiting import PATIENCE_S
from semipd_engine.process import bind
from semipd_engine.server.__main__ import Server, configuration
from semipd_engine.server.http_io import client_of

pytestmark = pytest.mark.unit


def test_head_and_other_methods(api: Api) -> None:
    for path in ("/health", "/ready", "/metrics", "/version", "/v1/models", "/v1/models/letters"):
        head = api.client.head(path)
        assert (head.status_code, head.content) == (200, b""), path
    refused = api.client.get("/v1/completions")
    assert (refused.status_code, refused.headers["allow"]) == (405, "POST")
    error = refused.json()["error"]
    assert error["message"] == "GET /v1/completions: Method Not Allowed; use POST" and error["code"] == "unknown_url"
    for path in ("/v1/embeddings", "/v1/files/x", "/nowhere", "/v1/completions"):
        assert api.client.head(path).status_code == api.client.get(path).status_code, path
    assert set(api.client.post("/health").headers["allow"].split(", ")) == {"GET", "HEAD"}
    assert api.client.options("/v1/completions", headers={"origin": "https://page"}).status_code == 405


def test_pages_of_allowed_origins_may_ask(start_api: StartApi, tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("secret\n")
    api = start_api("--allowed-origins", "https://page, https://other", "--api-key-file", str(keys))
    asks = {"access-control-request-method": "POST", "access-control-request-headers": "authorization"}
    preflight = api.client.options("/v1/completions", headers={"origin": "https://page"} | asks)
    assert preflight.status_code == 200
    assert preflight.headers["access-control-allow-origin"] == "https://page"
    assert "POST" in preflight.headers["access-control-allow-methods"]
    refused = api.client.get("/v1/models", headers={"origin": "https://page"})
    assert (refused.status_code, refused.headers["access-control-allow-origin"]) == (401, "https://page")
    assert "access-control-allow-origin" not in api.client.get("/health", headers={"origin": "https://evil"}).headers
    evil = api.client.options("/v1/completions", headers={"origin": "https://evil", "x-request-id": "mine"} | asks)
    error = evil.json()["error"]
    assert (evil.status_code, error["param"], error["code"]) == (400, "origin", "origin_not_allowed")
    assert "https://evil" in error["message"] and "--allowed-origins" in error["message"]
    assert evil.headers["x-request-id"] == "mine" and "access-control-allow-origin" not in evil.headers
    assert evil.headers["vary"] == preflight.headers["vary"]


@pytest.mark.parametrize(
    ("trusted", "seen"),
    [
        (None, " 203.0.113.7"),
        ("10.0.0.0/8", " 127.0.0.1"),
        ("10.0.0.0/8, 127.0.0.0/8", " 203.0.113.7"),
    ],
)
async def test_a_client_has_the_address_that_a_trusted_proxy_tells(
    monkeypatch: pytest.MonkeyPatch, trusted: str | None, seen: str
) -> None:
    """A pod listens on a socket of both families, where IPv4 addresses have IPv6's form."""
    if trusted is not None:
        monkeypatch.setenv("FORWARDED_ALLOW_IPS", trusted)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": client_of(scope).encode()})

    listener = bind("::", 0)
    server = Server(configuration(app))
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    async with httpx.AsyncClient(timeout=PATIENCE_S) as client:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/"
        forged = {"x-forwarded-for": "198.51.100.1, 203.0.113.7"}
        assert (await client.get(url, headers=forged)).text == seen
        assert (await client.get(url)).text == " 127.0.0.1"
    server.should_exit = True
    await serving
