"""A startup timeline as the API sends it, turned into the domain's."""

from __future__ import annotations

from typing import Any

from stoker.domain import (
    FunctionName,
    Phase,
    PhaseName,
    RequestId,
    RevisionId,
    Tier,
    Timeline,
)


def timeline_from(body: dict[str, Any]) -> Timeline:
    """The timeline in a reply to `GET /v1/requests/{id}/startup`. Times in ms."""
    return Timeline(
        request_id=RequestId(body["request_id"]),
        function=FunctionName(body.get("function") or ""),
        revision=RevisionId(body.get("revision") or ""),
        cold=body["cold"],
        total_ms=body["total_ms"],
        phases=tuple(_phase(phase) for phase in body["phases"]),
    )


def _phase(body: dict[str, Any]) -> Phase:
    tier = body.get("tier")
    return Phase(
        name=PhaseName(body["name"]),
        start_ms=body["start_ms"],
        duration_ms=body["duration_ms"],
        predicted_ms=body.get("predicted_ms"),
        tier=Tier(tier) if tier else None,
        bytes=body.get("bytes") or 0,
    )
