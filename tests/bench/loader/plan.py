"""How much a run of `make bench-loader` measures."""

from __future__ import annotations

from dataclasses import dataclass

SEED = 20261123
MIN_ROUNDS = 7  # fewer say nothing about a spread
QUICK_ROUNDS = 1
SHARES: dict[str | tuple[str, str], float] = {
    ("cold", "smollm2"): 5.0,
    ("cold", "llama_1b"): 18.0,
    ("cold", "llama_3b"): 30.0,
    "warm": 9.5,
    "many": 4.0,
    "http": 6.0,
    "verify": 4.5,
    "steps": 9.0,
}


@dataclass(frozen=True, slots=True)
class Plan:
    """`rounds` is how often each contender is measured on each checkpoint (names of
    `store.CHECKPOINTS`); `middle` is the one for questions that one size answers, and `large` the
    one that only some contenders load. `time_limit_s` bounds all measurements together: a stage
    whose share is over ends after the round at hand, and the report says so."""

    rounds: int = MIN_ROUNDS
    sizes: tuple[str, ...] = ("smollm2", "llama_1b", "llama_3b")
    middle: str = "llama_1b"
    warm_sizes: tuple[str, ...] = ("llama_1b",)
    large: str = "llama_3b"
    many: str = "experts"
    time_limit_s: float = 6000.0
    seed: int = SEED

    @staticmethod
    def quick(seed: int = SEED) -> Plan:
        """A smoke run: every row, on checkpoints of some MB."""
        return Plan(
            rounds=QUICK_ROUNDS,
            sizes=("tiny",),
            middle="tiny",
            warm_sizes=("tiny",),
            many="few_experts",
            seed=seed,
        )

    @property
    def checkpoints(self) -> tuple[str, ...]:
        """Every checkpoint that the plan needs, once."""
        return tuple(dict.fromkeys((*self.sizes, self.middle, *self.warm_sizes, self.many)))

    def share(self, kind: str, checkpoint: str) -> float:
        """Of the time: what a stage takes, roughly, relative to the others."""
        return SHARES.get((kind, checkpoint), SHARES.get(kind, 1.0))

    def parameters(self) -> dict[str, float | int | str | bool]:
        """For the report."""
        return {
            "rounds": self.rounds,
            "checkpoints": " ".join(self.checkpoints),
            "time_limit_s": self.time_limit_s,
            "seed": self.seed,
        }
