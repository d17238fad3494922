"""Talks to the agent of one pod: proves that it is that pod, then reads its status and pushes its configuration."""

from __future__ import annotations

import asyncio
import contextlib

import httpx
from pydantic import ValidationError

from semipd_agent.contract import AgentConfig, Health, StatusReport

MOST_BYTES = 1 << 20
"""Of one answer; a report has a few kilobytes."""
_SLOW = "the agent does not answer in time"
_REFUSED = {
    401: "the agent refuses the operator's token; a new key takes about a minute to reach the pod",
    409: "the agent has a newer configuration",
}


class AgentError(Exception):
    """The agent cannot be asked. The message is stable over repeated failures: it is shown in the status."""


class TokenRefused(AgentError):
    """The agent does not know the token (401)."""


class AgentSilent(AgentError):
    """Nothing answers: asking again costs a time-out."""


class StaleConfig(AgentError):
    """The agent has a configuration of a newer generation (409)."""


class AgentClient:
    def __init__(self, port: int, timeout_seconds: float) -> None:
        self._port = port
        # trust_env=False: a proxy for the outside world has no business between operator and pod.
        # No limit of connections: the poller bounds how many are asked at once, and waits for nobody's time-out.
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=256)
        self._http = httpx.AsyncClient(timeout=timeout_seconds, trust_env=False, limits=limits)
        self._longest = 3 * timeout_seconds
        """For a whole look: an agent that trickles holds up nobody."""

    async def close(self) -> None:
        await self._http.aclose()

    async def look(self, ip: str, uid: str, tokens: tuple[str, ...], config: AgentConfig | None) -> StatusReport:
        """The pod's report, after it has `config` (None: leave it what it has). Raises `AgentError`.

        A pod IP may have been recycled: a token is shown only to the pod with the uid that is meant. `tokens`: the
        current one first; a pod that has not heard of it yet knows an earlier one.
        """
        try:
            async with asyncio.timeout(self._longest):
                return await self._look(ip, uid, tokens, config)
        except TimeoutError as error:
            raise AgentSilent(_SLOW) from error

    async def _look(self, ip: str, uid: str, tokens: tuple[str, ...], config: AgentConfig | None) -> StatusReport:
        answer = await self._send("GET", ip, "/health")
        try:
            health = Health.model_validate_json(answer)
        except ValidationError as error:
            raise AgentError("the agent's answer is no health") from error
        if health.pod_uid != uid:
            raise AgentError("another pod answers at the pod's address")
        report, token = await self._read(ip, tokens)
        if config is not None and report.lacks(config):
            report = await self._status("PUT", ip, "/v1/config", token, config)
        return report

    async def _read(self, ip: str, tokens: tuple[str, ...]) -> tuple[StatusReport, str]:
        """With the token that the pod knows."""
        *others, last = tokens or ("",)
        for token in others:
            with contextlib.suppress(TokenRefused):
                return await self._status("GET", ip, "/v1/status", token), token
        return await self._status("GET", ip, "/v1/status", last), last

    async def _status(
        self, method: str, ip: str, path: str, token: str, config: AgentConfig | None = None
    ) -> StatusReport:
        body = None if config is None else config.model_dump_json(by_alias=True, exclude_none=True)
        try:
            return StatusReport.model_validate_json(await self._send(method, ip, path, token, body))
        except ValidationError as error:
            raise AgentError(f"the agent's report is not understood: {error.errors()[0]['msg']}") from error

    async def _send(self, method: str, ip: str, path: str, token: str = "", body: str | None = None) -> bytes:
        host = f"[{ip}]" if ":" in ip else ip
        headers = {"Accept-Encoding": "identity"} | ({"Authorization": f"Bearer {token}"} if token else {})
        if body is not None:
            headers["Content-Type"] = "application/json"
        try:
            url = f"http://{host}:{self._port}{path}"
            async with self._http.stream(method, url, headers=headers, content=body) as answer:
                content = await _read(answer)
        except httpx.TimeoutException as error:
            raise AgentSilent(_SLOW) from error
        except httpx.HTTPError as error:
            raise AgentSilent(f"the agent cannot be reached ({_why(error)})") from error
        if answer.status_code == 401:
            raise TokenRefused(_REFUSED[401])
        if answer.status_code == 409:
            raise StaleConfig(_REFUSED[409])
        if answer.status_code != 200:
            raise AgentError(_REFUSED.get(answer.status_code, f"the agent answers {path} with {answer.status_code}"))
        return content


def _why(error: BaseException) -> str:
    """A connection that is refused was not held up on its way: nothing listens there, yet."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ConnectionRefusedError):
            return "connection refused"
        cause = cause.__cause__ or cause.__context__
    return type(error).__name__


async def _read(answer: httpx.Response) -> bytes:
    """As it comes: what is behind a pod's address is its owner's, and must not fill the operator's memory."""
    if "content-encoding" in answer.headers:  # nobody asked for one, and a few bytes may unfold to gigabytes
        raise AgentError("the agent's answer is encoded")
    content = bytearray()
    async for chunk in answer.aiter_bytes():
        content += chunk
        if len(content) > MOST_BYTES:
            raise AgentError(f"the agent's answer is longer than {MOST_BYTES >> 20} MiB")
    return bytes(content)
