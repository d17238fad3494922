"""Keys that are replaced while the operator runs."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from tests.unit.kube_stand_in import KEY
from tests.unit.operator_reconciler import Fixture
from tests.unit.operator_rendered import SETTINGS, make

from semipd_agent.contract import AgentFile, token_digest
from semipd_operator.keys import REMEMBERED_SECONDS, KeyRing
from semipd_operator.reconcile import Next
from semipd_operator.render.configmap import agent_file, with_digests
from semipd_operator.settings import SettingsError

pytestmark = pytest.mark.unit
OLD, NEW = b"0123456789abcdef", b"fedcba9876543210"


@dataclass
class Clock:
    now: float = 100.0

    def __call__(self) -> float:
        return self.now


def test_a_key_that_is_replaced_is_remembered_for_a_while(tmp_path: Path) -> None:
    file, clock = tmp_path / "key", Clock()
    file.write_bytes(OLD + b"\n")
    ring = KeyRing((file, tmp_path / "previous-key"), clock)
    assert ring.keys == (OLD,) and not ring.reread()
    file.write_bytes(NEW)
    assert ring.reread() and ring.keys == (NEW, OLD)
    clock.now += REMEMBERED_SECONDS - 1
    assert not ring.reread()
    clock.now += 2
    assert ring.reread() and ring.keys == (NEW,), "then it is worth nothing to whoever has it"


def test_the_key_before_may_be_written_beside_the_new_one(tmp_path: Path) -> None:
    files = tmp_path / "key", tmp_path / "previous-key"
    for file, key in zip(files, (NEW, OLD), strict=True):
        file.write_bytes(key)
    ring = KeyRing(files)
    assert ring.keys == (NEW, OLD)
    files[1].unlink()
    assert ring.reread() and ring.keys == (NEW,)


def test_a_key_that_cannot_be_read_changes_nothing_and_is_said_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "key"
    file.write_bytes(OLD)
    ring = KeyRing((file,))
    file.write_bytes(b"short")
    for _ in range(3):
        assert not ring.reread() and ring.keys == (OLD,)
    assert caplog.text.count("at least 16") == 1
    file.write_bytes(OLD)
    ring.reread()
    file.unlink()
    assert not ring.reread() and caplog.text.count("the keys stay as they are") == 2, "another fault, another word"
    file.write_bytes(b"short")
    with pytest.raises(SettingsError, match="at least 16"):
        KeyRing((file,))


def test_while_a_key_is_replaced_the_pods_accept_both_tokens() -> None:
    both = replace(SETTINGS, key=NEW, earlier_keys=(OLD,))
    tokens = both.tokens("team", "demo", "uid-1")
    accepted = agent_file(make({}), both).token_sha256
    assert accepted == tuple(token_digest(token) for token in tokens) and len(set(tokens)) == 2
    assert agent_file(make({}), replace(both, earlier_keys=())).token_sha256 == accepted[:1]
    assert agent_file(make({}), replace(both, key=b"")).token_sha256 == (), "without a key the agents obey nobody"


TWO_GPUS = {"spec": {"containers": [{"name": "engine", "resources": {"limits": {"nvidia.com/gpu": 2}}}]}}


def taken(one: Fixture) -> None:
    """The Service's name is someone else's."""
    live = one.kube.objects["Service", *KEY]
    owner = {"apiVersion": "v1", "kind": "Chart", "name": "web", "uid": "x", "controller": True}
    one.kube.put({**live, "metadata": {**live["metadata"], "ownerReferences": [owner]}})


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"paused": True}, "Paused"),
        ({"podTemplate": TWO_GPUS}, "InvalidPodTemplate"),
        ({}, "NameConflict"),
        ({"engine": {"device": "tpu"}}, "InvalidSpec"),
    ],
)
async def test_a_new_key_reaches_the_pods_of_a_service_whose_specification_is_not_put_in_force(
    changes: dict[str, Any], reason: str
) -> None:
    """They would answer 401 once the old key is forgotten. Nothing else of the ConfigMap changes."""
    one = Fixture()
    await one.reconcile()
    config_map = ("ConfigMap", KEY.namespace, f"{KEY.name}-agent")

    def file() -> AgentFile:
        return AgentFile.model_validate_json(one.kube.objects[config_map]["data"]["agent.json"])

    def others() -> dict[Any, Any]:
        left = {key: live for key, live in one.kube.objects.items() if key != config_map and key[0] != "SemiPDService"}
        return {key: live["metadata"]["resourceVersion"] for key, live in left.items()}

    if reason == "NameConflict":
        taken(one)
    if reason == "InvalidSpec":  # and no pods that could stay as they are
        one.kube.end("Deployment", KEY.name)
    stood, before = file(), others()
    one.change(partition={"prefillPercent": 20}, **changes)
    both = replace(SETTINGS, key=NEW, earlier_keys=(SETTINGS.key,))
    for settings in (SETTINGS, both, both):
        one.reconciler.use(settings)
        await one.reconcile()
        assert one.kube.condition("SpecAccepted")["reason"] == reason
        assert file() == stood.model_copy(update={"token_sha256": agent_file(make({}), settings).token_sha256})
    assert others() == before and one.kube.asked["apply", "ConfigMap"] == 2
    one.kube.refuse["apply", "ConfigMap"], one.kube.words = 500, "etcdserver: request timed out"
    one.reconciler.use(replace(SETTINGS, key=NEW))
    assert await one.reconcile() is Next.RETRY
    one.kube.refuse.clear()
    await one.reconcile()
    assert file().token_sha256 == agent_file(make({}), replace(SETTINGS, key=NEW)).token_sha256


async def test_a_damaged_configuration_and_one_of_someone_else_get_no_digests() -> None:
    """There is nothing that could be kept beside them."""
    one = Fixture()
    await one.reconcile()
    one.change(paused=True)
    live = one.kube.objects["ConfigMap", KEY.namespace, f"{KEY.name}-agent"]
    foreign = {**live, "metadata": {**live["metadata"], "ownerReferences": []}}
    one.reconciler.use(replace(SETTINGS, key=NEW))
    for left in ({**live, "data": {"agent.json": "{"}}, {**live, "data": {"agent.json": "[]"}}, {**live, "data": {}}):
        one.kube.put(left)
        await one.reconcile()
    one.kube.put(foreign)
    await one.reconcile()
    assert one.kube.asked["apply", "ConfigMap"] == 1
    assert one.kube.condition("SpecAccepted")["reason"] == "Paused"


def test_what_a_newer_operator_wrote_beside_the_digests_stays() -> None:
    newer = {"tokenSha256": ["old"], "config": {"generation": 7, "future": 1}, "future": {"a": [1]}}
    live = {"metadata": {}, "data": {"agent.json": json.dumps(newer), "model-revision": "c0ffee", "theirs": "x"}}
    made = with_digests(live, make({}), replace(SETTINGS, name="ops/lease"))
    assert made is not None and made["data"].keys() == {"agent.json", "model-revision"}, "what is not ours is not taken"
    assert made["data"]["model-revision"] == "c0ffee"
    digests = list(agent_file(make({}), SETTINGS).token_sha256)
    assert json.loads(made["data"]["agent.json"]) == newer | {"tokenSha256": digests}
    assert made["metadata"]["annotations"] == {"semipd.io/operator": "ops/lease"}
    assert with_digests(made, make({}), SETTINGS) is None
