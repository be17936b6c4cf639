"""The control plane's end of an agent's wire."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import httpx

from stoker.checkpoints.store import Report
from stoker.domain import Digest, InstanceId
from stoker.errors import (
    CheckpointInvalid,
    CheckpointNotFound,
    Conflict,
    InstanceNotFound,
    NoCapacity,
    StokerError,
)
from stoker.node.wire import (
    AGENT_EVENT,
    VERIFY_EVENT,
    AgentEvent,
    CacheState,
    Expected,
    KeepList,
    Refused,
    StartInstance,
    Verified,
    Verifying,
)

CALL_TIMEOUT_S = 5.0  # an agent answers these at once or is not well
KEEP_ALIVE_S = 60.0  # below the listener's own, so that a start finds its connection open
CONNECTIONS = 64  # followed logs and events hold one each
REFUSALS: dict[str, type[StokerError]] = {
    kind.code: kind for kind in (CheckpointInvalid, CheckpointNotFound)
}


class NodeClient:
    """Talks to one agent over its Unix socket. Raises NoCapacity when it does not answer."""

    def __init__(self, socket: Path) -> None:
        transport = httpx.AsyncHTTPTransport(
            uds=str(socket),
            verify=False,  # there is no TLS on a Unix socket, and a context takes time to make
            limits=httpx.Limits(max_connections=CONNECTIONS, keepalive_expiry=KEEP_ALIVE_S),
        )
        self._http = httpx.AsyncClient(
            transport=transport, base_url="http://agent", timeout=CALL_TIMEOUT_S, trust_env=False
        )

    async def expect(self, checkpoint: Digest) -> None:
        await self._call(
            "POST", "/v1/expected", content=Expected(checkpoint=checkpoint).model_dump_json()
        )

    async def start(self, request: StartInstance) -> None:
        await self._call("POST", "/v1/instances", content=request.model_dump_json())

    async def stop(self, instance_id: InstanceId, grace_s: float) -> None:
        """Raises InstanceNotFound if the agent does not (or no longer) know it."""
        await self._call("DELETE", f"/v1/instances/{instance_id}?grace_s={grace_s}")

    async def cache(self) -> CacheState:
        """What the node has of checkpoints and sources."""
        return CacheState.model_validate_json(await self._call("GET", "/v1/cache"))

    async def prefetch(self, digest: Digest) -> None:
        await self._call("POST", f"/v1/cache/{digest}/prefetch")

    async def evict(self, digest: Digest) -> None:
        """Raises Conflict while an instance there needs it."""
        await self._call("POST", f"/v1/cache/{digest}/evict")

    async def keep(self, wanted: KeepList) -> None:
        """Says all that is to be kept there."""
        await self._call("PUT", "/v1/cache/kept", content=wanted.model_dump_json())

    async def verify(self, digest: Digest, report: Report) -> None:
        """Has a copy read again. Raises CheckpointNotFound, CheckpointInvalid."""
        url = f"/v1/cache/{digest}/verify"
        try:
            async with self._http.stream("POST", url, timeout=_follow()) as response:
                if response.is_error:
                    raise NoCapacity(f"the node's agent refused to verify: {response.status_code}")
                async for line in response.aiter_lines():
                    match VERIFY_EVENT.validate_json(line):
                        case Verifying() as event:
                            report(event.bytes_done, event.bytes_total)
                        case Refused() as refused:
                            kind = REFUSALS.get(refused.code, NoCapacity)
                            raise kind(refused.message, details=refused.details)
                        case Verified():
                            return
        except httpx.TransportError as error:
            raise NoCapacity(f"the node's agent does not answer: {error}") from error
        raise NoCapacity("the node's agent ended the verification without an outcome")

    async def events(self) -> AsyncIterator[AgentEvent]:
        """Yields the agent's state and every change; ends when the agent goes away."""
        try:
            async with self._http.stream("GET", "/v1/events", timeout=_follow()) as response:
                async for line in response.aiter_lines():
                    yield AGENT_EVENT.validate_json(line)
        except httpx.TransportError as error:
            raise NoCapacity(f"the node's agent does not answer: {error}") from error

    async def logs(self, instance_id: InstanceId, *, follow: bool) -> AsyncIterator[str]:
        url = f"/v1/instances/{instance_id}/logs?follow={int(follow)}"
        try:
            async with self._http.stream("GET", url, timeout=_follow()) as response:
                if response.status_code == httpx.codes.NOT_FOUND:
                    return
                async for line in response.aiter_lines():
                    yield line
        except httpx.TransportError as error:
            raise NoCapacity(f"the node's agent does not answer: {error}") from error

    async def close(self) -> None:
        await self._http.aclose()

    async def _call(self, method: str, url: str, content: str | None = None) -> bytes:
        try:
            response = await self._http.request(method, url, content=content)
        except httpx.TransportError as error:
            raise NoCapacity(f"the node's agent does not answer: {error}") from error
        if response.status_code == httpx.codes.NOT_FOUND:
            raise InstanceNotFound(response.json()["message"])
        if response.status_code == httpx.codes.CONFLICT:
            raise Conflict(response.json()["message"])
        if response.is_error:
            raise NoCapacity(f"the node's agent refused {method} {url}: {response.text[:500]}")
        return response.content


def _follow() -> httpx.Timeout:
    """No bound on the silence of a stream that is followed."""
    return httpx.Timeout(CALL_TIMEOUT_S, read=None)
