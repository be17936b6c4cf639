"""The startup timeline of a lease: contiguous phases from arrival to grant. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from stoker.domain import Phase, PhaseName
from stoker.scheduler.view import Instance, Span

SMALLEST_QUEUE_MS = 0.05  # a shorter wait behind a start is the hand-over itself


def lease_phases(instance: Instance, arrived_at: float, granted_at: float) -> tuple[Phase, ...]:
    """Phases from `arrived_at` to `granted_at` (seconds, one clock), in the order they happened.

    What the agent measured is laid end to end up to the moment the instance was ready; what is
    left between the decision and that is `schedule`: deciding, and telling the agent. A request
    that came while the start was under way gets only the part that it waited for; one that still
    waited for a slot behind the start has a second `queue` at the end.
    """
    ready_at = instance.ready_at
    assert ready_at is not None, "a lease is granted on a ready instance"
    if ready_at <= arrived_at:
        waited_ms = (granted_at - arrived_at) * 1e3
        return (
            Phase(PhaseName.QUEUE, 0.0, waited_ms),
            Phase(PhaseName.SCHEDULE, waited_ms, 0.0),
        )
    phases = [
        Phase(
            span.name,
            start_ms=(begin - arrived_at) * 1e3,
            duration_ms=(end - begin) * 1e3,
            predicted_ms=instance.predicted_ms.get(span.name),
            tier=span.tier,
            bytes=span.bytes,
        )
        for span, begin, end in _laid_out(instance, arrived_at, ready_at)
    ]
    behind_ms = (granted_at - ready_at) * 1e3
    if behind_ms > SMALLEST_QUEUE_MS:
        phases.append(Phase(PhaseName.QUEUE, (ready_at - arrived_at) * 1e3, behind_ms))
    return tuple(phases)


def _laid_out(
    instance: Instance, arrived_at: float, ready_at: float
) -> Iterator[tuple[Span, float, float]]:
    """Every span with its begin and end, cut to what lies behind `arrived_at`."""
    measured_s = sum(span.duration_ms for span in instance.spans) / 1e3
    decided_at = max(arrived_at, instance.requested_at)
    told_at = max(instance.requested_at, ready_at - measured_s)
    yield Span(PhaseName.QUEUE, 0.0), arrived_at, decided_at
    yield Span(PhaseName.SCHEDULE, 0.0), decided_at, max(decided_at, told_at)
    at = told_at
    for span in instance.spans:
        end = min(at + span.duration_ms / 1e3, ready_at)
        begin = max(at, arrived_at)
        if end >= begin:
            yield span, begin, end
        at = end
