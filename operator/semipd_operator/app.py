"""The running operator: watches, workers, the resync, the agents' tasks and the health endpoint, wired together."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from datetime import timedelta
from typing import Any, cast

import kopf

from semipd_operator import web
from semipd_operator.agents import AgentClient
from semipd_operator.api.v1alpha1.resource import API_VERSION, KIND
from semipd_operator.fleet import Fleet
from semipd_operator.health import Health, Hearing
from semipd_operator.kube import ApiRefused, Kube, connect
from semipd_operator.metrics import QUEUE_LENGTH, RECONCILE_SECONDS, RECONCILES, SERVICES
from semipd_operator.metricsapi import MetricsAPI
from semipd_operator.metricsapi.credentials import Credentials, Mounted, SelfMade
from semipd_operator.publish import Publisher
from semipd_operator.reconcile import Reconciler
from semipd_operator.settings import MetricsAPISettings, Settings
from semipd_operator.watches import kopf_settings, registry
from semipd_operator.workqueue import Key, WorkQueue

log = logging.getLogger(__name__)

_RECONCILE_SECONDS = 60.0
_CRD_WAIT_SECONDS = 2.0


class Operator:
    def __init__(self, kube: Kube, settings: Settings) -> None:
        self.kube, self.settings = kube, settings
        self.queue = WorkQueue()
        self.hearing = Hearing(settings.namespaces)
        self.health = Health(self.queue, self.hearing, settings.deaf_after_seconds)
        self.agents = AgentClient(settings.agent_port, settings.poll_timeout_seconds)
        self.fleet = Fleet(self.agents, settings.poll_seconds, self._round)
        self.instance = os.environ.get("POD_NAME") or socket.gethostname()
        self.publisher = Publisher(kube, self.fleet.views, timedelta(seconds=settings.slo_write_seconds), self.instance)
        self.reconciler = Reconciler(kube, settings, self.fleet, self.publisher)

    async def run(self) -> None:
        """Until cancelled, or until a part that must not end ends."""
        settings = self.settings
        async with web.serve(self.health, settings.health_port, settings.metrics_port):
            await self._wait_for_crd()
            handlers = registry(self.on_service, self.on_child, self.hearing.opened)
            parts = [
                kopf.operator(
                    registry=handlers,
                    settings=kopf_settings(),
                    # Else Kopf asks for the user's name, which an arbitrary uid does not have.
                    identity=cast(Any, self.instance),
                    standalone=True,
                    clusterwide=not settings.namespaces,
                    namespaces=settings.namespaces,
                ),
                self._resync(),
                *(self._work() for _ in range(settings.workers)),
            ]
            if settings.metrics_api is not None:
                parts.append(self._metrics_api(settings.metrics_api).run())
            tasks = [asyncio.ensure_future(part) for part in parts]
            try:
                done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    task.result()
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
                await self.fleet.close()
                await self.agents.close()

    def _metrics_api(self, settings: MetricsAPISettings) -> MetricsAPI:
        credentials: Credentials
        if settings.tls_dir is not None:
            credentials = Mounted(settings.tls_dir)
        else:
            credentials = SelfMade(self.kube, settings.namespace, settings.service, settings.secret)
        return MetricsAPI(self.kube, credentials, settings.port, self.publisher.fullness)

    def on_service(self, key: Key, uid: str, version: str, gone: bool) -> None:
        if gone:
            self.hearing.gone(uid)
        else:
            self.hearing.heard(uid, version)
        self.queue.add(key)

    def on_child(self, key: Key, kind: str, version: str) -> None:
        if not (version and self.reconciler.is_own_write(key, kind, version)):
            self.queue.add(key)

    async def _round(self, key: Key) -> None:
        await self.publisher.publish(key)

    async def _work(self) -> None:
        while True:
            key = await self.queue.get()
            QUEUE_LENGTH.set(len(self.queue))
            again = True
            try:
                with RECONCILE_SECONDS.time():
                    again = await asyncio.wait_for(self.reconciler.reconcile(key), _RECONCILE_SECONDS)
            except ApiRefused as refused:
                log.warning("%s: %s", key, refused)
            except Exception:  # whatever it was, the key comes back and the worker lives on
                log.exception("%s: reconcile failed", key)
            RECONCILES.labels("retried" if again else "done").inc()
            if again:
                self.queue.retry(key)
            else:
                self.queue.done(key)
            SERVICES.set(len(self.publisher))

    async def _resync(self) -> None:
        """Every key again and again: what a lost event or a bug left behind is mended within a period."""
        while True:
            try:
                found = [
                    obj["metadata"]
                    for namespace in self.settings.namespaces or ("",)
                    for obj in await self.kube.list(API_VERSION, KIND, namespace)
                ]
            except Exception as error:  # the health endpoint notices when this goes on
                log.warning("resync: %s", error)
            else:
                self.hearing.listed((meta["uid"], meta["resourceVersion"]) for meta in found)
                for meta in found:
                    self.queue.add(Key(meta["namespace"], meta["name"]))
                self.health.resynced()
            await asyncio.sleep(self.settings.resync_seconds)

    async def _wait_for_crd(self) -> None:
        """Kopf looks once for the resources that it watches, so they must be there by then."""
        told = False
        while True:
            try:
                if await self.kube.knows(API_VERSION, KIND):
                    return
                said = f"the cluster does not know {KIND} {API_VERSION} yet: install the CRD"
            except Exception as error:
                said = f"the API server cannot be asked: {error}"
            if not told:
                log.warning("%s", said)
            told = True
            self.kube.forget_discovery()
            await asyncio.sleep(_CRD_WAIT_SECONDS)


async def run(settings: Settings) -> None:
    async with connect() as kube:
        await Operator(kube, settings).run()
