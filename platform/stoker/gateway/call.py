"""One HTTP request as the gateway knows it, from its first byte to its last."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from starlette.requests import Request

from stoker.domain import FunctionName, Phase, RequestId, RevisionId, Timeline
from stoker.errors import CrashLoop, NoCapacity, StartupFailed, StartupTimeout, StokerError
from stoker.scheduler.lease import Lease

Headers = list[tuple[bytes, bytes]]

CLIENT_LEFT_STATUS = 499  # never sent; how metrics and logs count a client that disconnected


class Plane(StrEnum):
    DATA = "data"  # answers in OpenAI's shape
    CONTROL = "control"  # answers errors as RFC 9457 problems


@dataclass(slots=True)
class Call:
    """What is known so far; owned by the request's own task. Times are `time.monotonic()`."""

    request_id: RequestId
    arrived_at: float
    plane: Plane
    function: FunctionName | None = None  # only ever a deployed one
    revision: RevisionId | None = None
    cold: bool = False
    phases: tuple[Phase, ...] = ()
    timeline: Timeline | None = None
    failure: StokerError | None = None  # it came after the status line

    def granted(self, lease: Lease) -> None:
        self.cold = lease.cold
        self.phases = lease.phases

    def refused(self, error: StokerError) -> None:
        """No lease was granted; a start that failed is a cold one."""
        self.cold = isinstance(error, StartupTimeout | StartupFailed | CrashLoop | NoCapacity)

    def headers(self, now: float) -> Headers:
        """What every answer carries, as ASGI headers."""
        headers = [
            (b"x-request-id", self.request_id.encode()),
            (b"server-timing", server_timing(self, now).encode()),
        ]
        if self.plane is Plane.DATA:
            headers.append((b"x-cold-start", b"true" if self.cold else b"false"))
        if self.revision is not None:
            headers.append((b"x-function-revision", self.revision.encode()))
        return headers


def call_of(request: Request) -> Call:
    """The call that the entry middleware opened for this request."""
    call = request.scope["stoker.call"]
    assert isinstance(call, Call)
    return call


def server_timing(call: Call, now: float) -> str:
    """The phases known so far and the time since arrival, in ms (W3C Server Timing)."""
    phases = call.timeline.phases if call.timeline else call.phases
    entries = [
        f"{phase.name};dur={phase.duration_ms:.3f}"
        + (f';desc="{phase.tier}"' if phase.tier else "")
        for phase in phases
    ]
    total_ms = call.timeline.total_ms if call.timeline else (now - call.arrived_at) * 1000
    return ", ".join([*entries, f"total;dur={total_ms:.3f}"])
