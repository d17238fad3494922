"""Serves the API over TLS to kube-apiserver's front proxy, and to nobody else.

A certificate, a CA or a front proxy that changes takes effect with the next connection; nothing is restarted. Whatever
is missing is looked for again: the operator's other work never waits for it. Only the leader runs it.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
import tempfile
from collections.abc import Awaitable, Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path

from aiohttp import web

from semipd_operator.answers import ApiAway, ApiRefused
from semipd_operator.kube import Kube
from semipd_operator.metricsapi import wire
from semipd_operator.metricsapi.authorization import Authorizer
from semipd_operator.metricsapi.certificates import Pair
from semipd_operator.metricsapi.credentials import Credentials, NotInPlace
from semipd_operator.metricsapi.frontproxy import CONFIG_MAP, AggregationOff, Caller, FrontProxy, Unauthenticated
from semipd_operator.metricsapi.registration import BelongsToAnother, Door, Registration
from semipd_operator.render.autoscaler import UTILIZATION_METRIC
from semipd_operator.status.scaling import EXTERNAL_METRICS_API

log = logging.getLogger(__name__)

ROOT = f"/apis/{EXTERNAL_METRICS_API}"
_LOOK_SECONDS, _MISSING_SECONDS = 10.0, 2.0
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
_CALLER = web.RequestKey("caller", Caller)


class MetricsAPI:
    def __init__(
        self,
        kube: Kube,
        credentials: Credentials,
        port: int,
        values: Callable[[str], Mapping[str, float]],
        door: Door,
        registration: Registration,
    ) -> None:
        """`values`: namespace -> service -> how full it is, for the services of which that is known."""
        self._kube, self._credentials, self._port, self._values = kube, credentials, port, values
        self._door, self._registration = door, registration
        self._authorizer = Authorizer(kube)
        self._pair: Pair | None = None
        self._proxy: FrontProxy | None = None
        self._context: ssl.SSLContext | None = None
        self._site: web.TCPSite | None = None
        self._complaint = ""

    async def run(self) -> None:
        """Until cancelled."""
        runner = web.AppRunner(self.application(), access_log=None, shutdown_timeout=2)
        await runner.setup()
        try:
            while True:
                await self._rest(_LOOK_SECONDS if await self._look(runner) else _MISSING_SECONDS)
        finally:
            await runner.cleanup()

    def _latest(self, connection: ssl.SSLSocket | ssl.SSLObject, name: str | None, context: ssl.SSLContext) -> None:
        """Each handshake is given the newest context, whichever one the port was opened with."""
        if self._context is not None:
            connection.context = self._context

    async def _rest(self, seconds: float) -> None:
        """Cut short when the API comes to be wanted, or not to be."""
        wanted = self._registration.wanted()
        for _ in range(max(1, round(seconds / _MISSING_SECONDS))):
            await asyncio.sleep(_MISSING_SECONDS)
            if self._registration.wanted() != wanted:
                return

    async def _look(self, runner: web.AppRunner) -> bool:
        """Reads what may have changed and serves by it; whether nothing is missing."""
        settled = False
        try:
            namespace, name = CONFIG_MAP
            proxy = FrontProxy.parse(await self._kube.get("v1", "ConfigMap", namespace, name))
            credential = await self._credentials.current()
            if (credential.server, proxy) != (self._pair, self._proxy):
                self._context = tls_context(credential.server, proxy.client_ca)
                self._pair, self._proxy = credential.server, proxy
            await self._open(runner)
            # Last: what is registered answers.
            await self._registration.settle(credential.ca)
            settled = True
        except BelongsToAnother as elsewhere:
            complaint, settled = str(elsewhere), True
        except (NotInPlace, AggregationOff, ApiRefused, ApiAway) as missing:
            complaint = str(missing)
        except Exception as error:  # a damaged file: what served before serves on
            complaint = f"{type(error).__name__}: {error}"
        else:
            complaint = ""
        if complaint and complaint != self._complaint:
            log.warning("external metrics: %s", complaint)
        elif self._complaint and not complaint:
            log.info("external metrics: all is in place")
        self._complaint = complaint
        return settled

    async def _open(self, runner: web.AppRunner) -> None:
        if self._site is None and self._context is not None:
            context = self._context
            context.sni_callback = self._latest
            site = web.TCPSite(runner, port=self._port, ssl_context=context)
            try:
                await site.start()
            except OSError:  # the port is taken: it is tried again, by another site
                await site.stop()
                raise
            self._site = site
        await self._door.open()

    def application(self) -> web.Application:
        application = web.Application(middlewares=[self._authenticate])
        application.add_routes(
            [web.get(ROOT, self._discover), web.get(ROOT + "/namespaces/{namespace}/{metric}", self._read)]
        )
        return application

    @web.middleware
    async def _authenticate(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        proxy = self._proxy
        try:
            if proxy is None:
                raise Unauthenticated("the front proxy is not known yet")
            request[_CALLER] = proxy.identify(_common_name(request), request.headers.items())
            return await handler(request)
        except Unauthenticated as refused:
            return _failure(401, str(refused))
        except (ApiRefused, ApiAway) as refused:  # of the review
            return _failure(503, f"the request cannot be authorised: {refused}")
        except web.HTTPException as error:
            return _failure(error.status, error.reason)

    async def _discover(self, request: web.Request) -> web.Response:
        """For whoever the front proxy speaks for: kube-apiserver looks here as a user without any right or group, and
        where it is refused, discovery is stale for all, and no namespace can be deleted."""
        return web.json_response(wire.resource_list())

    async def _read(self, request: web.Request) -> web.Response:
        namespace, metric, caller = request.match_info["namespace"], request.match_info["metric"], request[_CALLER]
        if not await self._authorizer.may_read_metric(caller, namespace, metric):
            return _failure(403, f"{caller.user} may not list {metric} in {namespace}")
        if metric != UTILIZATION_METRIC:
            return _failure(404, f"there is no metric {metric}: this API serves {UTILIZATION_METRIC}")
        try:
            service = wire.selected_service(request.query.get("labelSelector", ""))
        except wire.BadSelector as bad:
            return _failure(400, str(bad))
        return web.json_response(wire.value_list(self._values(namespace), service, datetime.now(UTC)))


def tls_context(pair: Pair, client_ca: str) -> ssl.SSLContext:
    """A server that serves only clients with a certificate of `client_ca`. Raises `ssl.SSLError` for damaged PEM."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.verify_mode = ssl.CERT_REQUIRED
    # No session is resumed: each connection proves itself against the CA of today.
    context.options |= ssl.OP_NO_TICKET
    context.num_tickets = 0
    context.load_verify_locations(cadata=client_ca)
    with tempfile.TemporaryDirectory() as name:  # openssl takes keys from files only
        certificate, key = Path(name, "tls.crt"), Path(name, "tls.key")
        certificate.write_bytes(pair.certificate)
        key.write_bytes(pair.key)
        context.load_cert_chain(certificate, key)
    return context


def _common_name(request: web.Request) -> str:
    certificate = request.transport.get_extra_info("peercert") if request.transport else None
    parts = [part for attributes in (certificate or {}).get("subject", ()) for part in attributes]
    return next((str(value) for name, value in parts if name == "commonName"), "")


def _failure(code: int, message: str) -> web.Response:
    return web.json_response(wire.failure(code, message), status=code)
