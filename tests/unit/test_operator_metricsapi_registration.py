"""Whose the registration of the external metrics API is: ours, another's, and what each leaves alone."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from tests.unit.metricsapi_bench import Api, Authority, registration

from semipd_operator.metricsapi.registration import API_SERVICE, Backend, BelongsToAnother, Registration

pytestmark = pytest.mark.unit


def of_another(**metadata: Any) -> dict[str, Any]:
    meta = {"name": API_SERVICE, "uid": "u", "resourceVersion": "5", **metadata}
    return {"metadata": meta, "spec": {"service": {"namespace": "keda", "name": "adapter"}}}


async def test_the_registration_follows_the_wish() -> None:
    api = Api(Authority.make())
    for undecided in (None, False):
        await registration(api, undecided).settle(b"ca")
        assert ("APIService", API_SERVICE) not in api.objects
    await registration(api).settle(b"ca")
    live = api.objects["APIService", API_SERVICE]
    assert live["spec"]["service"] == {"namespace": "sys", "name": "semipd", "port": 443}
    assert [(each["kind"], each["uid"]) for each in live["metadata"]["ownerReferences"]] == [("ClusterRole", "role-1")]
    await registration(api).settle(b"another ca")
    assert api.bundle == "another ca"
    await registration(api, None).settle(b"another ca")
    assert ("APIService", API_SERVICE) in api.objects, "a leader that does not know yet takes nothing back"
    await registration(api, False).settle(b"another ca")
    assert ("APIService", API_SERVICE) not in api.objects


async def test_one_that_changes_as_it_is_withdrawn_stays_and_is_not_said_to_be_gone(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level("INFO")
    api = Api(Authority.make())
    await registration(api).settle(b"ca")
    read = copy.deepcopy(api.objects["APIService", API_SERVICE])

    async def earlier(*_: str) -> dict[str, Any]:
        return read

    with monkeypatch.context() as late:
        late.setattr(api, "get", earlier)
        api.objects["APIService", API_SERVICE]["metadata"]["resourceVersion"] = "9"
        await registration(api, False).settle(b"ca")
    assert ("APIService", API_SERVICE) in api.objects and "withdrew" not in caplog.text
    await registration(api, False).settle(b"ca")
    assert ("APIService", API_SERVICE) not in api.objects and "withdrew" in caplog.text


async def test_anothers_registration_is_left_alone() -> None:
    api = Api(Authority.make())
    api.objects["APIService", API_SERVICE] = before = of_another()
    for wanted in (True, None, False):
        with pytest.raises(BelongsToAnother, match="belongs to keda/adapter"):
            await registration(api, wanted).settle(b"ca")
    await registration(api).withdraw()
    assert api.objects["APIService", API_SERVICE] == before and not api.applied and not api.merged


async def test_our_ownership_comes_off_what_another_took_over() -> None:
    api = Api(Authority.make())
    await registration(api).settle(b"ca")
    ours = api.objects["APIService", API_SERVICE]["metadata"]["ownerReferences"]
    theirs = {"kind": "ClusterRole", "name": "keda", "uid": "k"}
    api.objects["APIService", API_SERVICE] = of_another(ownerReferences=[*ours, theirs])
    with pytest.raises(BelongsToAnother):
        await registration(api).settle(b"ca")
    assert api.merged == [("APIService", {"metadata": {"ownerReferences": [theirs], "resourceVersion": "5"}})]
    with pytest.raises(BelongsToAnother):
        await registration(api).settle(b"ca")
    assert len(api.merged) == 1


async def test_nothing_of_ours_stays_on_what_another_took_over() -> None:
    """Whoever applies his own over ours by force has what he names, and the rest is left: our CA, by which nobody would
    believe his server, and the word to cert-manager to write it again."""
    api = Api(Authority.make())
    injected = {"cert-manager.io/inject-ca-from": "sys/semipd"}
    backend = Backend("sys", "semipd")
    ours = Registration(api, backend, lambda: True, injected)  # type: ignore[arg-type]
    await ours.settle(b"ca")
    live = api.objects["APIService", API_SERVICE]
    live["spec"]["service"] = {"namespace": "keda", "name": "adapter"}
    labels = {**live["metadata"]["labels"], "app.kubernetes.io/managed-by": "Helm", "team": "a"}
    live["metadata"] |= {"labels": labels, "annotations": {**injected, "note": "n"}, "resourceVersion": "6"}
    with pytest.raises(BelongsToAnother):
        await ours.settle(b"ca")
    metadata = {
        "ownerReferences": None,
        "annotations": dict.fromkeys(injected),
        "labels": {"app.kubernetes.io/part-of": None},
        "resourceVersion": "6",
    }
    assert api.merged == [("APIService", {"metadata": metadata, "spec": {"caBundle": None}})]
    live["spec"]["caBundle"] = "dGhlaXJz"
    live["metadata"] = {"name": API_SERVICE, "uid": "u", "resourceVersion": "7", "annotations": {"note": "n"}}
    with pytest.raises(BelongsToAnother):
        await ours.settle(b"ca")
    assert len(api.merged) == 1, "and nothing of theirs"


async def test_two_releases_leave_each_others_registration_alone() -> None:
    """Both write the same labels: one took them off the other's, which wrote them again, each ten seconds."""
    api = Api(Authority.make())
    await registration(api).settle(b"ca")
    second = Registration(api, Backend("other", "second"), lambda: True, {})  # type: ignore[arg-type]
    with pytest.raises(BelongsToAnother, match="belongs to sys/semipd"):
        await second.settle(b"another ca")
    assert not api.merged
    api.applied.clear()
    await registration(api).settle(b"ca")
    assert not api.applied


async def test_one_that_another_makes_at_the_same_moment_is_not_taken() -> None:
    api = Api(Authority.make())
    seen = api.get

    async def too_early(api_version: str, kind: str, namespace: str, name: str) -> dict[str, Any] | None:
        return None if kind == "APIService" else await seen(api_version, kind, namespace, name)

    api.objects["APIService", API_SERVICE] = of_another()
    api.get = too_early  # type: ignore[method-assign]
    with pytest.raises(BelongsToAnother, match="changed by another"):
        await registration(api).settle(b"ca")
