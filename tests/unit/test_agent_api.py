"""The control API on a real socketless ASGI client: who may do what, typed errors, metrics by their listed names."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families
from tests.unit.agent_plant import Pod

from semipd_agent import metrics, report
from semipd_agent.api import authorized, create_app
from semipd_agent.contract import (
    AgentConfig,
    Health,
    Identity,
    PartitionConfig,
    Split,
    StatusReport,
    service_token,
    token_digest,
)
from semipd_agent.engine_report import LauncherState

pytestmark = pytest.mark.unit

DOCS = Path(__file__).parents[2] / "docs" / "metrics.md"
TOKEN = service_token(b"key", "ns", "demo", "uid-1")
OTHER = service_token(b"key", "ns", "demo", "uid-2")


class Service:
    """The API's view of an agent, over the real controller and the plant."""

    def __init__(self) -> None:
        start = AgentConfig(generation=5, partition=PartitionConfig(split=Split(prefill_percent=60, decode_percent=80)))
        self.pod = Pod(start)
        self.controller, self.clock = self.pod.controller, self.pod.clock
        self.digests: tuple[str, ...] = (token_digest(TOKEN),)
        self.is_ready = False
        for _ in range(3):
            self.tick()

    def tick(self) -> None:
        self.pod.tick(self.clock.now + 1)

    def report(self) -> StatusReport:
        return report.build(
            self.controller,
            LauncherState(restarts=2),
            Identity(pod="p-0"),
            ready=self.is_ready,
            now=self.clock.now,
            wall=self.clock.wall(),
        )

    def configure(self, config: AgentConfig) -> None:
        self.controller.configure(config)

    def ready(self) -> bool:
        return self.is_ready

    def health(self) -> Health:
        return Health(pod_uid="uid-of-pod")

    def recording(self) -> Iterator[bytes]:
        return self.controller.pilot.recorder.pieces()

    def token_digests(self) -> tuple[str, ...]:
        return self.digests


@pytest.fixture
def service() -> Service:
    return Service()


@pytest.fixture
def client(service: Service) -> httpx.AsyncClient:
    registry = CollectorRegistry()
    registry.register(
        metrics.ReportCollector(
            service.report,
            lambda: service.controller.log.counts,
        )
    )
    transport = httpx.ASGITransport(app=create_app(service, registry))
    return httpx.AsyncClient(transport=transport, base_url="http://agent")


BEARER = {"Authorization": f"Bearer {TOKEN}"}


@pytest.mark.parametrize(
    ("header", "ok"),
    [
        (f"Bearer {TOKEN}", True),
        (f"bearer {TOKEN}", True),
        (f"Bearer {OTHER}", False),
        (f"Bearer {token_digest(TOKEN)}", False),
        (f"Basic {TOKEN}", False),
        (TOKEN, False),
        ("Bearer ", False),
        ("Bearer", False),
        ("", False),
    ],
)
def test_only_the_service_token_is_accepted(header: str, ok: bool) -> None:
    assert authorized(header, (token_digest("another"), token_digest(TOKEN))) is ok
    assert not authorized(header, ())


def test_the_empty_token_is_never_accepted() -> None:
    assert not authorized("Bearer ", (token_digest(""),))


@pytest.mark.parametrize(
    ("method", "path", "open_"),
    [
        ("GET", "/v1/status", False),
        ("GET", "/v1/recording", False),
        ("PUT", "/v1/config", False),
        ("POST", "/v1/anything", False),
        ("GET", "/v1", False),
        ("GET", "/health", True),
        ("GET", "/ready", True),
        ("GET", "/metrics", True),
    ],
)
async def test_what_is_open(client: httpx.AsyncClient, method: str, path: str, open_: bool) -> None:
    for headers in ({}, {"Authorization": f"Bearer {OTHER}"}):
        answer = await client.request(method, path, headers=headers, content=b"{not json")
        assert (answer.status_code == 401) is not open_
        if not open_:
            assert answer.json()["error"]["code"] == "Unauthorized"
            assert answer.headers["www-authenticate"] == "Bearer"


async def test_rotated_tokens_count_at_once(client: httpx.AsyncClient, service: Service) -> None:
    assert (await client.get("/v1/status", headers=BEARER)).status_code == 200
    service.digests = (token_digest(OTHER),)
    assert (await client.get("/v1/status", headers=BEARER)).status_code == 401
    service.digests = (token_digest(OTHER), token_digest(TOKEN))
    assert (await client.get("/v1/status", headers=BEARER)).status_code == 200


async def test_status_is_the_contracts_report(client: httpx.AsyncClient) -> None:
    answer = await client.get("/v1/status", headers=BEARER)
    assert answer.json()["partition"]["applied"] == {"prefillPercent": 60, "decodePercent": 80}
    parsed = StatusReport.model_validate_json(answer.content)
    assert parsed.config_generation == 5 and parsed.partition.state == "Applied"


async def test_a_put_changes_the_split(client: httpx.AsyncClient, service: Service) -> None:
    wanted = {"generation": 6, "partition": {"mode": "Manual", "split": {"prefillPercent": 30, "decodePercent": 70}}}
    for _ in range(2):
        answer = await client.put("/v1/config", headers=BEARER, json=wanted)
        assert answer.status_code == 200
        assert answer.json()["partition"]["requested"] == {"prefillPercent": 30, "decodePercent": 70}
    for _ in range(2):
        service.tick()
    decisions = (await client.get("/v1/status", headers=BEARER)).json()["decisions"]
    assert [(d["from"]["prefillPercent"], d["to"]["prefillPercent"], d["outcome"]) for d in decisions] == [
        (60, 30, "Applied")
    ]


async def test_the_recording_is_lines_of_what_the_policy_saw(client: httpx.AsyncClient, service: Service) -> None:
    assert (await client.get("/v1/recording", headers=BEARER)).content == b"", "nothing decides yet"
    wanted = {"generation": 6, "slo": {"ttftMilliseconds": 100}, "partition": {"mode": "Auto"}}
    await client.put("/v1/config", headers=BEARER, json=wanted)
    for _ in range(3):
        service.tick()
    answer = await client.get("/v1/recording", headers=BEARER)
    assert (answer.status_code, answer.headers["content-type"]) == (200, "application/x-ndjson")
    assert ["begin" in json.loads(line) for line in answer.content.splitlines()] == [True, False, False, False]


@pytest.mark.parametrize(
    ("body", "status", "code", "words"),
    [
        ('{"generation": 4}', 409, "StaleGeneration", "5"),
        ('{"generation": 9, "version": 7}', 422, "UnsupportedVersion", "version 7"),
        ('{"generation": 9, "partition": {"split": {"prefillPercent": 0}}}', 422, "InvalidConfig", "prefillPercent"),
        ('{"generation": 9, "slo": {"ttftMilliseconds": 0}}', 422, "InvalidConfig", "ttftMilliseconds"),
        ("{", 422, "InvalidConfig", "JSON"),
    ],
)
async def test_refusals_are_typed(client: httpx.AsyncClient, body: str, status: int, code: str, words: str) -> None:
    headers = BEARER | {"Content-Type": "application/json"}
    answer = await client.put("/v1/config", headers=headers, content=body)
    assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)
    assert words in answer.json()["error"]["message"]


async def test_unknown_paths_are_typed_errors(client: httpx.AsyncClient) -> None:
    assert (await client.get("/nothing")).json()["error"]["code"] == "NotFound"
    assert (await client.post("/health")).json()["error"]["code"] == "MethodNotAllowed"


async def test_health_names_the_pod_and_ready_follows_the_engine(client: httpx.AsyncClient, service: Service) -> None:
    assert (await client.get("/health")).json()["podUid"] == "uid-of-pod"
    assert (await client.get("/ready")).status_code == 503
    service.is_ready = True
    assert (await client.get("/ready")).status_code == 200


async def test_metrics_are_exactly_the_listed_and_documented_names(client: httpx.AsyncClient) -> None:
    text = (await client.get("/metrics")).text
    families = {f.name: f for f in text_string_to_metric_families(text)}
    counters = {name.removesuffix("_total") for name in metrics.NAMES}
    assert set(families) == counters
    section = DOCS.read_text().partition("## Of the agent")[2].partition("### On a GPU")[0]
    rows = re.findall(r"^\| `(\S+)` \| (\w+) \| .*? \| (.*) \|$", section, re.MULTILINE)
    assert [name for name, _, _ in rows] == list(metrics.NAMES)
    for name, kind, text in rows:
        family = families[name.removesuffix("_total")]
        assert (family.type, family.documentation) == (kind, text), name

    def value(family: str, **labels: str) -> float:
        return next(s.value for s in families[family].samples if s.labels == labels)

    assert value("semipd_partition_percent", phase="prefill", value="applied") == 60
    assert value("semipd_partition_percent", phase="decode", value="requested") == 80
    assert value("semipd_partition_mixed_tokens", value="applied") == 0
    assert value("semipd_partition_applied") == 1
    assert value("semipd_engine_restarts", process="launcher") == 2
    assert value("semipd_step_profile_measured") == 0
    assert value("semipd_decisions", reason="ManualChange") == 0


async def test_the_utilization_ratio_is_exported_and_reported_once_it_is_known(
    client: httpx.AsyncClient, service: Service
) -> None:
    assert "\nsemipd_utilization_ratio " not in (await client.get("/metrics")).text
    slo = {"ttftMilliseconds": 100}
    await client.put("/v1/config", json={"generation": 6, "slo": slo}, headers=BEARER)
    for _ in range(12):
        service.tick()
    assert "\nsemipd_utilization_ratio 0.0\n" in (await client.get("/metrics")).text
    told = (await client.get("/v1/status", headers=BEARER)).json()["slo"]
    assert (told["utilizationRatio"], told["arrivals"]) == (0, 0)
    before = StatusReport.model_validate_json((await client.get("/v1/status", headers=BEARER)).content)
    older = before.model_dump(mode="json", by_alias=True)
    del older["slo"]["utilizationRatio"], older["slo"]["arrivals"]
    slo_of_older = StatusReport.model_validate(older).slo
    assert slo_of_older is not None, "an agent of the version before does not tell it"
    assert slo_of_older.arrivals is None
