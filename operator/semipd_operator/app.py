"""The running operator: watches, workers, the resync, the agents' tasks and the health endpoint, wired together.

`Operator` is what a leader does in one term; `run` is the process, which may lead, stand by, and lead again.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from typing import Any

from semipd_operator import web
from semipd_operator.agents import AgentClient
from semipd_operator.answers import ApiAway, ApiRefused
from semipd_operator.api.v1alpha1.resource import API_VERSION, KIND
from semipd_operator.health import Health, WatchFreshness
from semipd_operator.informer import Informer
from semipd_operator.keys import KeyRing
from semipd_operator.kube import Kube, connect
from semipd_operator.leader import Election, LeadershipLost
from semipd_operator.metrics import QUEUE_LENGTH, RECONCILE_SECONDS, RECONCILES, SERVICES
from semipd_operator.metricsapi import MetricsAPI
from semipd_operator.metricsapi.credentials import Credentials, Mounted, SelfMade
from semipd_operator.metricsapi.registration import Backend, Door, Registration
from semipd_operator.poller import AgentPoller
from semipd_operator.reconcile import Next, Reconciler
from semipd_operator.resync import Resync
from semipd_operator.rights import Rights
from semipd_operator.settings import MetricsAPISettings, Settings
from semipd_operator.status_writer import StatusWriter
from semipd_operator.watches import listen, registry
from semipd_operator.workqueue import Key, WorkQueue

log = logging.getLogger(__name__)

_RECONCILE_SECONDS = 60.0
_CRD_WAIT_SECONDS = 2.0
_KEY_SECONDS = 5.0


class ServicesGone(Exception):
    """The API server knows no services any more: their CRD was deleted, and all of them with it."""


class Operator:
    def __init__(
        self,
        kube: Kube,
        settings: Settings,
        instance: str,
        ring: KeyRing | None = None,
        leads: Callable[[], bool] = lambda: True,
    ) -> None:
        """`ring`: where `settings` has its keys from; None: they never change. `leads`: whether it may write."""
        self.kube, self.settings, self.instance, self.ring = kube, settings, instance, ring
        self.queue = WorkQueue()
        self.informer = Informer(settings.namespaces)
        self.watches = WatchFreshness(settings.namespaces)
        self.rights = Rights()
        self.health = Health(self.queue, self.watches, settings.deaf_after_seconds)
        self.agents = AgentClient(settings.agent_port, settings.poll_timeout_seconds)
        self.poller = AgentPoller(self.agents, settings.poll_seconds, self._round)
        slo_period = timedelta(seconds=settings.slo_write_seconds)
        self.statuses = StatusWriter(kube, self.informer, self.poller.views, slo_period, self.instance, leads)
        self.reconciler = Reconciler(kube, settings, self.informer, self.poller, self.statuses)
        self._gone = asyncio.Event()
        self.resync = Resync(
            kube,
            settings.namespaces,
            settings.resync_seconds,
            self.informer,
            self.watches,
            self.rights,
            self.health,
            self.queue,
            self._gone.set,
        )

    async def run(self) -> None:
        """Until cancelled, or until a part that must not end ends. Raises `ServicesGone`."""
        settings = self.settings
        await self._wait_for_crd()
        handlers = registry(self.on_event, self.on_answer, self._gone.set)
        parts = [
            listen(handlers, self.instance, settings.namespaces),
            self._end_with_the_crd(),
            self.resync.run(),
            self.resync.follow_autoscalers(),
            self._follow_keys(),
            *(self._work() for _ in range(settings.workers)),
        ]
        if settings.metrics_api is not None:
            parts.append(self._metrics_api(settings.metrics_api).run())
        tasks = [asyncio.ensure_future(part) for part in parts]
        QUEUE_LENGTH.set_function(lambda: len(self.queue))
        SERVICES.set_function(lambda: len(self.statuses))
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            self.health.ended()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            for gauge in (QUEUE_LENGTH, SERVICES):  # who stands by looks after nothing
                gauge.set_function(lambda: 0)
            self.rights.forget()
            await self.poller.close()
            await self.agents.close()

    def _metrics_api(self, settings: MetricsAPISettings) -> MetricsAPI:
        credentials: Credentials
        annotations = {}
        if settings.tls_dir is not None:
            credentials = Mounted(settings.tls_dir)
            # cert-manager writes the CA of the Certificate that the chart asks for.
            annotations = {"cert-manager.io/inject-ca-from": f"{settings.namespace}/{settings.service}"}
        else:
            credentials = SelfMade(self.kube, settings.namespace, settings.service, settings.secret)
        backend = Backend(settings.namespace, settings.service, settings.service_port)
        door = Door(self.kube, backend, self.settings.lease, os.environ.get("POD_IP", ""), settings.port)
        registration = Registration(self.kube, backend, self._scales_by_our_metrics, annotations)
        return MetricsAPI(self.kube, credentials, settings.port, self.statuses.fullness, door, registration)

    def _scales_by_our_metrics(self) -> bool | None:
        """None while not every service has been looked at: a new leader withdraws nothing in haste."""
        return self.statuses.scales_by_our_metrics() or (False if self.resync.rounds > 1 else None)

    def on_event(self, kind: str, obj: dict[str, Any], gone: bool) -> None:
        """From a watch. Only what is news brings a service back to the workers."""
        if kind == KIND:
            uid, version = obj["metadata"]["uid"], obj["metadata"]["resourceVersion"]
            if gone:
                self.watches.gone(uid)
            else:
                self.watches.heard(uid, version)
            if obj["metadata"]["namespace"] in self.informer.left_out:
                return  # what belongs to it is not known yet: the next list brings that, and then it
        for key in self.informer.told(kind, obj, gone=gone):
            self.queue.add(key)

    def on_answer(self, kind: str, verb: str, namespace: str, status: int) -> None:
        """To a list or a watch of Kopf's."""
        self.rights.answered(kind, verb, namespace, status)
        if (kind, verb, status) == (KIND, "watch", 200):
            self.watches.opened(namespace)
        if (kind, status) == (KIND, 403):
            self.watches.refused(namespace)

    async def _round(self, key: Key) -> None:
        try:
            await self.statuses.publish(key)
        except (ApiRefused, ApiAway) as error:
            log.warning("%s: %s", key, error)

    async def _work(self) -> None:
        await self.informer.complete()
        while True:
            key = await self.queue.get()
            again = Next.RETRY
            try:
                with RECONCILE_SECONDS.time():
                    async with asyncio.timeout(_RECONCILE_SECONDS):
                        again = await self.reconciler.reconcile(key)
            except (ApiRefused, ApiAway) as error:
                log.warning("%s: %s", key, error)
            except Exception:  # whatever it was, the key comes back and the worker lives on
                log.exception("%s: reconcile failed", key)
            RECONCILES.labels("retried" if again is Next.RETRY else "done").inc()
            match again:
                case Next.RETRY:
                    self.queue.retry(key)
                case Next.LATER:
                    self.queue.wait(key)
                case Next.NEWS:
                    self.queue.done(key)

    async def _follow_keys(self) -> None:
        """A key that is replaced is in force without a restart, and the one before it for a while."""
        while True:
            if self.ring is not None and (self.ring.reread() or self.ring.keys[0] != self.settings.key):
                key, *earlier = self.ring.keys
                self.settings = replace(self.settings, key=key, earlier_keys=tuple(earlier))
                self.reconciler.use(self.settings)
                log.info("%d keys are in force", len(self.ring.keys))
                for each in self.statuses.observed():
                    self.queue.add(each)
            await asyncio.sleep(_KEY_SECONDS)

    async def _end_with_the_crd(self) -> None:
        """Kopf does not look for the resources again: what watches a CRD that comes back is another term."""
        await self._gone.wait()
        self.kube.forget_discovery()
        raise ServicesGone(f"the cluster does not know {KIND} {API_VERSION} any more: its CRD was deleted")

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
            self.health.came_round()  # a restart brings neither
            self.kube.forget_discovery()
            await asyncio.sleep(_CRD_WAIT_SECONDS)


async def run(settings: Settings) -> None:
    """The process. Ends on SIGTERM and SIGINT."""
    replica = os.environ.get("POD_NAME") or socket.gethostname()
    loop, this = asyncio.get_running_loop(), asyncio.current_task()
    assert this is not None

    def obey() -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, this.cancel)

    async with connect() as kube:
        election = Election(kube, settings.lease, replica) if settings.lease else None
        # One for the life of the process: a follower, too, remembers the key that was replaced while it stood by.
        ring = KeyRing(settings.key_files) if settings.key_files else None
        judge: list[web.Judge] = [election or web.Unready()]

        async def term() -> None:
            try:
                while True:
                    operator = Operator(kube, settings, replica, ring, election.holds if election else lambda: True)
                    judge[1:] = [operator.health]
                    try:
                        return await operator.run()  # Kopf listens to the signals meanwhile, and ends it
                    except ServicesGone as gone:
                        log.warning("%s", gone)
                    finally:
                        obey()
                    await asyncio.sleep(_CRD_WAIT_SECONDS)  # what the server says of its kinds may be that old
            finally:
                judge[1:] = []

        obey()
        async with web.serve(lambda: judge[-1], settings.health_port, settings.metrics_port):
            try:
                with contextlib.suppress(asyncio.CancelledError):
                    await (election.run(term) if election else term())
            except LeadershipLost as lost:  # an orderly end would wait for the very work that does not end
                log.critical("%s", lost)
                logging.shutdown()
                os._exit(1)
