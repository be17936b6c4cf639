"""What a start is expected to cost, learned from every start that happened.

T = queue + schedule + provision + fetch + load + init + prefill (ServerlessLLM, OSDI'24, section 5,
extended by the phases that a user waits for besides the loading). Byte-moving phases are predicted
from measured bandwidth per tier, the others from the mean of what they took; both are
exponentially weighted, so that a node that became slower is believed within a few starts.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from stoker.domain import NodeId, PhaseName, Revision, RevisionId, Tier
from stoker.scheduler.view import Calibration, CalibrationKey, Node, Span

WEIGHT = 0.3  # of the newest measurement
SMALLEST_SAMPLE_BYTES = 1 << 20  # below this a bandwidth says more about overheads


def provision_kind(node: Node) -> str:
    """A start that finds a blank worker and one that must spawn it are different things."""
    return "claim" if node.blank_workers > 0 else "spawn"


def learn(
    calibration: Calibration,
    node: NodeId,
    revision: RevisionId,
    spans: Iterable[Span],
    provisioned: str,
) -> Calibration:
    """Takes the measured phases of one start into account."""
    phase_ms, bandwidth = dict(calibration.phase_ms), dict(calibration.bandwidth)
    for span in spans:
        key: CalibrationKey = (node, span.name, provisioned if _shared(span.name) else revision)
        phase_ms[key] = _blend(phase_ms.get(key), span.duration_ms)
        if span.tier and span.bytes >= SMALLEST_SAMPLE_BYTES and span.duration_ms > 0:
            rate = span.bytes / span.duration_ms * 1e3
            bandwidth[node, span.tier] = _blend(bandwidth.get((node, span.tier)), rate)
    return replace(calibration, phase_ms=phase_ms, bandwidth=bandwidth)


def predict(calibration: Calibration, node: Node, revision: Revision) -> dict[PhaseName, float]:
    """Expected milliseconds of each phase of a start; a phase nothing is known of is left out."""
    expected: dict[PhaseName, float] = {}
    for phase in (PhaseName.PROVISION, PhaseName.FETCH, PhaseName.LOAD, PhaseName.INIT):
        kind = provision_kind(node) if _shared(phase) else revision.id
        known = calibration.phase_ms.get((node.id, phase, kind))
        if phase is PhaseName.LOAD and known is None:
            known = _load_from_bandwidth(calibration, node, revision)
        if known is not None:
            expected[phase] = known
    return expected


def learn_prefill(
    calibration: Calibration, node: NodeId, revision: RevisionId, prefill_ms: float
) -> Calibration:
    """Takes one cold request's time from grant to first token into account."""
    key: CalibrationKey = (node, PhaseName.PREFILL, revision)
    phase_ms = dict(calibration.phase_ms)
    phase_ms[key] = _blend(phase_ms.get(key), prefill_ms)
    return replace(calibration, phase_ms=phase_ms)


def expected_ms(calibration: Calibration, node: Node, revision: Revision) -> float:
    """The sum of what is predicted: what nodes are compared by."""
    return sum(predict(calibration, node, revision).values())


def _load_from_bandwidth(calibration: Calibration, node: Node, revision: Revision) -> float | None:
    """Resident bytes at DRAM speed and the others at SSD speed: half resident counts half."""
    if revision.checkpoint is None:
        return None
    resident = min(
        node.resident_bytes.get(revision.checkpoint.digest, 0), revision.checkpoint.size_bytes
    )
    parts = {Tier.DRAM: resident, Tier.SSD: revision.checkpoint.size_bytes - resident}
    total_ms = 0.0
    for tier, size_bytes in parts.items():
        rate = calibration.bandwidth.get((node.id, tier))
        if size_bytes and rate is None:
            return None
        if size_bytes and rate is not None:
            total_ms += size_bytes / rate * 1e3
    return total_ms


def _shared(phase: PhaseName) -> bool:
    """Provisioning does not depend on what is provisioned for."""
    return phase is PhaseName.PROVISION


def _blend(old: float | None, new: float) -> float:
    return new if old is None else (1 - WEIGHT) * old + WEIGHT * new
