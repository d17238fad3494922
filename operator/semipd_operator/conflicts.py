"""Objects that bear the names of a service's own and are not its: whose they are, how the service gets them. Pure."""

from __future__ import annotations

import json
from collections.abc import Sequence

from semipd_operator.api.v1alpha1.resource import GROUP, KIND, SemiPDService
from semipd_operator.reasons import SpecReason
from semipd_operator.render.names import Object, controller, managed, owner_reference
from semipd_operator.status import Problem


def not_ours(service: SemiPDService, taken: Sequence[Object]) -> Problem:
    """All of them at once; what goes by itself is told only where nothing else is in the way. One of our making that
    lost its owner (a restored backup, ``--cascade=orphan``) is told how to come back: pods may serve by it, so that it
    should not have to go. Taking it is not ours: anyone can set a label.
    """
    left = [live for live in taken if _of_predecessor(service, live)]
    if len(left) == len(taken):
        return _remaining(service, left)
    taken = [live for live in taken if live not in left]
    orphans = [live for live in taken if managed(live) and not controller(live)]
    theirs = [live for live in taken if live not in orphans]
    causes, remedies = [], []
    if theirs:
        exist = "exists and does not" if len(theirs) == 1 else "exist and do not"
        causes.append(f"{_listed([_named(live) for live in theirs])} {exist} belong to this SemiPDService")
        stay = [live for live in theirs if not live["metadata"].get("deletionTimestamp")]
        what = "that object" if len(taken) == 1 else _listed([_path(live) for live in stay or theirs])
        needs = "that nothing needs it" if len(stay) == 1 else "that nothing needs them"
        wait = f"wait until {what} is gone: its finalizers hold it" if len(theirs) == 1 else f"wait for {what} to go"
        way = f"once you know {needs}, delete {what}" if stay else wait
        remedies.append(f"Rename the SemiPDService; or, {way}.")
    if orphans:
        was = (
            "was of this operator's making and has" if len(orphans) == 1 else "were of this operator's making and have"
        )
        causes.append(f"{_listed([_plain(live) for live in orphans])} {was} no owner")
        remedies.append(_give_back(service, orphans))
    return Problem(
        SpecReason.NAME_CONFLICT,
        "; ".join(causes),
        ",".join(_path(live) for live in taken),
        remedy=" ".join(remedies),
    )


def _of_predecessor(service: SemiPDService, live: Object) -> bool:
    """Whether its owner is gone for certain: it had the service's own name, which no two have at a time."""
    owner = _controller(live)
    if owner is None or owner["uid"] == service.metadata.uid:
        return False
    group = owner["apiVersion"].rpartition("/")[0]
    return (group, owner["kind"], owner["name"]) == (GROUP, KIND, service.metadata.name)


def _remaining(service: SemiPDService, left: Sequence[Object]) -> Problem:
    it, belong = ("it", "belongs") if len(left) == 1 else ("them", "belong")
    told = (
        f"{_listed([_plain(live) for live in left])} still {belong} to the deleted SemiPDService "
        f"{service.metadata.name} before this one: the garbage collector takes {it} away"
    )
    return Problem(SpecReason.PREDECESSOR_REMAINS, told, ",".join(_path(live) for live in left))


def _give_back(service: SemiPDService, orphans: Sequence[Object]) -> str:
    """One command for all that the same patch fits; where others need another one, they are told once these are back:
    a message is bounded, and half a command helps nobody."""
    patches = {_path(live): json.dumps(_owning(service, live), separators=(",", ":")) for live in orphans}
    patch = next(iter(patches.values()))
    same = [path for path, one in patches.items() if one == patch]
    pods = " (a Deployment's pods go with it)" if any(live["kind"] == "Deployment" for live in orphans) else ""
    it, its = ("it", "its") if len(same) == 1 else ("them", "their")
    return (
        f"Give {it} back: kubectl patch {' '.join(same)} --type=json -p '{patch}' in {its} namespace; or delete "
        f"{'it' if len(orphans) == 1 else 'them'}{pods}."
    )


def _owning(service: SemiPDService, live: Object) -> list[Object]:
    """The JSON patch after which the service controls it, too: a merge would take the place of the owners that control
    nothing, and each that is named makes a long message of what may be any number. The reference is ours to the last
    field: we may delete nothing of this kind, so there are API servers that let us change no reference of it."""
    owner = owner_reference(service)
    path, owners = "/metadata/ownerReferences", [one["uid"] for one in live["metadata"].get("ownerReferences") or []]
    if not owners:
        return [{"op": "add", "path": path, "value": [owner]}]
    if owner["uid"] not in owners:
        return [{"op": "add", "path": f"{path}/-", "value": owner}]
    ours = f"{path}/{owners.index(owner['uid'])}"
    return [
        {"op": "test", "path": f"{ours}/uid", "value": owner["uid"]},
        {"op": "replace", "path": ours, "value": owner},
    ]


def _listed(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def _plain(live: Object) -> str:
    return f"{live['kind']} {live['metadata']['name']}"


def _path(live: Object) -> str:
    return f"{live['kind']}/{live['metadata']['name']}"


def _controller(live: Object) -> Object | None:
    references = live["metadata"].get("ownerReferences") or []
    return next((one for one in references if one.get("controller")), None)


def _named(live: Object) -> str:
    """With its owner, who would make it anew."""
    owner = _controller(live)
    of = f"of {owner['kind']} {owner['name']}" if owner else ""
    going = "being deleted" if live["metadata"].get("deletionTimestamp") else ""
    told = ", ".join(filter(None, (of, going)))
    return f"{_plain(live)} ({told})" if told else _plain(live)
