"""What the watches told of the services and their children: every read is answered from here, without a request.

Watches feed it event by event; a list now and then brings what a watch missed, deletions included. Of two tales of one
object the newer version counts. `told` is the one filter that decides what an event means: a service is looked after
again only if something was said that was not known, so what we write ourselves starts nothing.
It knows no network, and nothing of what a service wants.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any

from semipd_operator.api.v1alpha1.resource import KIND
from semipd_operator.render.names import SERVICE_LABEL
from semipd_operator.status.foreign import additions
from semipd_operator.status.observed import PodView
from semipd_operator.status.pods import pod_view
from semipd_operator.status.refusals import unexposed
from semipd_operator.workqueue import Key

Object = dict[str, Any]
Name = tuple[str, str, str]
"""(kind, namespace, name)"""

KINDS: dict[str, tuple[str, str]] = {
    KIND: ("semipd.io/v1alpha1", "semipdservices"),
    "Pod": ("v1", "pods"),
    "Deployment": ("apps/v1", "deployments"),
    "Service": ("v1", "services"),
    "ConfigMap": ("v1", "configmaps"),
    "PodDisruptionBudget": ("policy/v1", "poddisruptionbudgets"),
    "HorizontalPodAutoscaler": ("autoscaling/v2", "horizontalpodautoscalers"),
}
"""The kinds that are watched: API version and plural. Children only where they carry our label."""
CHILDREN = tuple(kind for kind in KINDS if kind != KIND)


class Informer:
    def __init__(self, namespaces: Iterable[str] = ()) -> None:
        """`namespaces`: those watched; none is all of them."""
        self._objects: dict[Name, Object] = {}
        self._pods: dict[Key, set[Name]] = {}
        self._gone: dict[Name, int] = {}
        """Version at which an object was deleted: an older list, or an answer to a write, must not bring it back."""
        self._statuses: dict[Name, Any] = {}
        """The last status that we wrote, or are writing, of each service."""
        self._missing = {(kind, namespace) for kind in KINDS for namespace in namespaces or ("",)}
        self._left_out: set[str] = set()
        """Namespaces in which we may not list what we need, since the start."""
        self._refusals: dict[tuple[str, str], str] = {}
        """By (kind, namespace)."""
        self._scalers: dict[Key, str] = {}
        """Autoscalers of Deployments, by the Deployment's name."""
        self._additions: dict[Name, tuple[str, ...]] = {}
        """What others have set in each Deployment: all that is kept of its `managedFields`."""
        self._preempted: dict[Key, PodView] = {}
        """The last pod of each service that was preempted: gone by the time that somebody asks why."""
        self._complete = asyncio.Event()

    async def complete(self) -> None:
        """Waits until each kind was listed once: before, an object that is not known may well exist."""
        await self._complete.wait()

    def get(self, kind: str, namespace: str, name: str) -> Object | None:
        return self._objects.get((kind, namespace, name))

    def pods(self, key: Key) -> list[Object]:
        """The pods of a service, by name."""
        return [self._objects[name] for name in sorted(self._pods.get(key, ()))]

    def preempted(self, key: Key) -> PodView | None:
        return self._preempted.get(key)

    def told(self, kind: str, obj: Object, *, gone: bool = False) -> set[Key]:
        """Takes what a watch told, or an answer to a write of ours. The services that it is news for: of an object that
        was labelled anew, the one before, too."""
        name = _name(kind, obj)
        known = self._objects.get(name)
        if known and _version(obj) < _version(known):
            return set()
        if not gone and _version(obj) <= self._gone.get(name, 0):  # an answer that the deletion has overtaken
            return set()
        if gone:
            self._gone[name] = _version(obj)
            self._forget(name)
            return _services(kind, known, obj) if known else set()
        if known and meaning(kind, known) == meaning(kind, obj):
            self._keep(name, obj)
            return set()
        echo = known is not None and self._is_echo(name, known, obj)
        self._keep(name, obj)
        return set() if echo else _services(kind, known, obj)

    def writes_status(self, namespace: str, name: str, status: Any) -> None:
        """We are about to write it: an event that only brings it is an echo."""
        self._statuses[KIND, namespace, name] = status

    def listed(self, kind: str, objects: Iterable[Object], version: int, namespace: str = "") -> set[Key]:
        """All objects of a kind, in one namespace or in all, at the list's version. The services it is news for."""
        news: set[Key] = set()
        present = set()
        for obj in objects:
            name = _name(kind, obj)
            present.add(name)
            news |= self.told(kind, obj)

        def covers(name: Name) -> bool:
            return name[0] == kind and namespace in ("", name[1])

        for name, known in list(self._objects.items()):
            if covers(name) and name not in present and _version(known) <= version:
                news |= _services(kind, known)
                self._forget(name)
        self._gone = {name: at for name, at in self._gone.items() if not covers(name) or at > version}
        self._missing.discard((kind, namespace))
        self._refusals.pop((kind, namespace), None)
        self._look_whether_complete()
        return news

    @property
    def left_out(self) -> frozenset[str]:
        """Of the namespaces that are watched: nothing is known of these, and nobody waits for them."""
        return frozenset(self._left_out)

    def leave_out(self, kind: str, namespace: str) -> bool:
        """The API server does not let us list a kind in one of several namespaces, which may be gone: the others do not
        wait for it, and nothing is done in it without. False where the kind is known: what was known stays."""
        if not namespace or (namespace not in self._left_out and (kind, namespace) not in self._missing):
            return False
        self._left_out.add(namespace)
        for name in [name for name in self._objects if name[:2] == (KIND, namespace)]:
            self._forget(name)
        self._missing = {(kind, of) for kind, of in self._missing if of != namespace}
        self._look_whether_complete()
        return True

    def take_in(self, namespace: str) -> None:
        """Everything in it but the services has been listed."""
        self._left_out.discard(namespace)

    def _look_whether_complete(self) -> None:
        if not self._missing:
            self._complete.set()

    def autoscalers(self, found: Iterable[Object], namespace: str = "") -> set[Key]:
        """All HorizontalPodAutoscalers of a namespace, or of all: others' may scale one of our Deployments.

        The services for which that changed.
        """
        now = {
            Key(obj["metadata"]["namespace"], target["name"]): obj["metadata"]["name"]
            for obj in found
            if (target := (obj.get("spec") or {}).get("scaleTargetRef") or {}).get("kind") == "Deployment"
        }
        kept = {key: name for key, name in self._scalers.items() if namespace not in ("", key.namespace)}
        before, self._scalers = self._scalers, {**kept, **now}
        return {key for key in before.keys() | now.keys() if before.get(key) != self._scalers.get(key)}

    def foreign_scaler(self, key: Key) -> str:
        """The name of an autoscaler that scales the service's Deployment; ours scale the service."""
        return self._scalers.get(key, "") if self.get("Deployment", *key) else ""

    def additions(self, key: Key) -> tuple[str, ...]:
        """What managers other than ours have set in the specification of the service's Deployment."""
        return self._additions.get(("Deployment", *key), ())

    def refused(self, kind: str, words: str, namespace: str = "") -> set[Key]:
        """The API server does not let us list a kind; we do without, and forget what we knew while it did. The services
        it is news for."""
        known = [_version(obj) for name, obj in self._objects.items() if name[0] == kind]
        news = self.listed(kind, (), max(known, default=0), namespace)
        if kind == "HorizontalPodAutoscaler":
            news |= self.autoscalers((), namespace)
        self._refusals[kind, namespace] = words
        return news

    def refusal(self, kind: str, namespace: str) -> str:
        """The API server's words for it; empty where it lets us."""
        return self._refusals.get((kind, namespace), "") or self._refusals.get((kind, ""), "")

    def _is_echo(self, name: Name, known: Object, obj: Object) -> bool:
        if name[0] != KIND or obj.get("status") != self._statuses.get(name, _NOTHING):
            return False
        return bool(_wanted(known) == _wanted(obj))

    def _keep(self, name: Name, obj: Object) -> None:
        self._drop(name)
        meta = {key: value for key, value in obj["metadata"].items() if key != "managedFields"}
        self._objects[name] = {**obj, "kind": name[0], "apiVersion": KINDS[name[0]][0], "metadata": meta}
        if name[0] == "Deployment":
            self._additions[name] = additions(obj)
        if name[0] == "Pod" and (key := _service("Pod", obj)):
            self._pods.setdefault(key, set()).add(name)
            view, last = pod_view(obj), self._preempted.get(key)
            if view.disruption and view.disruption.preempts and not view.stranger:
                self._preempted[key] = view
            elif last is not None and last.uid == view.uid:  # it was spared: the condition is taken back then
                del self._preempted[key]

    def _forget(self, name: Name) -> None:
        self._drop(name)
        self._statuses.pop(name, None)
        if name[0] == KIND:
            self._preempted.pop(Key(*name[1:]), None)

    def _drop(self, name: Name) -> None:
        """Under the service that it was kept for: its label may be another by now, or gone."""
        known = self._objects.pop(name, None)
        self._additions.pop(name, None)
        if known and name[0] == "Pod" and (key := _service("Pod", known)):
            self._pods[key].discard(name)
            if not self._pods[key]:
                del self._pods[key]


_NOTHING = object()
_APART = ("apiVersion", "kind", "metadata", "status")
"""Items of a list lack the first two."""


def meaning(kind: str, obj: Object) -> Any:
    """What of an object can make a difference to us; two versions with the same meaning are the same."""
    meta = obj["metadata"]
    status = obj.get("status") or {}
    match kind:
        case "SemiPDService":
            return _wanted(obj), status
        case "Pod":
            return pod_view(obj), meta.get("ownerReferences"), _service(kind, obj)
        case "Deployment":
            said = [
                c for c in status.get("conditions") or [] if c["type"] == "ReplicaFailure" or c["status"] == "False"
            ]
            return (
                _metadata(meta),
                meta.get("generation"),
                [(c["type"], c.get("reason"), c.get("message")) for c in said],
            )
        case "HorizontalPodAutoscaler":  # its status is written whenever the metric changes
            judgement = [(c["type"], c["status"], c.get("reason", "")) for c in status.get("conditions") or []]
            return _metadata(meta), obj.get("spec"), sorted(judgement)
        case "Service":
            return _metadata(meta), obj.get("spec"), unexposed(obj)
    return _metadata(meta), {key: value for key, value in obj.items() if key not in _APART}


def _wanted(obj: Object) -> Any:
    meta = obj["metadata"]
    held = tuple(meta.get("finalizers") or ()) if meta.get("deletionTimestamp") else None
    return meta["uid"], meta.get("generation"), held


def _metadata(meta: Object) -> Any:
    annotations = {
        key: value
        for key, value in (meta.get("annotations") or {}).items()
        if not key.startswith("deployment.kubernetes.io/")
    }
    kept = {key: meta.get(key) for key in ("uid", "labels", "ownerReferences", "deletionTimestamp")}
    return kept, annotations


def _name(kind: str, obj: Object) -> Name:
    return kind, obj["metadata"]["namespace"], obj["metadata"]["name"]


def _version(obj: Object) -> int:
    return int(obj["metadata"]["resourceVersion"])


def _services(kind: str, *objects: Object | None) -> set[Key]:
    return {key for obj in objects if obj and (key := _service(kind, obj))}


def _service(kind: str, obj: Object) -> Key | None:
    """The service that an object is about."""
    meta = obj["metadata"]
    name = meta["name"] if kind == KIND else (meta.get("labels") or {}).get(SERVICE_LABEL)
    return Key(meta["namespace"], name) if name else None
