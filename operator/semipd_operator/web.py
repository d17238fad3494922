"""HTTP for the cluster's eyes: /healthz and /readyz on one port, /metrics on another."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Protocol

from aiohttp import web
from prometheus_client import generate_latest


class Judge(Protocol):
    def starting(self) -> str:
        """What has not come through yet; empty once ready."""

    def complaint(self) -> str:
        """Why the process should be started anew; empty while it should not."""


class Unready:
    """The judge before there is any other."""

    def starting(self) -> str:
        return "starting"

    def complaint(self) -> str:
        return ""


@asynccontextmanager
async def serve(judge: Callable[[], Judge], health_port: int, metrics_port: int) -> AsyncIterator[None]:
    """`judge`: who is asked at this moment; a leader is judged by other things than a follower."""

    async def healthz(_: web.Request) -> web.Response:
        complaint = judge().complaint()
        return web.Response(text=complaint or "ok", status=503 if complaint else 200)

    async def readyz(_: web.Request) -> web.Response:
        starting = judge().starting()
        return web.Response(text=starting or "ok", status=503 if starting else 200)

    async def metrics(_: web.Request) -> web.Response:
        return web.Response(body=generate_latest(), headers={"Content-Type": "text/plain; version=0.0.4"})

    health_app, metrics_app = web.Application(), web.Application()
    health_app.add_routes([web.get("/healthz", healthz), web.get("/readyz", readyz)])
    metrics_app.add_routes([web.get("/metrics", metrics)])
    runners = [web.AppRunner(app, access_log=None) for app in (health_app, metrics_app)]
    try:
        for runner, port in zip(runners, (health_port, metrics_port), strict=True):
            await runner.setup()
            await web.TCPSite(runner, port=port).start()
        yield
    finally:
        for runner in runners:
            await runner.cleanup()
