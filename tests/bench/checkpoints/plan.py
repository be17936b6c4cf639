"""How much a run of `make bench-checkpoints` measures."""

from __future__ import annotations

from dataclasses import dataclass

from tests.bench.checkpoints.models import SIZES
from tests.bench.loader.plan import MIN_ROUNDS

SEED = 20261124
QUICK_RUNS = 1


@dataclass(frozen=True, slots=True)
class Plan:
    """`runs` is how often everything is measured, and how many seeds the eviction gets; `sizes`
    are names of `models.SIZES`."""

    runs: int = MIN_ROUNDS
    sizes: tuple[str, ...] = SIZES
    seed: int = SEED

    @staticmethod
    def quick(seed: int = SEED) -> Plan:
        """A smoke run: every row, once, on the small model."""
        return Plan(runs=QUICK_RUNS, sizes=SIZES[:1], seed=seed)

    def parameters(self) -> dict[str, float | int | str | bool]:
        """For the report."""
        return {"runs": self.runs, "checkpoints": " ".join(self.sizes), "seed": self.seed}
