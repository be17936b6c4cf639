"""How much a run of `make bench-loader` measures."""

from __future__ import annotations

from dataclasses import dataclass

SEED = 20261123
MIN_ROUNDS = 7  # fewer say nothing about a spread
QUICK_ROUNDS = 1


@dataclass(frozen=True, slots=True)
class Plan:
    """`rounds` is how often each contender is measured on each checkpoint (names of
    `store.CHECKPOINTS`); `middle` is the one for questions that one size answers, and `large` the
    one that only some contenders load."""

    rounds: int = MIN_ROUNDS
    sizes: tuple[str, ...] = ("smollm2", "llama_1b", "llama_3b")
    middle: str = "llama_1b"
    warm_sizes: tuple[str, ...] = ("smollm2", "llama_1b")
    large: str = "llama_3b"
    many: str = "experts"
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

    def parameters(self) -> dict[str, float | int | str | bool]:
        """For the report."""
        return {"rounds": self.rounds, "checkpoints": " ".join(self.checkpoints), "seed": self.seed}
