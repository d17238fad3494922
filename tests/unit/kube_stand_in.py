"""An API server for the tests of the reconciler: objects in memory, versions, refusals. It checks no schema."""

from __future__ import annotations

import copy
import itertools
from collections import Counter
from collections.abc import Callable
from datetime import timedelta
from typing import Any

from semipd_operator.answers import ApiRefused
from semipd_operator.api.v1alpha1.resource import API_VERSION, KIND, SemiPDService
from semipd_operator.informer import KINDS, Informer
from semipd_operator.workqueue import Key

Object = dict[str, Any]
KEY = Key("team", "demo")


def new_service(**spec: Any) -> Object:
    meta = {"name": KEY.name, "namespace": KEY.namespace, "uid": "uid-1", "generation": 1}
    return {
        "apiVersion": API_VERSION,
        "kind": KIND,
        "metadata": meta,
        "spec": {"model": {"uri": "file:///m"}, **spec},
    }


class StandIn:
    """The methods of `kube.Kube`. `refuse`: (verb, kind) -> status; `asked`: how often each was."""

    def __init__(self, *objects: Object, unknown: tuple[str, ...] = ()) -> None:
        self._versions = itertools.count(1)
        self.objects: dict[tuple[str, str, str], Object] = {}
        self.refuse: dict[tuple[str, str], int] = {}
        self.words = ""
        """Of the refusals, other than RBAC's."""
        self.unknown = unknown
        self.asked: Counter[tuple[str, str]] = Counter()
        self.told: list[str] = []
        """Reasons of the events that were made, ..."""
        self.said: list[str] = []
        """... and their messages."""
        self.informer = Informer()
        """Hears of every change before the one who made it has the answer, as a quick watch does."""
        self.watches: list[Callable[[Object, bool], None]] = []
        """Of others, who may be slower."""
        self.news: list[Key] = []
        self.clock_ahead = timedelta()
        for obj in objects:
            self.put(obj)

    def put(self, obj: Object) -> Object:
        meta = obj["metadata"]
        key = (obj["kind"], meta["namespace"], meta["name"])
        old = self.objects.get(key, {"metadata": {"uid": f"uid-{next(self._versions)}"}})
        kept = {"status": old["status"]} if "status" in old else {}
        stored = copy.deepcopy({**kept, **obj})
        stored["metadata"] = {"uid": old["metadata"]["uid"], **stored["metadata"]}
        stored["metadata"]["resourceVersion"] = str(next(self._versions))
        self.objects[key] = stored
        self._watched(stored)
        return copy.deepcopy(stored)

    def service(self) -> Object:
        return self.objects[(KIND, *KEY)]

    def condition(self, kind: str) -> Object:
        listed = (self.service().get("status") or {}).get("conditions") or []
        found: Object = next((entry for entry in listed if entry["type"] == kind), {})
        return found

    def _ask(self, verb: str, kind: str) -> None:
        self.asked[verb, kind] += 1
        if status := self.refuse.get((verb, kind)):
            raise ApiRefused(status, self.words or f'{kind} is forbidden: User "operator" cannot {verb} it')

    async def get(self, api_version: str, kind: str, namespace: str, name: str) -> Object | None:
        self._ask("get", kind)
        return copy.deepcopy(self.objects.get((kind, namespace, name)))

    async def events(self, namespace: str, uid: str) -> list[Object]:
        self._ask("list", "Event")
        return []

    async def claim_events(self, namespace: str, claim: str) -> list[Object]:
        self._ask("list", "Event")
        return []

    async def apply_to(self, obj: Object, live: Object | None) -> Object:
        self._ask("apply", obj["kind"])
        old = self.objects.get((obj["kind"], obj["metadata"]["namespace"], obj["metadata"]["name"]))
        if _read(old) != _read(live):
            raise ApiRefused(409, "the object has been modified; please apply your changes to the latest version")
        if old and _says(old, obj):
            return copy.deepcopy(old)
        return self.put(obj)

    async def apply_status(self, service: SemiPDService, status: Object) -> Object:
        self._ask("apply", "status")
        return self.put({**self.service(), "status": status})

    async def delete(self, api_version: str, kind: str, namespace: str, name: str, uid: str, version: str) -> bool:
        self._ask("delete", kind)
        if self.objects[kind, namespace, name]["metadata"]["resourceVersion"] != version:
            return False
        self.end(kind, name, namespace)
        return True

    def end(self, kind: str, name: str, namespace: str = KEY.namespace) -> None:
        """As the garbage collector ends an object."""
        gone = self.objects.pop((kind, namespace, name))
        gone["metadata"]["resourceVersion"] = str(next(self._versions))
        self._watched(gone, gone=True)

    def _watched(self, obj: Object, *, gone: bool = False) -> None:
        if obj["kind"] not in KINDS:
            return
        for watch in self.watches:
            watch(copy.deepcopy(obj), gone)
        self.news += self.informer.told(obj["kind"], copy.deepcopy(obj), gone=gone)

    async def knows(self, api_version: str, kind: str) -> bool:
        return kind not in self.unknown

    async def some_nodes(self) -> list[Object]:
        self._ask("list", "Node")
        return [copy.deepcopy(obj) for (kind, _, _), obj in self.objects.items() if kind == "Node"]

    async def serves(self, api_version: str) -> bool:
        return True

    async def create(self, api_version: str, kind: str, namespace: str, body: Object) -> Object:
        assert kind == "Event", f"nothing else is made without an apply: {kind}"
        self.told.append(body["reason"])
        self.said.append(body["message"])
        return body


def _read(obj: Object | None) -> tuple[str, str] | None:
    return obj and (obj["metadata"]["uid"], obj["metadata"]["resourceVersion"])


def _says(stored: Any, applied: Any) -> bool:
    """Whether an apply would change nothing."""
    if isinstance(applied, dict):
        return isinstance(stored, dict) and all(_says(stored.get(name), value) for name, value in applied.items())
    return bool(stored == applied)
