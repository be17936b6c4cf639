"""The gateway's neighbours, real but scripted: an instance on a Unix socket, and who leases it."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import orjson
from pydantic import BaseModel
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from stoker.domain import (
    FunctionName,
    InstanceId,
    NodeId,
    Phase,
    PhaseName,
    RequestId,
    Revision,
    Tier,
)
from stoker.errors import StokerError
from stoker.listener import Listener, bind_unix
from stoker.scheduler.lease import InstanceStatus, Lease, ScaleStatus
from stoker_runtime.contract import (
    STREAM_MEDIA_TYPE,
    DoneFrame,
    EmbedRequest,
    FinishReason,
    GenerateRequest,
    InvokeRequest,
    PromptFrame,
    TokenFrame,
    WorkerError,
)

BOUND_S = 10.0  # of any wait in a test; reaching it is a failure


@dataclass
class Hold:
    """The peer stops here, says so, and goes on when it is let."""

    reached: asyncio.Event = field(default_factory=asyncio.Event)
    released: asyncio.Event = field(default_factory=asyncio.Event)


class Die:
    """The peer breaks the connection, as a killed process does."""


@dataclass
class Refuse:
    """The peer answers with an HTTP error instead of a stream."""

    status: int
    error: WorkerError


@dataclass
class Raw:
    """Bytes as they are."""

    content: bytes


Step = BaseModel | Sequence[BaseModel] | Hold | Die | Refuse | Raw
Script = Sequence[Step]


# What the instance says that it measured.
MEASURED = {"queue_ms": 0.5, "prefill_ms": 12.25, "decode_ms": 30.0}


def words(*texts: str, prompt_tokens: int = 3, reason: str = "stop", epoch: int = 0) -> list[Step]:
    """A generation of one token a text, all frames in one write."""
    frames: list[BaseModel] = [PromptFrame(epoch=epoch, prompt_ids=tuple(range(prompt_tokens)))]
    frames += [token(index, text, epoch=epoch) for index, text in enumerate(texts)]
    frames.append(done(len(texts), prompt_tokens=prompt_tokens, reason=reason, epoch=epoch))
    return [frames]


def token(index: int, text: str, *, epoch: int = 0) -> TokenFrame:
    return TokenFrame(epoch=epoch, index=index, token=100 + index, text=text)


def done(count: int, *, prompt_tokens: int = 3, reason: str = "stop", epoch: int = 0) -> DoneFrame:
    return DoneFrame(
        epoch=epoch,
        finish_reason=FinishReason(reason),
        prompt_tokens=prompt_tokens,
        completion_tokens=count,
        **MEASURED,
    )


class Peer:
    """An instance: speaks the contract on `socket`, one script a request, in their order."""

    def __init__(self, socket: Path) -> None:
        self.socket = socket
        self.requests: list[GenerateRequest | EmbedRequest | InvokeRequest] = []
        self.connections_made = 0
        self.client_left = asyncio.Event()
        self._scripts: deque[Script] = deque()
        self._app = Starlette(
            routes=[
                Route("/generate", self._endpoint(GenerateRequest), methods=["POST"]),
                Route("/embed", self._endpoint(EmbedRequest), methods=["POST"]),
                Route("/invoke", self._endpoint(InvokeRequest), methods=["POST"]),
            ]
        )

    def will(self, script: Script) -> None:
        """What the next request is answered with."""
        self._scripts.append(script)

    @contextlib.asynccontextmanager
    async def listening(self) -> AsyncIterator[None]:
        server = Listener(self._app, bind_unix(self.socket), drain_timeout_s=1)
        server.config.load()
        make = server.config.http_protocol_class

        def counted(*args, **named):
            self.connections_made += 1
            return make(*args, **named)

        server.config.http_protocol_class = counted
        async with asyncio.TaskGroup() as tasks:
            serving = tasks.create_task(server.run_until_stopped())
            await server.listening.wait()
            yield
            server.force_exit = True
            server.stop()
            await serving

    def _endpoint(
        self, model: type[GenerateRequest | EmbedRequest | InvokeRequest]
    ) -> Callable[[Request], object]:
        async def endpoint(request: Request) -> Response:
            self.requests.append(model.model_validate_json(await request.body()))
            script = self._scripts.popleft()
            if isinstance(script[0], Refuse):
                return Response(script[0].error.model_dump_json(), status_code=script[0].status)
            return _Scripted(self, script)

        return endpoint


class _Scripted(Response):
    def __init__(self, peer: Peer, script: Script) -> None:
        self.status_code = 200
        self.background = None
        self._peer = peer
        self._script = script

    async def __call__(self, scope, receive, send) -> None:
        playing = asyncio.ensure_future(self._play(send))
        watching = asyncio.ensure_future(self._watch(receive))
        await asyncio.wait({playing, watching}, return_when=asyncio.FIRST_COMPLETED)
        watching.cancel()
        if not playing.done():
            playing.cancel()
            self._peer.client_left.set()
            return
        await playing

    async def _watch(self, receive) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass

    async def _play(self, send) -> None:
        headers = [(b"content-type", STREAM_MEDIA_TYPE.encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        for step in self._script:
            match step:
                case Hold():
                    step.reached.set()
                    await step.released.wait()
                case Die():
                    raise ConnectionAbortedError("killed, as the script says")
                case Raw():
                    await self._write(send, step.content)
                case BaseModel():
                    await self._write(send, _line(step))
                case _:
                    await self._write(send, b"".join(_line(message) for message in step))
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _write(self, send, body: bytes) -> None:
        await send({"type": "http.response.body", "body": body, "more_body": True})


def _line(message: BaseModel) -> bytes:
    return message.model_dump_json().encode() + b"\n"


class MemoryLeasing:
    """Grants leases of peers: a `Leasing` whose every decision a test makes."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock
        self.peers: dict[InstanceId, Peer] = {}
        self.refusal: StokerError | None = None
        self.starting: Hold | None = None  # leases wait here, as for a cold start
        self.active: list[Lease] = []
        self.released: list[Lease] = []
        self.suspected: list[InstanceId] = []
        self.first_tokens: list[tuple[RequestId, float, int]] = []
        self.timeouts: list[float | None] = []
        self.deployed_revisions: list[Revision] = []
        self.deleted_functions: list[FunctionName] = []
        self.replicas: dict[FunctionName, int] = {}
        self.log_lines: asyncio.Queue[str | None] = asyncio.Queue()
        self.log_closed = asyncio.Event()
        self.idle = asyncio.Event()  # set whenever the last lease was released
        self.on_idle: Callable[[], None] = lambda: None  # ... and when a wait was given up
        self._waiting = 0

    def add(self, name: str, peer: Peer) -> None:
        self.peers[InstanceId(name)] = peer

    @contextlib.asynccontextmanager
    async def lease(
        self,
        request_id: RequestId,
        revision: Revision,
        *,
        arrived_at: float,
        timeout_s: float | None = None,
    ) -> AsyncIterator[Lease]:
        self.timeouts.append(timeout_s)
        if self.refusal is not None:
            raise self.refusal
        cold = self.starting is not None
        if self.starting is not None:
            self._waiting += 1
            self.starting.reached.set()
            try:
                await self.starting.released.wait()
            finally:
                self._waiting -= 1
                self.on_idle()
        instance = next(name for name in self.peers if name not in self.suspected)
        granted_at = self.clock()
        lease = Lease(
            request_id=request_id,
            instance_id=instance,
            revision=revision,
            socket=self.peers[instance].socket,
            cold=cold,
            arrived_at=arrived_at,
            granted_at=granted_at,
            phases=_phases((granted_at - arrived_at) * 1000, cold=cold),
            predicted_prefill_ms=5.0,
        )
        self.active.append(lease)
        self.idle.clear()
        try:
            yield lease
        finally:
            self.active.remove(lease)
            self.released.append(lease)
            if not self.active:
                self.idle.set()

    def prefilled(self, lease: Lease, prefill_ms: float, prompt_tokens: int) -> None:
        self.first_tokens.append((lease.request_id, prefill_ms, prompt_tokens))

    def lost(self, lease: Lease) -> None:
        self.suspected.append(lease.instance_id)

    async def deployed(self, revision: Revision) -> None:
        self.deployed_revisions.append(revision)

    async def deleted(self, function: FunctionName) -> None:
        self.deleted_functions.append(function)

    async def scale(self, revision: Revision, replicas: int) -> ScaleStatus:
        self.replicas[revision.function] = replicas
        return ScaleStatus(revision.function, replicas, ready=replicas, starting=0, draining=0)

    def instances(self, function: FunctionName | None = None) -> tuple[InstanceStatus, ...]:
        return tuple(
            InstanceStatus(
                id=InstanceId(f"{name}-{number}"),
                function=name,
                revision=f"{name}-00001",
                node=NodeId("here"),
                state="ready",
                active=0,
                slots=4,
                started_at=1.0,
                idle_deadline_s=60.0,
                pid=1,
            )
            for name, replicas in self.replicas.items()
            if function in {None, name}
            for number in range(replicas)
        )

    def waiting(self, function: FunctionName) -> int:
        return self._waiting

    async def logs(self, function: FunctionName, *, follow: bool) -> AsyncIterator[str]:
        try:
            while not self.log_lines.empty() or follow:
                line = await self.log_lines.get()
                if line is None:
                    return
                yield line
        finally:
            self.log_closed.set()


def _phases(total_ms: float, *, cold: bool) -> tuple[Phase, ...]:
    """`total_ms` cut into the phases that a start has, or a warm request."""
    if not cold:
        return (
            Phase(PhaseName.QUEUE, 0.0, total_ms / 2, 0.0),
            Phase(PhaseName.SCHEDULE, total_ms / 2, total_ms / 2, 0.0),
        )
    names = list(PhaseName)[:-1]
    share = total_ms / len(names)
    return tuple(
        Phase(
            name,
            share * position,
            share,
            predicted_ms=share / 2,
            tier=Tier.DRAM if name is PhaseName.LOAD else None,
            bytes=1000 if name is PhaseName.LOAD else 0,
        )
        for position, name in enumerate(names)
    )


def events_of(body: str) -> list[object]:
    """The values of a stream of server-sent events; `[DONE]` as that string."""
    found: list[object] = []
    for block in body.split("\n\n"):
        if block.startswith("data: "):
            data = block.removeprefix("data: ")
            found.append(data if data == "[DONE]" else orjson.loads(data))
    return found
