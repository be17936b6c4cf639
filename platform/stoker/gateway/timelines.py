"""Where the last requests' time went until their first token."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

from stoker.domain import FunctionName, RequestId, Timeline
from stoker.errors import RequestNotFound

MAX_TIMELINES = 4096


class Timelines:
    """The timelines of the last `limit` requests, and of each function's last cold start."""

    def __init__(self, limit: int = MAX_TIMELINES) -> None:
        assert limit > 0
        self._limit = limit
        self._by_id: OrderedDict[RequestId, Timeline] = OrderedDict()
        self._last_cold: dict[FunctionName, Timeline] = {}  # one a deployed function

    def __len__(self) -> int:
        return len(self._by_id)

    def record(self, timeline: Timeline) -> None:
        """Keeps a timeline; the oldest goes when there is no room."""
        self._by_id[timeline.request_id] = timeline
        self._by_id.move_to_end(timeline.request_id)
        if len(self._by_id) > self._limit:
            self._by_id.popitem(last=False)
        if timeline.cold:
            self._last_cold[timeline.function] = timeline

    def last_cold(self, function: FunctionName) -> Timeline | None:
        """The function's last cold start since the platform is up."""
        return self._last_cold.get(function)

    def forget(self, function: FunctionName) -> None:
        """Drops what is kept of a deleted function."""
        self._last_cold.pop(function, None)

    def get(self, request_id: RequestId) -> Timeline:
        """Raises RequestNotFound when the request is unknown, unfinished or long ago."""
        timeline = self._by_id.get(request_id)
        if timeline is None:
            raise RequestNotFound(
                f"no timeline of request {request_id!r}; the last {self._limit} are kept"
            )
        return timeline


def startup_of(timeline: Timeline) -> dict[str, Any]:
    """The timeline as the API shows it. Times in ms since the request arrived."""
    return {
        "request_id": timeline.request_id,
        "function": timeline.function,
        "revision": timeline.revision,
        "cold": timeline.cold,
        "total_ms": round(timeline.total_ms, 3),
        "phases": [
            {
                "name": phase.name,
                "start_ms": round(phase.start_ms, 3),
                "duration_ms": round(phase.duration_ms, 3),
                "predicted_ms": (
                    None if phase.predicted_ms is None else round(phase.predicted_ms, 3)
                ),
                "tier": phase.tier,
                "bytes": phase.bytes,
            }
            for phase in timeline.phases
        ],
    }
