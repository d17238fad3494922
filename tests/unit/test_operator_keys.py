"""Keys that are replaced while the operator runs, and services that another operator looks after."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from tests.unit.operator_rendered import SETTINGS, make

from semipd_agent.contract import AgentFile, token_digest
from semipd_operator.claims import DEAD_AFTER, Claims, own_name
from semipd_operator.keys import REMEMBERED_SECONDS, KeyRing
from semipd_operator.kube import ApiRefused
from semipd_operator.render.configmap import agent_file, config_map
from semipd_operator.settings import CLAIM_ANNOTATION, LeaseName, SettingsError
from semipd_operator.workqueue import Key

pytestmark = pytest.mark.unit
OLD, NEW = b"0123456789abcdef", b"fedcba9876543210"
SERVICE = Key("team", "demo")


@dataclass
class Clock:
    now: float = 100.0

    def __call__(self) -> float:
        return self.now


# ---- keys ------------------------------------------------------------------------------------------------------------


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


# ---- claims ----------------------------------------------------------------------------------------------------------


def test_an_operator_is_known_by_its_lease_or_by_its_key() -> None:
    assert own_name(LeaseName("sys", "spd"), OLD) == "sys/spd"
    assert own_name(None, OLD) != own_name(None, NEW)
    assert OLD.decode() not in own_name(None, OLD) and own_name(None, OLD) == own_name(None, OLD)


def test_the_config_map_bears_the_name() -> None:
    made = config_map(make({}), replace(SETTINGS, name="sys/spd"))
    assert made["metadata"]["annotations"] == {CLAIM_ANNOTATION: "sys/spd"}
    assert AgentFile.model_validate_json(made["data"]["agent.json"]).token_sha256


def bearing(name: str, version: int = 1) -> dict[str, Any]:
    return {"metadata": {"annotations": {CLAIM_ANNOTATION: name}, "resourceVersion": str(version)}}


@dataclass
class Leases:
    renewed: dict[str, datetime] = field(default_factory=dict)
    refused: int = 0

    async def get(self, api_version: str, kind: str, namespace: str, name: str) -> dict[str, Any] | None:
        if self.refused:
            raise ApiRefused(self.refused, "forbidden")
        at = self.renewed.get(f"{namespace}/{name}")
        return at and {"spec": {"holderIdentity": "x", "renewTime": at.strftime("%Y-%m-%dT%H:%M:%S.%fZ")}}


async def test_what_bears_no_name_or_ours_is_ours() -> None:
    claims = Claims(Leases(), "sys/spd")
    for live in (None, {"metadata": {}}, bearing("sys/spd")):
        assert await claims.other(SERVICE, live) == ""


async def test_what_a_living_operator_looks_after_is_left_alone_until_it_is_gone() -> None:
    leases = Leases({"a/spd": datetime.now(UTC)})
    claims = Claims(leases, "b/spd")
    assert await claims.other(SERVICE, bearing("a/spd")) == "a/spd"
    leases.renewed["a/spd"] = datetime.now(UTC) - DEAD_AFTER + timedelta(seconds=5)
    assert await claims.other(SERVICE, bearing("a/spd")) == "a/spd", "one replica may be handing over to the next"
    leases.renewed["a/spd"] = datetime.now(UTC) - DEAD_AFTER - timedelta(seconds=5)
    assert await claims.other(SERVICE, bearing("a/spd")) == ""
    del leases.renewed["a/spd"]
    assert await Claims(leases, "b/spd").other(SERVICE, bearing("a/spd")) == "", "uninstalled"


@pytest.mark.parametrize("name", ["key-1234", "a/spd"])
async def test_where_no_lease_can_be_seen_the_overwritten_one_yields_for_longer_each_time(name: str) -> None:
    clock = Clock()
    claims = Claims(Leases(refused=403), "b/spd", clock)
    assert await claims.other(SERVICE, bearing(name)) == "", "a successor with another key must not wait"
    assert await claims.other(SERVICE, bearing(name)) == "", "our own name is on its way there"
    waits = []
    for version in range(2, 10):
        began = clock.now
        while await claims.other(SERVICE, bearing(name, version)):
            clock.now += 10
        waits.append(clock.now - began)
    assert waits[:3] == [60, 120, 240] and waits[-1] == 3600


async def test_a_server_in_trouble_is_no_reason_to_take_over() -> None:
    claims = Claims(Leases(refused=503), "b/spd")
    for _ in range(2):
        with pytest.raises(ApiRefused):
            await claims.other(SERVICE, bearing("a/spd"))


async def test_a_conflict_is_told_once_and_again_when_the_event_is_gone() -> None:
    clock = Clock()
    claims = Claims(Leases(), "b/spd", clock)
    assert claims.news(SERVICE, "a/spd") and not claims.news(SERVICE, "a/spd")
    assert claims.news(SERVICE, "c/spd")
    clock.now += 3600
    assert claims.news(SERVICE, "c/spd")
