"""What an event means: news for a service, an echo of our own write, or a tale that is older than what is known."""

from __future__ import annotations

from typing import Any

import pytest

from semipd_operator.informer import KINDS, Informer
from semipd_operator.workqueue import Key

pytestmark = pytest.mark.unit
KEY = Key("n", "demo")
SPD = "SemiPDService"


def service(version: int, generation: int = 1, status: Any = None, **meta: Any) -> dict[str, Any]:
    base = {"name": "demo", "namespace": "n", "uid": "u", "generation": generation, "resourceVersion": str(version)}
    return {"metadata": {**base, **meta}, "spec": {}, **({} if status is None else {"status": status})}


def child(version: int, name: str = "demo", labels: Any = None, **more: Any) -> dict[str, Any]:
    labels = {"semipd.io/service": "demo"} if labels is None else labels
    meta = {"name": name, "namespace": "n", "uid": f"uid-{name}", "resourceVersion": str(version), "labels": labels}
    return {"metadata": {**meta, **more.pop("metadata", {})}, **more}


def pod(version: int, name: str = "p", ready: str = "True") -> dict[str, Any]:
    return child(version, name, status={"conditions": [{"type": "Ready", "status": ready}]})


def test_of_a_service_the_generation_the_status_and_the_deletion_are_news() -> None:
    one = Informer()
    assert one.told(SPD, service(1)) == {KEY}
    assert one.told(SPD, service(2, labels={"a": "b"})) == set(), "its metadata is the user's"
    assert one.told(SPD, service(3, 2)) == {KEY}
    assert one.told(SPD, service(4, 2, {"url": "someone else's"})) == {KEY}
    assert one.told(SPD, service(5, 2, {"url": "someone else's"}, deletionTimestamp="t")) == {KEY}
    assert one.told(SPD, service(6, 2), gone=True) == {KEY}
    assert one.get(SPD, *KEY) is None


@pytest.mark.parametrize("first", ["answer", "event"])
def test_our_own_status_is_no_news_whichever_way_it_comes_first(first: str) -> None:
    one = Informer()
    one.told(SPD, service(1))
    for version, status in ((2, {"url": "a"}), (3, {"url": "b"})):
        one.writes_status(*KEY, status)
        assert one.told(SPD, service(version, status=status)) == set(), first
        assert one.told(SPD, service(version, status=status)) == set()
    assert one.told(SPD, service(2, status={"url": "a"})) == set(), "late"
    assert one.get(SPD, *KEY)["status"] == {"url": "b"}  # type: ignore[index]
    one.writes_status(*KEY, {"url": "c"})
    assert one.told(SPD, service(4, 2, {"url": "c"})) == {KEY}, "a new generation came along with it"


def test_of_two_tales_the_newer_counts() -> None:
    one = Informer()
    one.told("Pod", pod(5))
    assert one.told("Pod", pod(4, ready="False")) == set()
    assert one.told("Pod", pod(4), gone=True) == set(), "an earlier pod of this name"
    assert len(one.pods(KEY)) == 1
    assert one.told("Pod", pod(6), gone=True) == {KEY} and one.pods(KEY) == []
    assert one.told("Pod", pod(5)) == set() and one.pods(KEY) == [], "the answer to a write, overtaken by the deletion"
    assert one.told("Pod", pod(7)) == {KEY}, "one that is made anew"


def test_a_child_is_news_where_it_means_something_else() -> None:
    one = Informer()
    deployment = {"generation": 1, "annotations": {"deployment.kubernetes.io/revision": "1"}}
    assert one.told("Deployment", child(1, metadata=deployment)) == {KEY}
    busy = {"conditions": [{"type": "Progressing", "status": "True", "reason": "ReplicaSetUpdated"}], "replicas": 3}
    assert one.told("Deployment", child(2, metadata=deployment, status=busy)) == set(), "its controller at work"
    failing = {
        "conditions": [{"type": "ReplicaFailure", "status": "True", "reason": "FailedCreate", "message": "quota"}]
    }
    assert one.told("Deployment", child(3, metadata=deployment, status=failing)) == {KEY}
    assert one.told("Deployment", child(4, metadata={**deployment, "generation": 2}, status=failing)) == {KEY}
    assert one.told("ConfigMap", child(1, data={"a": "1"})) == {KEY}
    assert one.told("ConfigMap", child(2, data={"a": "1"}, metadata={"managedFields": [1]})) == set()
    assert one.told("ConfigMap", child(2, data={"a": "1"}, kind="ConfigMap", apiVersion="v1")) == set()
    assert one.told("ConfigMap", child(3, data={"a": "2"})) == {KEY}
    assert one.told("ConfigMap", child(1, "stranger", labels={})) == set()


def test_an_autoscaler_is_news_only_if_it_says_something_else() -> None:
    one, kind = Informer(), "HorizontalPodAutoscaler"

    def hpa(version: int, status: str = "True", **spec: Any) -> dict[str, Any]:
        condition = {"type": "ScalingActive", "status": status, "reason": "r", "message": str(version)}
        return child(version, spec=spec, status={"currentMetrics": [version], "conditions": [condition]})

    assert one.told(kind, hpa(1)) == {KEY}
    assert one.told(kind, hpa(2)) == set()
    assert one.told(kind, hpa(3, "False")) == {KEY}
    assert one.told(kind, hpa(4, "False", maxReplicas=1)) == {KEY}
    assert one.told(kind, hpa(5, "False", maxReplicas=1), gone=True) == {KEY}
    assert one.told(kind, hpa(6, "False", maxReplicas=1)) == {KEY}, "one that is made anew is news"


def test_a_pod_that_loses_the_label_of_its_service_is_news_for_it_and_is_its_pod_no_more() -> None:
    """It may well bear the label by which it is watched still."""
    one = Informer()
    one.told("Pod", pod(1))
    assert one.told("Pod", child(2, "p", {}, status=pod(1)["status"])) == {KEY} and one.pods(KEY) == []
    assert one.told("Pod", child(3, "p", {}, status=pod(1)["status"]), gone=True) == set() and one.pods(KEY) == []
    one.told("Pod", pod(4))
    other = {"semipd.io/service": "other"}
    assert one.told("Pod", child(5, "p", other, status=pod(1)["status"])) == {KEY, Key("n", "other")}
    assert one.pods(KEY) == [] and len(one.pods(Key("n", "other"))) == 1


def test_of_a_service_that_is_deleted_each_finalizer_that_goes_is_news() -> None:
    one = Informer()
    one.told(SPD, service(1, deletionTimestamp="t", finalizers=["a", "b"]))
    assert one.told(SPD, service(2, deletionTimestamp="t", finalizers=["b"])) == {KEY}
    one.told(SPD, service(3))
    assert one.told(SPD, service(4, finalizers=["a"])) == set(), "before, it is the user's"


def test_a_list_brings_what_the_watch_missed() -> None:
    one = Informer()
    one.told("Pod", pod(1, "a"))
    one.told("Pod", pod(2, "b"))
    one.told("Pod", pod(9, "new"))
    assert one.listed("Pod", [pod(1, "a"), pod(4, "c")], 5) == {KEY}
    assert [obj["metadata"]["name"] for obj in one.pods(KEY)] == ["a", "c", "new"], (
        "b is gone, new is newer than the list"
    )
    assert one.listed("Pod", [pod(1, "a"), pod(4, "c"), pod(9, "new")], 10) == set(), "nothing new"
    one.told("Pod", pod(12, "a"), gone=True)
    assert one.listed("Pod", [pod(1, "a"), pod(4, "c"), pod(9, "new")], 11) == set(), "an old list brings nothing back"
    assert [obj["metadata"]["name"] for obj in one.pods(KEY)] == ["c", "new"]
    assert one.listed("Pod", [], 20, "elsewhere") == set(), "another namespace"
    assert len(one.pods(KEY)) == 2


def test_a_list_of_one_namespace_forgets_no_deletion_in_another() -> None:
    """Whose next list may be of another API server, and some seconds old."""
    one = Informer(("n", "m"))
    one.told("Pod", pod(5, "a"))
    one.told("Pod", pod(12, "a"), gone=True)
    one.listed("Pod", [], 20, "m")
    assert one.listed("Pod", [pod(5, "a")], 11, "n") == set() and not one.pods(KEY)


async def test_it_is_complete_once_every_kind_was_listed_in_every_namespace() -> None:
    one = Informer(("a", "b"))
    for namespace in ("a", "b"):
        for kind in KINDS:
            assert not one._complete.is_set()
            if kind == "PodDisruptionBudget":
                one.refused(kind, "forbidden", namespace)
            else:
                one.listed(kind, (), 1, namespace)
    await one.complete()
    assert one.refusal("PodDisruptionBudget", "a") == "forbidden" and not one.refusal("Pod", "a")


def test_a_namespace_whose_services_are_refused_from_the_start_is_not_waited_for() -> None:
    one = Informer(("a", "b"))
    assert one.leave_out(SPD, "b") and one.leave_out(SPD, "b") and one.left_out == {"b"}
    for kind in KINDS:
        assert not one._complete.is_set()
        one.listed(kind, (), 1, "a")
    assert one._complete.is_set()
    assert not one.leave_out(SPD, "a"), "its services are known"
    one.take_in("b")
    one.listed(SPD, (), 2, "b")
    assert not one.left_out and not one.leave_out(SPD, "b")
    everywhere = Informer()
    assert not everywhere.leave_out(SPD, "") and not everywhere._complete.is_set()


def test_a_kind_may_be_refused_in_one_namespace_and_granted_in_another() -> None:
    one, kind = Informer(("a", "b")), "HorizontalPodAutoscaler"
    one.refused(kind, "forbidden", "a")
    one.listed(kind, (), 1, "b")
    assert (one.refusal(kind, "a"), one.refusal(kind, "b")) == ("forbidden", "")
    one.listed(kind, (), 2, "a")
    assert not one.refusal(kind, "a")
    everywhere = Informer()
    everywhere.refused(kind, "forbidden")
    assert everywhere.refusal(kind, "a") == "forbidden"


def test_what_was_known_of_a_kind_is_forgotten_when_it_is_refused() -> None:
    one, kind = Informer(("n", "m")), "HorizontalPodAutoscaler"
    one.told(kind, child(7))
    other = child(8, metadata={"namespace": "m"})
    one.told(kind, other)
    one.told("Deployment", child(6))
    theirs = {"metadata": {"name": "theirs", "namespace": "n"}}
    one.autoscalers([{**theirs, "spec": {"scaleTargetRef": {"kind": "Deployment", "name": "demo"}}}], "n")
    assert one.foreign_scaler(KEY) == "theirs"
    assert one.refused(kind, "forbidden", "n") == {KEY}
    assert one.foreign_scaler(KEY) == ""
    assert one.get(kind, "n", "demo") is None and one.get(kind, "m", "demo")
    assert one.refused(kind, "forbidden", "n") == set(), "once"
    one.listed(kind, [child(9)], 9, "n")
    assert one.get(kind, "n", "demo"), "granted again"
