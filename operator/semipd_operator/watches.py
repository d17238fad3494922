"""Kopf's part: watches that hand on every event, and nothing else.

Only ``on.event`` handlers, which add neither finalizers nor annotations. It knows no meaning of the objects.
Kopf does not say when a watch is open, and a quiet watch tells nothing: so Kopf is lent a session that is traced.
A resource that is gone (404) ends its loop with tracebacks and leaves its other watches without one: what the API
server says of the services is heard before Kopf hears it.
"""

from __future__ import annotations

import asyncio
import itertools
import os
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import replace
from typing import Any, cast

import aiohttp
import kopf

from semipd_operator.api.v1alpha1.resource import GROUP, PLURAL
from semipd_operator.informer import CHILDREN, KINDS
from semipd_operator.render.names import MANAGED_SELECTOR
from semipd_operator.settings import MANAGER

OnEvent = Callable[[str, dict[str, Any], bool], None]
"""(kind, object, gone)"""
OnAnswer = Callable[[str, str, str, int], None]
"""(kind, verb, namespace, HTTP status): what the API server said to a list or a watch; the namespace is empty for all.
A watch that is accepted (200) has been listed before."""
OnGone = Callable[[], None]
"""The API server knows no services any more: their CRD was deleted."""


async def listen(handlers: kopf.OperatorRegistry, instance: str, namespaces: Collection[str]) -> None:
    """Kopf's loop, until it is cancelled or a signal ends it. Raises what ended one of its parts: `kopf.operator` would
    then first wait for every task of the process, ours included, while nothing is watched any more."""
    tasks = await kopf.spawn_tasks(
        registry=handlers,
        settings=kopf_settings(),
        # Else Kopf asks for the user's name, which an arbitrary uid does not have.
        identity=cast(Any, instance),
        standalone=True,
        clusterwide=not namespaces,
        namespaces=namespaces,
    )
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    for task in done:
        task.result()


def registry(on_event: OnEvent, on_answer: OnAnswer, on_gone: OnGone) -> kopf.OperatorRegistry:
    handlers = kopf.OperatorRegistry()
    sessions: list[tuple[kopf.ConnectionInfo, kopf.AiohttpSession]] = []

    @kopf.on.login(registry=handlers)
    async def login(**kwargs: Any) -> kopf.AiohttpSession | None:
        in_pod = kopf.login_with_service_account(**kwargs)
        info = _by_address(in_pod, os.environ) if in_pod else kopf.login_with_kubeconfig(**kwargs)
        if info is None:
            return None
        # Kopf gives up on credentials that it has seen refused: the same ones must come back as the same object.
        if not sessions or sessions[-1][0] != info:
            sessions[:] = [(info, _traced(info, on_answer, on_gone))]
        return sessions[-1][1]

    def follow(kind: str) -> None:
        async def event(event: Any, **_: Any) -> None:
            on_event(kind, event["object"], event["type"] == "DELETED")

        api_version, plural = KINDS[kind]
        group, _, version = api_version.rpartition("/")
        kopf.on.event(group, version, plural, registry=handlers, id=f"watch-{plural}")(event)

    for kind in KINDS:
        follow(kind)
    return handlers


def _by_address(info: kopf.ConnectionInfo, env: Mapping[str, str]) -> kopf.ConnectionInfo:
    """Kopf names the API server by its DNS name; the kubelet's variables reach it where and when DNS does not work."""
    host, port = env.get("KUBERNETES_SERVICE_HOST", ""), env.get("KUBERNETES_SERVICE_PORT", "443")
    if not host:
        return info
    return replace(info, server=f"https://{f'[{host}]' if ':' in host else host}:{port}")


def _traced(info: kopf.ConnectionInfo, on_answer: OnAnswer, on_gone: OnGone) -> kopf.AiohttpSession:
    """The session that Kopf would make of `info`, and a word of each answer to a list or a watch, and where there is
    nothing to watch."""
    kinds = {plural: kind for kind, (_, plural) in KINDS.items()}

    async def on_request_end(_session: Any, _context: Any, params: aiohttp.TraceRequestEndParams) -> None:
        *_, before, namespace, plural = ("", "", *params.url.path.split("/"))
        if plural not in kinds:
            return
        if plural == PLURAL and params.response.status == 404:
            on_gone()
            await asyncio.Event().wait()  # Kopf, which is about to be ended, never has the answer
        verb = "watch" if params.url.query.get("watch") == "true" else "list"
        on_answer(kinds[plural], verb, namespace if before == "namespaces" else "", params.response.status)

    trace = aiohttp.TraceConfig()
    trace.on_request_end.append(on_request_end)
    return kopf.AiohttpSession(
        server=info.server,
        default_namespace=info.default_namespace,
        priority=info.priority,
        expiration=info.expiration,
        aiohttp_session=aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, ssl=info.as_ssl_context()),
            headers=info.as_http_headers(),
            proxy=info.proxy_url,
            trust_env=info.trust_env,
            trace_configs=[trace],
        ),
    )


class Retries:
    """Seconds before the next try of a request of Kopf's: without an end, and so without a length."""

    def __iter__(self) -> Iterator[float]:
        return itertools.chain((1.0, 2.0, 4.0, 8.0), itertools.repeat(15.0))


def kopf_settings() -> kopf.OperatorSettings:
    settings = kopf.OperatorSettings()
    settings.watching.server_timeout = 240
    settings.watching.client_timeout = 300
    settings.watching.connect_timeout = 10
    settings.watching.chunk_size = 500
    for kind in CHILDREN:
        settings.watching.label_selectors[KINDS[kind][1]] = MANAGED_SELECTOR
    settings.networking.request_timeout = 30
    settings.networking.connect_timeout = 10
    settings.networking.error_backoffs = Retries()
    settings.queueing.worker_limit = 20
    settings.posting.enabled = False  # events are told after the status is written, by ourselves
    settings.scanning.disabled = True  # would want to list namespaces and CRDs
    settings.peering.standalone = True
    # Would kill the process ten minutes after a term, whatever it does by then; a pod's end has the kubelet's time.
    settings.process.ultimate_exiting_timeout = None
    # Not used by on.event handlers; set so that nothing of ours could ever carry Kopf's names.
    settings.persistence.finalizer = f"{GROUP}/never"
    settings.persistence.progress_storage = kopf.AnnotationsProgressStorage(prefix=GROUP)
    settings.persistence.diffbase_storage = kopf.AnnotationsDiffBaseStorage(prefix=GROUP)
    settings.posting.reporting_component = MANAGER
    return settings
