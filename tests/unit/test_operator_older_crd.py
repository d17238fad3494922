"""A CRD of the release before, which has no place for some fields of a status: the rest of it is written at once."""

from __future__ import annotations

from typing import Any

import pytest
from tests.unit.kube_stand_in import KEY, StandIn, new_service
from tests.unit.operator_reconciler import Fixture, ready_pod

from semipd_operator.answers import ApiRefused
from semipd_operator.api.v1alpha1.resource import SemiPDService
from semipd_operator.skew import AGAIN_SECONDS, OlderCRD

pytestmark = pytest.mark.unit
UNTYPED = "failed to create typed patch object (team/demo; semipd.io/v1alpha1, Kind=SemiPDService): "
UNDECLARED = "{}: field not declared in schema"


class Older(StandIn):
    """Refuses as kube-apiserver does: with the first field of each object that `unknown_fields` names."""

    unknown_fields: tuple[tuple[str, ...], ...] = ()
    wants = ""
    """A field that it requires."""

    async def apply_status(self, service: SemiPDService, status: Any) -> Any:
        self._ask("apply", "status")
        first: dict[tuple[str, ...], str] = {}
        for *above, name in self.unknown_fields:
            part = status
            for one in above:
                part = part.get(one) or {}
            if name in part:
                first.setdefault(tuple(above), UNDECLARED.format(".".join(("", "status", *above, name))))
        if first:
            found = list(first.values())
            raise ApiRefused(500, UNTYPED + (found[0] if len(found) == 1 else "\n  ".join(("errors:", *found))))
        if self.wants and self.wants not in status:
            raise ApiRefused(422, f'SemiPDService "demo" is invalid: status.{self.wants}: Required value')
        return self.put({**self.service(), "status": status})


async def serving(*unknown: tuple[str, ...]) -> Fixture:
    kube = Older(new_service(slo={"ttftMilliseconds": 500}))
    kube.unknown_fields = unknown
    one = Fixture(kube=kube)
    kube.put(ready_pod())
    await one.reconcile()
    return one


SEVERAL = (("slo", "percentile"), ("slo", "windowSeconds"), ("templateHash",), ("url",))


async def test_all_but_what_an_older_crd_lacks_is_written_at_once_and_that_is_told_once() -> None:
    one = await serving(*SEVERAL)
    shown = one.kube.service()["status"]
    assert one.kube.condition("Ready") and shown["observedGeneration"] == 1
    assert "url" not in shown and "templateHash" not in shown
    assert "percentile" not in shown["slo"] and "windowSeconds" not in shown["slo"] and shown["slo"]["ttft"]
    assert one.kube.told.count("CRDOutdated") == 1 and "StatusRefused" not in one.kube.told
    assert "no status.slo.percentile, status.slo.windowSeconds, status.templateHash, status.url;" in one.kube.said[0]
    assert "kubectl apply --server-side --force-conflicts -f crds/" in one.kube.said[0]
    before = one.kube.asked["apply", "status"]
    one.change(slo={"ttftMilliseconds": 400}, replicas=3)
    await one.reconcile()
    assert one.kube.service()["status"]["observedGeneration"] == 2
    assert one.kube.asked["apply", "status"] == before + 1, "what is known to be refused is not tried again each time"
    assert one.kube.told.count("CRDOutdated") == 1 and "StatusRefused" not in one.kube.told


async def test_the_whole_is_written_by_itself_once_the_crd_has_a_place_for_it() -> None:
    one = await serving(*SEVERAL)
    one.now += AGAIN_SECONDS
    await one.statuses.publish(KEY)
    assert "url" not in one.kube.service()["status"], "it was tried, and is as old as before"
    assert one.kube.told.count("CRDOutdated") == 1 and "StatusRefused" not in one.kube.told
    one.kube.unknown_fields = ()  # type: ignore[attr-defined]
    quiet = one.kube.asked["apply", "status"]
    await one.statuses.publish(KEY)
    assert one.kube.asked["apply", "status"] == quiet
    one.now += AGAIN_SECONDS
    await one.statuses.publish(KEY)
    assert one.kube.service()["status"]["url"] and one.kube.service()["status"]["slo"]["percentile"]
    await one.statuses.publish(KEY)
    assert one.kube.asked["apply", "status"] == quiet + 1


async def test_services_that_come_and_go_leave_nothing_behind() -> None:
    one = await serving(*SEVERAL)
    assert one.statuses._cut
    one.kube.refuse["apply", "status"] = 403
    one.change(slo={"ttftMilliseconds": 400})
    with pytest.raises(ApiRefused):
        await one.reconcile()
    assert one.statuses._denied
    one.kube.end("SemiPDService", KEY.name)
    await one.reconcile()
    assert not (one.statuses._cut or one.statuses._denied)


@pytest.mark.parametrize("known", [True, False], ids=["which it has a place for", "which nobody says"])
async def test_a_crd_that_wants_what_was_left_out_gets_the_whole_at_once(known: bool) -> None:
    one = await serving(*SEVERAL)
    one.kube.wants = "url" if known else "phase"  # type: ignore[attr-defined]
    one.kube.unknown_fields = () if known else SEVERAL  # type: ignore[attr-defined]
    one.change(slo={"ttftMilliseconds": 400})
    if known:
        await one.reconcile()
        assert one.kube.service()["status"]["url"] and one.kube.service()["status"]["observedGeneration"] == 2
    else:
        with pytest.raises(ApiRefused):
            await one.reconcile()
    assert ("StatusRefused" in one.kube.told) is not known


def test_a_field_of_a_list_is_left_out_of_all_its_elements() -> None:
    one = OlderCRD(lambda: 0.0)
    words = UNTYPED + UNDECLARED.format('.status.partition.pods[podName="a.b-1"].stepTimes.prefill2')
    assert one.learn(ApiRefused(500, words)) and not one.learn(ApiRefused(500, words)), "the same again is no news"
    pods = [{"podName": "a.b-1", "stepTimes": {"prefill2": 1, "decode": 2}}, {"podName": "c", "stepTimes": {}}]
    status = {"partition": {"pods": pods}, "stepTimes": {"prefill2": 3}}
    known, lacking = one.declared(status)
    assert known["partition"]["pods"] == [{"podName": "a.b-1", "stepTimes": {"decode": 2}}, pods[1]]
    assert known["stepTimes"] == {"prefill2": 3} and lacking == ("status.partition.pods.stepTimes.prefill2",)
    assert pods[0]["stepTimes"]["prefill2"] == 1, "what is shown is compared with the whole"


@pytest.mark.parametrize(
    ("status", "words", "remedy"),
    [
        (500, UNTYPED + ".status.slo: expected map, got &{1}", "bring the CRD to the operator's release"),
        (422, 'SemiPDService "demo" is invalid: status.reason: Too long', "bring the CRD to the operator's release"),
        (422, "ValidatingAdmissionPolicy 'no' denied request: no", "have the policy, webhook or role"),
    ],
)
async def test_any_other_refusal_of_a_status_stays_one_and_says_who_can_end_it(
    status: int, words: str, remedy: str
) -> None:
    one = Fixture(new_service())
    one.kube.refuse["apply", "status"], one.kube.words = status, words
    with pytest.raises(ApiRefused):
        await one.reconcile()
    assert one.kube.told == ["StatusRefused"] and f"Remedy: {remedy}" in one.kube.said[0]
