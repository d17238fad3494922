"""The external metrics API: who is let in, and the documents."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from semipd_operator.__main__ import parse
from semipd_operator.metricsapi import wire
from semipd_operator.metricsapi.authorization import Authorizer
from semipd_operator.metricsapi.frontproxy import AggregationOff, Caller, FrontProxy, Unauthenticated
from semipd_operator.settings import SettingsError

pytestmark = pytest.mark.unit
NOW = datetime(2026, 1, 2, tzinfo=UTC)
NAMES = ("semipd.sys.svc", "semipd.sys.svc.cluster.local")
PATH = "/apis/external.metrics.k8s.io/v1beta1"
METRIC = f"{PATH}/namespaces/team/semipd_utilization_ratio"


# ---- flags -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flags", "names"),
    [
        (("--metrics-api-service=semipd",), "write NAMESPACE/NAME"),
        (("--metrics-api-service=sys/semipd",), "--metrics-api-secret"),
        (("--metrics-api-service=sys/semipd", "--metrics-api-secret=s", "--metrics-api-tls-dir=/t"), "needs one of"),
    ],
)
def test_flags_that_say_too_little_or_too_much(tmp_path: Path, flags: tuple[str, ...], names: str) -> None:
    key = tmp_path / "key"
    key.write_text("0123456789abcdef")
    needed = ("--engine-image=e", f"--key-file={key}")
    assert parse(needed)[0].metrics_api is None, "it is not served unless asked for"
    with pytest.raises(SettingsError, match=names):
        parse([*needed, *flags])


# ---- who asks --------------------------------------------------------------------------------------------------------


def config_map(client_ca: str = "PEM", names: str = '["front-proxy-client"]') -> dict[str, Any]:
    return {
        "data": {
            "client-ca-file": "another",
            "requestheader-client-ca-file": client_ca,
            "requestheader-allowed-names": names,
            "requestheader-username-headers": '["X-Remote-User"]',
            "requestheader-group-headers": '["X-Remote-Group"]',
            "requestheader-extra-headers-prefix": '["X-Remote-Extra-"]',
        }
    }


def test_the_front_proxy_names_the_user() -> None:
    proxy = FrontProxy.parse(config_map())
    headers = [
        ("x-remote-user", "alice"),
        ("X-Remote-Group", "a"),
        ("X-Remote-Group", "b"),
        ("X-Remote-Extra-Example.com%2Fscopes", "view"),
    ]
    caller = proxy.identify("front-proxy-client", headers)
    assert (caller.user, caller.groups, dict(caller.extra)) == ("alice", ("a", "b"), {"example.com/scopes": ("view",)})
    with pytest.raises(Unauthenticated, match="mallory"):
        proxy.identify("mallory", headers)
    with pytest.raises(Unauthenticated, match="no user"):
        proxy.identify("front-proxy-client", [])
    assert FrontProxy.parse(config_map(names="[]")).identify("anyone of that CA", headers).user == "alice"


@pytest.mark.parametrize("broken", [None, {}, {"data": {"client-ca-file": "x"}}, config_map(names="not json")])
def test_without_an_aggregation_layer_it_says_so(broken: dict[str, Any] | None) -> None:
    with pytest.raises(AggregationOff, match="kube-system/extension-apiserver-authentication"):
        FrontProxy.parse(broken)


class Reviews:
    """Answers reviews; only `alice` may do anything."""

    def __init__(self) -> None:
        self.asked: list[dict[str, Any]] = []

    async def create(self, api_version: str, kind: str, namespace: str, body: dict[str, Any]) -> dict[str, Any]:
        assert (api_version, kind, namespace) == ("authorization.k8s.io/v1", "SubjectAccessReview", "")
        self.asked.append(body["spec"])
        return {"status": {"allowed": body["spec"]["user"] == "alice"}}


async def test_the_api_server_is_asked_once_for_a_while() -> None:
    reviews = Reviews()
    authorizer = Authorizer(reviews)
    alice, eve = Caller("alice", ("g",)), Caller("eve")
    assert await authorizer.may_read_metric(alice, "team", "m")
    assert await authorizer.may_read_metric(alice, "team", "m")
    assert not await authorizer.may_read_metric(eve, "team", "m")
    assert [spec["user"] for spec in reviews.asked] == ["alice", "eve"]
    wanted = {"group": "external.metrics.k8s.io", "version": "v1beta1", "namespace": "team", "resource": "m"}
    assert reviews.asked[0]["resourceAttributes"] == wanted | {"verb": "list"}
    assert await authorizer.may_read_metric(Caller("root", ("system:masters",)), "team", "m")
    assert len(reviews.asked) == 2, "the API server's own group is not asked about"
    await authorizer.may_read_metric(Caller("alice", ("g",), {"scopes": ("info",)}), "team", "m")
    assert reviews.asked[-1]["extra"] == {"scopes": ["info"]}, "a token that may do less than its user is asked about"


# ---- documents -------------------------------------------------------------------------------------------------------


def test_a_value_is_a_quantity_and_an_unknown_one_is_left_out() -> None:
    values = {"b": 1.3, "a": 0.0}
    every = wire.value_list(values, None, NOW)
    assert [(item["metricLabels"], item["value"]) for item in every["items"]] == [
        ({"semipd_service": "a"}, "0m"),
        ({"semipd_service": "b"}, "1300m"),
    ]
    assert [item["value"] for item in wire.value_list(values, "b", NOW)["items"]] == ["1300m"]
    assert wire.value_list(values, "c", NOW)["items"] == []


@pytest.mark.parametrize(
    ("selector", "service"),
    [("", None), ("semipd_service=a", "a"), ("semipd_service==a", "a"), (" semipd_service = a ", "a")],
)
def test_selectors(selector: str, service: str | None) -> None:
    assert wire.selected_service(selector) == service


@pytest.mark.parametrize(
    "selector", ["app=a", "semipd_service", "semipd_service!=a", "semipd_service in (a,b)", "semipd_service=a,x=y"]
)
def test_selectors_that_are_refused(selector: str) -> None:
    with pytest.raises(wire.BadSelector, match="semipd_service=NAME"):
        wire.selected_service(selector)
