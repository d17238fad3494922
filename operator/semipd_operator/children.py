"""The objects that a service consists of: what is there, whose it is, and how what was rendered is put in force.

It knows how to read, apply and delete them, and what a refusal means; not what a service wants.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from semipd_operator.answers import ApiRefused
from semipd_operator.api.v1alpha1.resource import SemiPDService
from semipd_operator.conflicts import not_ours
from semipd_operator.informer import KINDS, Informer, meaning
from semipd_operator.kube import Kube
from semipd_operator.metrics import APPLIES
from semipd_operator.reasons import Admission, ConditionType, PodTrouble, SpecReason, remedy
from semipd_operator.render import CONFIG_MAP, OPTIONAL_KINDS, Kind, Object, Rendered
from semipd_operator.render.configmap import with_digests
from semipd_operator.render.names import config_map_name, controller, managed
from semipd_operator.settings import Settings
from semipd_operator.status import Problem
from semipd_operator.status.refusals import admission
from semipd_operator.workqueue import Key


class Blocked(Exception):
    """The specification cannot be put in force. `again`: retrying may help without a change of it."""

    def __init__(self, problem: Problem, *, again: bool) -> None:
        super().__init__(problem.message)
        self.problem, self.again = problem, again


class Overtaken(Exception):
    """What was read is no longer what is there: someone else wrote it meanwhile, another operator perhaps. Nothing of
    theirs was overwritten, and the informer has been told what is there now: read, and judge, again."""


@dataclass(frozen=True)
class Reach:
    """What the operator can reach of the optional kinds."""

    live: Mapping[Kind, Object | None] = field(default_factory=lambda: MappingProxyType({}))
    """The objects of the service's name as they stand, of each kind within reach."""
    refusals: Mapping[Kind, str] = field(default_factory=lambda: MappingProxyType({}))
    """Why the API server does not let it read a kind that it serves."""


class Children:
    def __init__(self, kube: Kube, informer: Informer) -> None:
        self._kube, self._informer = kube, informer
        self._applied: dict[tuple[Key, str], tuple[str, Any]] = {}
        """By kind: digest of what was applied last, and the meaning of what came of it."""
        self._absent: dict[Key, set[Kind]] = {}
        """Kinds that were looked for without the watches, which do not show everything: only we make objects with our
        owner reference."""

    def forget(self, key: Key) -> None:
        self._absent.pop(key, None)
        self._applied = {entry: value for entry, value in self._applied.items() if entry[0] != key}

    async def reach(self, key: Key, wanted: Collection[Kind]) -> Reach:
        """A kind that the cluster does not serve, or that its RBAC does not grant, is not ours."""
        live: dict[Kind, Object | None] = {}
        refusals: dict[Kind, str] = {}
        for kind in OPTIONAL_KINDS:
            watched = kind.kind in KINDS
            if watched and (words := self._informer.refusal(kind.kind, key.namespace)):
                refusals[kind] = words
            elif watched or await self._kube.knows(kind.api_version, kind.kind):
                try:
                    live[kind] = await self._find(key, kind, watched=watched, wanted=kind in wanted)
                except ApiRefused as refused:
                    if refused.status != 403:
                        raise
                    refusals[kind] = str(refused)
        return Reach(live, refusals)

    async def _find(self, key: Key, kind: Kind, *, watched: bool, wanted: bool) -> Object | None:
        """The object of the service's name. A watch shows what bears our label, of the kinds that are watched; for
        anything else we look once, and again after the watch showed it."""
        absent = self._absent.setdefault(key, set())
        if watched and (shown := self._informer.get(kind.kind, *key)):
            absent.discard(kind)
            return shown
        if watched and wanted:  # read before it is created
            return None
        if not wanted and kind in absent:
            return None
        live = await self._kube.get(kind.api_version, kind.kind, *key)
        if live is None and not wanted:
            absent.add(kind)
        else:
            absent.discard(kind)
        return live

    def own_deployment(self, service: SemiPDService) -> Object | None:
        meta = service.metadata
        live = self._informer.get("Deployment", meta.namespace, meta.name)
        return live if live and controller(live) == meta.uid else None

    async def put(self, key: Key, service: SemiPDService, rendered: Rendered, reach: Reach, judged: str) -> None:
        """Every write is one to the version that was read, or to nothing where nothing was, and the first is to
        `judged`, the version of the ConfigMap by which the service is ours (empty: there was none). So of two operators
        that both take it for theirs one learns of the other before it has undone anything.
        Raises `Blocked`, `Overtaken` and `ApiRefused`."""
        try:
            await self._put(key, service, rendered, reach, judged)
        except Overtaken:
            await self._reread(service, rendered)
            raise

    async def put_digests(self, key: Key, service: SemiPDService, settings: Settings, judged: str) -> bool:
        """Whether the ConfigMap had to be told of other keys; its configuration stays. One that is not there, not ours
        or not as `judged` is left alone. Raises `Blocked` and `Overtaken`."""
        meta = service.metadata
        live = self._informer.get(CONFIG_MAP.kind, meta.namespace, config_map_name(service))
        if live is None or controller(live) != meta.uid or _version(live) != judged:
            return False
        wanted = with_digests(live, service, settings)
        if wanted is not None:
            await self._apply(key, wanted, live)
        return wanted is not None

    async def _put(self, key: Key, service: SemiPDService, rendered: Rendered, reach: Reach, judged: str) -> None:
        meta = service.metadata
        current: list[Object | None] = []
        taken: list[Object] = []
        # All names are checked before anything is applied: a half-made service helps nobody, nor does one name a try.
        for obj in rendered.objects:
            kind, name = Kind(obj["apiVersion"], obj["kind"]), obj["metadata"]["name"]
            live = reach.live.get(kind) or self._informer.get(kind.kind, meta.namespace, name)
            if live is None:  # what we are about to create may be there without our label
                live = await self._kube.get(kind.api_version, kind.kind, meta.namespace, name)
                if live is not None and _shown(live) and controller(live) == meta.uid:
                    raise Overtaken(f"{kind.kind} {name} was made meanwhile")
            if live is not None and controller(live) != meta.uid:
                taken.append({**live, "kind": obj["kind"]})
            elif kind == CONFIG_MAP and live is not None and _shown(live) and _version(live) != judged:
                raise Overtaken(f"ConfigMap {name} was written meanwhile")
            current.append(live)
        if taken:
            raise Blocked(not_ours(service, taken), again=True)
        for obj, live in zip(rendered.objects, current, strict=True):
            await self._apply(key, obj, live)
        for kind in rendered.unwanted:
            left = reach.live[kind]
            if left is not None and controller(left) == meta.uid:
                await self._delete(kind, left)

    async def _delete(self, kind: Kind, left: Object) -> None:
        meta = left["metadata"]
        namespace, name = meta["namespace"], meta["name"]
        try:
            gone = await self._kube.delete(kind.api_version, kind.kind, namespace, name, meta["uid"], _version(left))
        except ApiRefused as refused:
            words = f"{kind.kind} {name}, which is not wanted any more, cannot be deleted: {refused}"
            denied = admission(str(refused))
            for_now = refused.for_now and denied is not Admission.ADMISSION_DENIED
            what = _NOT_OF_PODS if denied is Admission.ADMISSION_DENIED else ""
            problem = Problem(denied or SpecReason.APPLY_FAILED, words, for_now=for_now, remedy=what)
            raise Blocked(problem, again=True) from refused
        if not gone:
            raise Overtaken(f"{kind.kind} {name} was changed meanwhile")

    async def _reread(self, service: SemiPDService, rendered: Rendered) -> None:
        """Of all kinds that are watched, as the watches may be behind on any of them. Raises `ApiRefused`."""
        namespace = service.metadata.namespace
        wanted = [(Kind(obj["apiVersion"], obj["kind"]), obj["metadata"]["name"]) for obj in rendered.objects]
        for kind, name in [*wanted, *((kind, service.metadata.name) for kind in rendered.unwanted)]:
            if kind.kind not in KINDS:
                continue
            live = await self._kube.get(kind.api_version, kind.kind, namespace, name)
            if live is not None and _shown(live):
                self._informer.told(kind.kind, live)
            elif known := self._informer.get(kind.kind, namespace, name):
                self._informer.told(kind.kind, known, gone=True)

    async def _apply(self, key: Key, obj: Object, live: Object | None) -> None:
        wanted = hashlib.sha256(json.dumps(obj, sort_keys=True).encode()).hexdigest()
        if live and self._applied.get((key, obj["kind"])) == (wanted, meaning(obj["kind"], live)):
            return
        try:
            result = await self._kube.apply_to(obj, live)
        except ApiRefused as refused:
            denied = admission(str(refused))  # a policy answers as it likes, with 409 or 422, too
            if refused.status == 409 and not denied:
                raise Overtaken(f"{obj['kind']} {obj['metadata']['name']}: {refused}") from refused
            # The object's own fault, or not.
            invalid = not denied and (refused.status in (400, 422) or refused.mistyped)
            template = invalid and obj["kind"] == "Deployment"
            quota = "exceeded quota" in str(refused) and not denied
            reason = (
                denied
                or (PodTrouble.QUOTA_EXCEEDED if quota else None)
                or (SpecReason.INVALID_POD_TEMPLATE if template else SpecReason.APPLY_FAILED)
            )
            message = f"{obj['kind']} {obj['metadata']['name']}: {refused}"
            for_now = refused.for_now and denied is not Admission.ADMISSION_DENIED  # a webhook may be away for now
            what = "" if obj["kind"] == "Deployment" or denied is not Admission.ADMISSION_DENIED else _NOT_OF_PODS
            what = _QUOTA if quota else what
            raise Blocked(Problem(reason, message, for_now=for_now, remedy=what), again=not invalid) from refused
        APPLIES.labels(obj["kind"]).inc()
        self._applied[key, obj["kind"]] = (wanted, meaning(obj["kind"], result))
        if obj["kind"] in KINDS:
            self._informer.told(obj["kind"], result)


_QUOTA = remedy(ConditionType.SPEC_ACCEPTED, PodTrouble.QUOTA_EXCEEDED)
_NOT_OF_PODS = "Have the owner of that policy exempt the namespace, or this operator's objects in it."


def _version(obj: Object) -> str:
    return str(obj["metadata"]["resourceVersion"])


def _shown(obj: Object) -> bool:
    """Whether the watches show it."""
    return obj["kind"] in KINDS and managed(obj)
