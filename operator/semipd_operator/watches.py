"""Kopf's part: watches that turn every event into a key in the queue, and nothing else.

Only ``on.event`` handlers, which add neither finalizers nor annotations. It knows no meaning of the objects.
Kopf does not say when a watch is open, and a quiet watch tells nothing: so Kopf is lent a session that is traced.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import aiohttp
import kopf

from semipd_operator.api.v1alpha1.resource import GROUP, PLURAL, VERSION
from semipd_operator.render.names import MANAGED_SELECTOR, SERVICE_LABEL
from semipd_operator.settings import MANAGER
from semipd_operator.workqueue import Key

OnService = Callable[[Key, str, str, bool], None]
"""(key, uid, resource version, gone)"""
OnChild = Callable[[Key, str, str], None]
"""(key of the service, kind, resource version)"""
OnWatch = Callable[[str], None]
"""(namespace; empty for all): Kopf has listed the services, and the API server has accepted its watch of them."""

_CHILDREN = (
    ("", "v1", "pods"),
    ("apps", "v1", "deployments"),
    ("", "v1", "services"),
    ("", "v1", "configmaps"),
    ("policy", "v1", "poddisruptionbudgets"),
    ("autoscaling", "v2", "horizontalpodautoscalers"),
)


class News:
    """Whether an event of an autoscaler tells anything new: its status is written whenever the metric changes."""

    def __init__(self) -> None:
        self._told: dict[str, Any] = {}

    def tells(self, kind: str, obj: Mapping[str, Any], *, gone: bool) -> bool:
        if kind != "HorizontalPodAutoscaler":
            return True
        uid = obj["metadata"]["uid"]
        if gone:
            self._told.pop(uid, None)
            return True
        conditions = (obj.get("status") or {}).get("conditions") or []
        judgement = sorted((entry["type"], entry["status"], entry.get("reason", "")) for entry in conditions)
        said = copy.deepcopy((obj.get("spec"), obj["metadata"].get("ownerReferences"), judgement))
        before, self._told[uid] = self._told.get(uid), said
        return before != said


def registry(on_service: OnService, on_child: OnChild, on_watch: OnWatch) -> kopf.OperatorRegistry:
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
            sessions[:] = [(info, _traced(info, on_watch))]
        return sessions[-1][1]

    @kopf.on.event(GROUP, VERSION, PLURAL, registry=handlers)
    async def service_event(event: Any, meta: Any, **_: Any) -> None:
        key = Key(meta["namespace"], meta["name"])
        on_service(key, meta["uid"], meta["resourceVersion"], event["type"] == "DELETED")

    news = News()

    async def child_event(event: Any, body: Any, **_: Any) -> None:
        meta, kind, gone = body["metadata"], body.get("kind", ""), event["type"] == "DELETED"
        service = (meta.get("labels") or {}).get(SERVICE_LABEL)
        if service and news.tells(kind, event["object"], gone=gone):
            # A deleted object carries a version of its own, so a deletion never passes for our own write.
            on_child(Key(meta["namespace"], service), kind, "" if gone else meta["resourceVersion"])

    for group, version, plural in _CHILDREN:
        kopf.on.event(group, version, plural, registry=handlers, id=f"child-{plural}")(child_event)
    return handlers


def _by_address(info: kopf.ConnectionInfo, env: Mapping[str, str]) -> kopf.ConnectionInfo:
    """Kopf names the API server by its DNS name; the kubelet's variables reach it where and when DNS does not work."""
    host, port = env.get("KUBERNETES_SERVICE_HOST", ""), env.get("KUBERNETES_SERVICE_PORT", "443")
    if not host:
        return info
    return replace(info, server=f"https://{f'[{host}]' if ':' in host else host}:{port}")


def _traced(info: kopf.ConnectionInfo, on_watch: OnWatch) -> kopf.AiohttpSession:
    """The session that Kopf would make of `info`, and a word whenever a watch of the services is open."""

    async def on_request_end(_session: Any, _context: Any, params: aiohttp.TraceRequestEndParams) -> None:
        *_, before, namespace, plural = ("", "", *params.url.path.split("/"))
        if plural == PLURAL and params.url.query.get("watch") == "true" and params.response.status == 200:
            on_watch(namespace if before == "namespaces" else "")

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


def kopf_settings() -> kopf.OperatorSettings:
    settings = kopf.OperatorSettings()
    settings.watching.server_timeout = 240
    settings.watching.client_timeout = 300
    settings.watching.connect_timeout = 10
    settings.watching.chunk_size = 500
    for _, _, plural in _CHILDREN:
        settings.watching.label_selectors[plural] = MANAGED_SELECTOR
    settings.networking.request_timeout = 30
    settings.networking.connect_timeout = 10
    settings.queueing.worker_limit = 20
    settings.posting.enabled = False  # events are told after the status is written, by ourselves
    settings.scanning.disabled = True  # would want to list namespaces and CRDs
    settings.peering.standalone = True
    # Not used by on.event handlers; set so that nothing of ours could ever carry Kopf's names.
    settings.persistence.finalizer = f"{GROUP}/never"
    settings.persistence.progress_storage = kopf.AnnotationsProgressStorage(prefix=GROUP)
    settings.persistence.diffbase_storage = kopf.AnnotationsDiffBaseStorage(prefix=GROUP)
    settings.posting.reporting_component = MANAGER
    return settings
