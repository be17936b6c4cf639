"""How many instances a function wants, and when a request may expect one."""

from __future__ import annotations

import math

from stoker.domain import ScalePolicy
from stoker.lifecycle import InstanceState
from stoker.scheduler.view import Pool

BREAKER_THRESHOLD = 3  # failures in a row that open the breaker
BREAKER_BASE_S = 5.0  # first time it stays open; doubles with each further failure
BREAKER_MAX_S = 300.0
RETRY_AFTER_FAILURE_S = 1.0
UNKNOWN_START_S = 5.0  # what a start is assumed to take before one was measured


def wanted_instances(scale: ScalePolicy, demand: int) -> int:
    """Instances that `demand` concurrent requests want: `target` requests each, within bounds."""
    return max(scale.min, min(scale.max, math.ceil(demand / scale.target)))


def breaker_open_s(failures: int) -> float:
    """How long a breaker stays open after so many failures in a row."""
    return min(BREAKER_MAX_S, BREAKER_BASE_S * 2.0 ** (failures - BREAKER_THRESHOLD))


def eta_s(pool: Pool, now: float | None) -> float:
    """Seconds until a slot can be expected: what is left of the start that is furthest along,
    or a whole start."""
    expected = [
        sum(i.predicted_ms.values()) / 1e3 - ((now - i.requested_at) if now is not None else 0.0)
        for i in pool.instances.values()
        if i.state is InstanceState.STARTING and i.predicted_ms
    ]
    return max(1.0, min(expected, default=UNKNOWN_START_S))
