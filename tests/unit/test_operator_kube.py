"""Requests to an API server that is not there, is something else, or says nothing: one error, whatever it was."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta

import pytest
from kubernetes.aio import client as kube_client

from semipd_operator import kube
from semipd_operator.answers import ApiAway, ApiRefused
from semipd_operator.api.v1alpha1.resource import SemiPDService
from semipd_operator.kube import Kube

pytestmark = pytest.mark.unit
META = {"name": "demo", "namespace": "d", "uid": "u", "generation": 1}
SERVICE = SemiPDService.parse({"metadata": META, "spec": {"model": {"uri": "file:///m"}}})
FOUND = b'{"metadata": {"name": "p", "resourceVersion": "1"}}'


@asynccontextmanager
async def answering(answer: bytes | None) -> AsyncIterator[Kube]:
    """A client of a server that says `answer` and hangs up; None: it never says anything."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        if answer is None:
            await asyncio.Event().wait()
        writer.write(answer or b"")
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    configuration = kube_client.Configuration()
    configuration.host = f"http://127.0.0.1:{port}"
    async with kube_client.ApiClient(configuration) as api:
        try:
            yield Kube(api)
        finally:
            server.close()


def http(status: str, body: bytes, date: str = "") -> bytes:
    head = f"HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n"
    return f"{head}{f'Date: {date}' + chr(13) + chr(10) if date else ''}\r\n".encode() + body


@pytest.mark.parametrize(
    ("status", "words", "for_now"),
    [
        (
            500,
            "failed to create typed patch object (d/x; apps/v1, Kind=Deployment): .spec.a: expected map, got &{[a]}",
            False,
        ),
        (
            500,
            "failed to create typed patch object (d/x; apps/v1, Kind=Deployment): .b: field not declared in schema",
            False,
        ),
        (500, "failed to create typed live object: .spec: expected map", True),
        (500, "etcdserver: request timed out", True),
    ],
)
def test_a_patch_that_cannot_be_typed_is_no_trouble_of_the_server(status: int, words: str, for_now: bool) -> None:
    assert ApiRefused(status, words).for_now is for_now


POD = {"apiVersion": "v1", "kind": "Pod", "metadata": {"namespace": "n", "name": "p"}}
ASKS: dict[str, Callable[[Kube], Awaitable[object]]] = {
    "get": lambda one: one.get("v1", "Pod", "n", "p"),
    "list": lambda one: one.list("v1", "Pod"),
    "apply": lambda one: one.apply(POD),
    "apply_to": lambda one: one.apply_to(POD, None),
    "delete": lambda one: one.delete("v1", "Pod", "n", "p", "uid"),
    "create": lambda one: one.create("authorization.k8s.io/v1", "SubjectAccessReview", "", {}),
    "events": lambda one: one.events("n", "uid"),
    "knows": lambda one: one.knows("apps/v1", "Deployment"),
}


@pytest.mark.parametrize("ask", ASKS)
@pytest.mark.parametrize("answer", [b"", http("200 OK", b"<html>"), http("200 OK", b"{}")[:-1], None])
async def test_no_answer_is_one_error(answer: bytes | None, ask: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kube, "_REQUEST_SECONDS", 0.3)
    async with answering(answer) as one:
        with pytest.raises(ApiAway, match="the API server does not answer: "):
            await ASKS[ask](one)


@pytest.mark.parametrize("ask", [name for name in ASKS if name != "delete"])
@pytest.mark.parametrize("body", [b"{}", b"[]", b"null", b'{"items": null}', b'{"metadata": [], "items": 3}'])
async def test_json_of_something_else_is_no_answer_either(body: bytes, ask: str) -> None:
    """A proxy or a portal between us and the API server says 200, too."""
    async with answering(http("200 OK", body)) as one:
        with pytest.raises(ApiAway, match="no API server's"):
            await ASKS[ask](one)


@pytest.mark.parametrize(
    ("words", "changed"),
    [
        ('Operation cannot be fulfilled on pods "p": Precondition failed: UID in precondition: a, in meta: b', True),
        ('admission webhook "keep.team.io" denied the request: Operation cannot be fulfilled on Sundays', False),
    ],
)
async def test_a_conflict_that_a_webhook_makes_of_a_deletion_is_a_refusal(words: str, changed: bool) -> None:
    body = json.dumps({"kind": "Status", "message": words}).encode()
    async with answering(http("409 Conflict", body)) as one:
        if changed:
            assert await ASKS["delete"](one) is False
        else:
            with pytest.raises(ApiRefused, match="denied the request"):
                await ASKS["delete"](one)


NO_DATES = (
    "",
    "soon",
    "Sat, 28 Nov 2026 25:61:00 GMT",
    f"Sat, 28 Nov 2026 10:00:00 +{'9' * 20}",
    f"Sat, 28 Nov {'9' * 20} 10:00:00 GMT",
    "Fri, 31 Dec 9999 23:59:59 GMT",
    "Thu, 01 Jan 1970 00:00:00 GMT",
)


@pytest.mark.parametrize("date", NO_DATES)
async def test_a_date_that_is_none_costs_no_answer(date: str) -> None:
    async with answering(http("200 OK", FOUND, date)) as one:
        assert await one.get("v1", "Pod", "n", "p")
        assert one.clock_ahead == timedelta()


@pytest.mark.parametrize("zone", ["GMT", "-0000", "+0000"])
async def test_the_servers_clock_is_compared_with_ours(zone: str) -> None:
    ahead = datetime.now(UTC) + timedelta(days=1)
    async with answering(http("200 OK", FOUND, f"{ahead:%a, %d %b %Y %H:%M:%S} {zone}")) as one:
        assert await one.get("v1", "Pod", "n", "p")
        assert timedelta(hours=23) < one.clock_ahead <= timedelta(days=1)


async def test_a_review_has_no_name() -> None:
    body = b'{"kind": "SubjectAccessReview", "metadata": {}, "spec": {}, "status": {"allowed": true}}'
    async with answering(http("200 OK", body)) as one:
        assert (await ASKS["create"](one))["status"] == {"allowed": True}


async def test_a_closed_port_is_the_same() -> None:
    async with answering(b"") as one:
        pass
    with pytest.raises(ApiAway):
        await one.get("v1", "Pod", "n", "p")


async def test_a_refusal_is_a_refusal() -> None:
    async with answering(http("403 Forbidden", b'{"kind": "Status", "message": "pods is forbidden"}')) as one:
        with pytest.raises(ApiRefused) as refused:
            await one.get("v1", "Pod", "n", "p")
        assert refused.value.status == 403 and "forbidden" in str(refused.value)
    async with answering(http("404 Not Found", b"{}")) as one:
        assert await one.get("v1", "Pod", "n", "p") is None
