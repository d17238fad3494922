"""How the operator speaks with one agent: what it pushes, what it refuses to believe, whom it tells nothing."""

from __future__ import annotations

import asyncio
import gzip
from collections.abc import AsyncIterator

import httpx
import pytest
from tests.unit.operator_observed import report

from e2e.lib.process import free_port
from semipd_agent.contract import AgentConfig, Health, apart
from semipd_operator.agents import AgentClient, AgentError, AgentSilent

pytestmark = pytest.mark.unit
GZIP = {"content-encoding": "gzip"}


class Pod:
    """An agent's HTTP side, as the client meets it."""

    def __init__(self, uid: str = "u1", token: str = "t") -> None:
        self.uid, self.token, self.generation = uid, token, 1
        self.of = ""
        """The uid of the service whose generation it has."""
        self.asked: list[tuple[str, str, bool]] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        authorized = request.headers.get("authorization") == f"Bearer {self.token}"
        self.asked.append((request.method, request.url.path, "authorization" in request.headers))
        if request.url.path == "/health":
            return httpx.Response(200, text=Health(pod_uid=self.uid).model_dump_json(by_alias=True))
        if not authorized:
            return httpx.Response(401)
        if request.method == "PUT":
            config = AgentConfig.model_validate_json(request.content)
            if config.generation < self.generation and not apart(self.of, config.uid):
                return httpx.Response(409)
            self.generation, self.of = config.generation, config.uid
        told = report(config_generation=self.generation, config_uid=self.of)
        return httpx.Response(200, text=told.model_dump_json(by_alias=True))


def client(pod: Pod) -> AgentClient:
    one = AgentClient(9400, 1.0)
    one._http = httpx.AsyncClient(transport=httpx.MockTransport(pod))
    return one


async def test_a_newer_configuration_is_pushed_and_a_current_one_is_not() -> None:
    pod = Pod()
    agent = client(pod)
    assert (await agent.look("10.0.0.1", "u1", ("t",), AgentConfig(generation=2))).config_generation == 2
    await agent.look("10.0.0.1", "u1", ("t",), AgentConfig(generation=2))
    await agent.look("10.0.0.1", "u1", ("t",), None)
    assert [method for method, path, _ in pod.asked if path == "/v1/config"] == ["PUT"]


@pytest.mark.parametrize(("of", "pushed"), [("", False), ("new", False), ("gone", True)])
async def test_a_service_made_anew_is_pushed_where_the_agent_has_the_one_before(of: str, pushed: bool) -> None:
    """An agent that does not tell whose generation it has would refuse it."""
    pod = Pod()
    pod.generation, pod.of = 7, of
    await client(pod).look("10.0.0.1", "u1", ("t",), AgentConfig(generation=1, uid="new"))
    assert pod.generation == (1 if pushed else 7)


async def test_an_answer_without_end_does_not_fill_the_operators_memory() -> None:
    sent = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal sent
        while True:
            sent += 1 << 16
            yield b" " * (1 << 16)

    agent = client(lambda _: httpx.Response(200, content=endless()))  # type: ignore[arg-type]
    with pytest.raises(AgentError, match="longer than 1 MiB"):
        await agent.look("10.0.0.1", "u1", ("t",), None)
    assert sent <= 2 << 20
    packed = client(lambda _: httpx.Response(200, content=gzip.compress(bytes(1 << 24)), headers=GZIP))  # type: ignore[arg-type]
    with pytest.raises(AgentError, match="encoded"):
        await packed.look("10.0.0.1", "u1", ("t",), None)


async def test_a_stranger_at_the_address_never_sees_the_token() -> None:
    pod = Pod(uid="someone else")
    with pytest.raises(AgentError, match="another pod"):
        await client(pod).look("10.0.0.1", "u1", ("t",), AgentConfig(generation=2))
    assert pod.asked == [("GET", "/health", False)]


async def test_an_answer_that_is_no_health_is_an_agents_error() -> None:
    agent = AgentClient(9400, 1.0)
    agent._http = httpx.AsyncClient(transport=httpx.MockTransport(lambda _: httpx.Response(200, text="<html>")))
    with pytest.raises(AgentError, match="no health"):
        await agent.look("10.0.0.1", "u1", ("t",), None)


async def test_a_pod_that_knows_the_key_before_is_asked_with_that() -> None:
    pod = Pod(token="old")
    report = await client(pod).look("10.0.0.1", "u1", ("new", "old"), AgentConfig(generation=2))
    assert report.config_generation == 2


async def test_a_refused_token_says_so() -> None:
    with pytest.raises(AgentError, match="new key"):
        await client(Pod(token="new")).look("10.0.0.1", "u1", ("old",), None)


async def test_an_agent_that_trickles_is_given_up() -> None:
    async def trickle(_: httpx.Request) -> httpx.Response:
        await asyncio.sleep(60)
        raise AssertionError

    agent = AgentClient(9400, 0.02)
    agent._http = httpx.AsyncClient(transport=httpx.MockTransport(trickle))
    with pytest.raises(AgentError, match="in time"):
        await agent.look("10.0.0.1", "u1", "t", None)


async def test_a_connection_that_is_refused_is_told_from_one_that_never_arrives() -> None:
    """No NetworkPolicy answers: nothing listens there, yet."""
    agent = AgentClient(free_port(), timeout_seconds=5)
    with pytest.raises(AgentSilent, match=r"^the agent cannot be reached \(connection refused\)$"):
        await agent.look("127.0.0.1", "u1", ("t",), None)
    await agent.close()
