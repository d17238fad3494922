"""What others say is shown to whoever may read a service: bounded, and no secret is among it."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from tests.unit.operator_observed import NOT_READY, heard, observed, report
from tests.unit.operator_observed import pod as ready_pod

from semipd_agent.contract import EnginePhase, EngineStatus, PartitionReason, PartitionState
from semipd_operator.api.v1alpha1.resource import dump_status
from semipd_operator.api.v1alpha1.status import SemiPDServiceStatus
from semipd_operator.status import AgentView, summarise, words
from semipd_operator.status.events import events
from semipd_operator.status.pods import pod_view
from semipd_operator.status.refusals import refusal

pytestmark = pytest.mark.unit

SECRET = "q7Zs4Tn9Vb2Lk8Wd"
SAID = {
    "header": f"Authorization: Bearer {SECRET}",
    "header without a scheme": f"authorization: {SECRET}",
    "two words": f"Authorization: Token {SECRET}",
    "dictionary of headers": f"headers={{'authorization': 'Bearer {SECRET}'}}",
    "bytes": f"(b'authorization', b'x'), {{b'authorization': b'Bearer {SECRET}'}}",
    "JSON": json.dumps({"Authorization": f"Bearer {SECRET}"}),
    "command line": f'curl -H "Authorization: Bearer {SECRET}" http://demo:8000',
    "another header": f"X-Api-Key: {SECRET}",
    "cookie": f"cookie: {SECRET}",
    "the scheme alone": f"sent Bearer {SECRET} to the hub",
    "basic": "sent Basic cTdaczRUbjlWYjJMazhXZA==",
    "hub token": f"Invalid user token hf_{SECRET}.",
    "OpenAI style": f"unknown key sk-proj-{SECRET}",
    "forge": f"ghp_{SECRET} is not valid",
    "cloud": "AKIAQ7ZS4TN9VB2L",
    "JSON Web Token": f"token eyJhbGciOiJI.{SECRET}.{SECRET}",
    "environment": f"HF_TOKEN={SECRET} semipd-engine fetch",
    "flag": f"--api-key={SECRET}",
    "named": f'{{"password": "{SECRET}", "user": "u"}}',
    "secret key": f"aws_secret_access_key={SECRET}",
    "user of a URL": f"failed to pull https://team:{SECRET}@registry.team/engine: not found",
    "signature of a URL": f"GET https://cdn/x?X-Amz-Credential={SECRET}&X-Amz-Signature={SECRET} 403",
    "private key": f"-----BEGIN PRIVATE KEY-----\n{SECRET}\n{SECRET}\n-----END PRIVATE KEY-----",
}


def crashed(said: str, name: str = "engine") -> dict[str, Any]:
    ended = {"exitCode": 1, "message": said}
    container = {"name": name, "state": {"waiting": {"reason": "CrashLoopBackOff"}}, "lastState": {"terminated": ended}}
    where = "containerStatuses" if name == "engine" else "initContainerStatuses"
    return {"metadata": {"name": "p1", "uid": "p1"}, "status": {where: [container]}}


def shown(status: SemiPDServiceStatus) -> str:
    told = [event.message for event in events(SemiPDServiceStatus(), status)]
    return json.dumps([dump_status(status), told])


@pytest.mark.parametrize("case", SAID)
def test_a_secret_that_a_container_writes_last_is_in_no_status_and_no_event(case: str) -> None:
    said = f"Traceback\n{SAID[case]}\nthe end"
    lines = [SAID[case], said, json.dumps({"reason": "DownloadFailed", "message": said})]
    for pod in [*(crashed(line) for line in lines), *(crashed(line, "model") for line in lines)]:
        status = shown(summarise(observed(pods=(pod_view(pod),), agents={})))
        assert SECRET not in status and "cTdaczRUbjlWYjJMazhXZA" not in status and "Q7ZS4TN9VB2L" not in status
    failed = {"state": PartitionState.FAILED, "reason": PartitionReason.MPS_START_FAILED, "message": said}
    engine = EngineStatus(state=EnginePhase.FAILED, ready=False, reason="LoadFailed", message=said)
    one = heard(report(engine=engine, partition={**failed, "applied": None}), error=said)
    assert SECRET not in shown(summarise(observed(pods=(NOT_READY,), agents={"p1": one})))
    refused = refusal({"status": {"conditions": [{"type": "ReplicaFailure", "status": "True", "message": said}]}})
    assert SECRET not in shown(summarise(observed(pods=(), agents={}, refusal=refused)))


@pytest.mark.parametrize(
    "said",
    [
        'MountVolume.SetUp failed for volume "api-keys" : secret "no-keys" not found',
        'MountVolume.SetUp failed for volume "api-keys" : references non-existent secret key: token',
        "hf://org/m@main: the hub refused the token (tokenSecretRef)",
        "tokenizer.json: EOF while parsing a list at line 5207 column 3; the API needs a fast tokenizer file",
        "KeyError: 'pad_token' in generation_config.json; max_tokens=5",
        'pods "demo-7d" is forbidden: exceeded quota: team, requested: pods=1, used: pods=2, limited: pods=2',
        "the cpu device needs basic vector instructions; unauthorized: authentication required",
        "container engine ended 4 times: 模型 is missing in /models/模型 – naïve",
    ],
)
def test_words_that_are_no_secret_stay_as_they_are(said: str) -> None:
    assert words.told(said) == said


def test_a_megabyte_of_words_and_a_reason_that_is_none_make_a_status_of_a_few_kilobytes() -> None:
    """A reason or message that the CRD refuses would silence the status."""
    long = "x\x00\u202e\n" * 500_000
    progress = 10**5000
    engine = EngineStatus(
        state=EnginePhase.FAILED,
        ready=False,
        reason=long,
        message=long,
        architecture=long,
        load_progress_percent=progress,
    )
    failed = {"state": "Failed", "reason": "no reason: 😀" * 100, "message": long, "applied": None}
    failed |= {"enforcement": f"Bearer {SECRET} {long}", "policy": f"Bearer {SECRET} {long}", "mode": long}
    one = heard(report(engine=engine, partition=failed))
    pods = tuple(pod_view({**crashed(long), "metadata": {"name": f"p{n}", "uid": f"p{n}"}}) for n in range(100))
    status = summarise(observed(pods=pods, agents={f"p{n}": one for n in range(100)}))
    assert len(shown(status)) < 64_000 and status.model and status.model.load_progress_percent == 100
    ready = tuple(ready_pod(f"p{n}") for n in range(100))
    serving = summarise(observed(pods=ready, agents={f"p{n}": one for n in range(100)}))
    assert len(shown(serving)) < 64_000 and SECRET not in shown(serving) and serving.partition
    assert serving.partition.policy == serving.partition.enforced == serving.partition.pods[0].enforcement
    silent = {f"p{n}": AgentView(error=long) for n in range(100)}
    assert len(shown(summarise(observed(pods=ready, agents=silent)))) < 64_000
    for condition in status.conditions:
        assert re.fullmatch("[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?", condition.reason)  # metav1.Condition's
        assert len(condition.reason) <= 128 and condition.message.isprintable()
    assert words.reason("  ") == words.reason("9") == "Unknown" and words.reason("CoreTooHot") == "CoreTooHot"
