"""Contender beside contender: whom a round has, in which order, and until when."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

from tests.bench.loader.child import Order, Outcome
from tests.bench.loader.contenders import CONTENDERS, OURS, Contender, Peers
from tests.bench.loader.http_child import Fetching
from tests.bench.loader.plan import Plan
from tests.bench.loader.processes import MeasureFailedError, Relay
from tests.bench.loader.results import GB
from tests.bench.loader.store import REHEARSAL, Store

MAX_TRIES = 3  # of a measurement of ours: what hindered one may have passed

T = TypeVar("T")
Tell = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Contest:
    """One run. A contender that fails on a checkpoint is left out there from then on; `notes` say
    why, and what else was not measured."""

    store: Store
    peers: Peers
    plan: Plan
    rng: random.Random
    tell: Tell
    relay: Relay = field(default_factory=Relay)
    notes: list[str] = field(default_factory=list)
    absent: set[tuple[str, str]] = field(default_factory=set)  # contender and checkpoint
    tensors: dict[str, tuple[int, int, int]] = field(default_factory=dict)  # of a checkpoint

    def by_contender(self, checkpoint: str, cold: bool) -> dict[str, Callable[[], Outcome]]:
        """What measures each contender that can load the checkpoint."""
        calls: dict[str, Callable[[], Outcome]] = {}
        for contender in CONTENDERS.values():
            if (contender.name, checkpoint) in self.absent:
                continue
            if checkpoint == self.plan.large and not contender.large:
                continue
            if why := self.peers.missing(contender):
                self._drop(contender.name, checkpoint, f"does not install: {why}")
                continue
            try:
                calls[contender.name] = self._call(checkpoint, contender, contender.name, cold)
            except MeasureFailedError as error:
                self._drop(contender.name, checkpoint, f"cannot write it in its format: {error}")
        return calls

    def by_step(
        self, checkpoint: str, makers: Iterable[str], cold: bool = True
    ) -> dict[str, Callable[[], Outcome]]:
        """What measures each variant of our loader."""
        ours = CONTENDERS[OURS]
        return {maker: self._call(checkpoint, ours, maker, cold) for maker in makers}

    def rounds(
        self,
        what: str,
        checkpoint: str,
        calls: Mapping[str, Callable[[], T]],
        time_limit_s: float,
    ) -> dict[str, list[T]]:
        """Each call once a round, in random order, until there are enough or the time is over.

        A peer that fails is no longer there; our own measurements are tried again, and what fails
        `MAX_TRIES` times is raised: MeasureFailedError.
        """
        deadline = time.monotonic() + time_limit_s
        found: dict[str, list[T]] = {name: [] for name in calls}
        for number in range(1, self.plan.rounds + 1):
            if number > 1 and time.monotonic() > deadline:
                self.notes.append(
                    f"{what} {checkpoint}: {number - 1} rounds instead of {self.plan.rounds}, "
                    f"since its share of the time, {time_limit_s:.0f} s, was over"
                )
                break
            for name in self.rng.sample(list(found), len(found)):
                began = time.monotonic()
                is_peer = name in CONTENDERS and name != OURS
                try:
                    result = self._tried(f"{what} {checkpoint} {name}", calls[name], is_peer)
                except MeasureFailedError as error:
                    if not is_peer:
                        raise
                    self._drop(name, checkpoint, str(error))
                    del found[name]
                    continue
                found[name].append(result)
                self.tell(
                    f"  {what} {checkpoint} {number}/{self.plan.rounds} {name}: {shown(result)} "
                    f"({time.monotonic() - began:.1f} s in all)"
                )
        self.relay.end()
        return found

    def _tried(self, what: str, call: Callable[[], T], is_peer: bool) -> T:
        tries = 1 if is_peer else MAX_TRIES
        for number in range(1, tries + 1):
            try:
                return call()
            except MeasureFailedError as error:
                if number == tries:
                    raise
                self.notes.append(f"{what}: measured again, since {error}")
                self.tell(self.notes[-1])
        raise AssertionError("every try returns or raises")

    def _call(
        self, checkpoint: str, contender: Contender, maker: str, cold: bool
    ) -> Callable[[], Outcome]:
        order = Order(
            maker=maker,
            path=str(self.store.file(checkpoint, contender)),
            rehearsal=str(self.store.file(REHEARSAL, contender)),
            cold=cold,
        )

        def call() -> Outcome:
            if contender.environment is None:
                outcome = self.relay.measure(order)
            else:
                python = self.peers.python(contender.environment)
                outcome = self.relay.measure(order, python)
            self._check(checkpoint, outcome)
            return outcome

        return call

    def _check(self, checkpoint: str, outcome: Outcome) -> None:
        """Whoever gives other tensors than ours has no time."""
        if checkpoint not in self.tensors:
            path = str(self.store.ours(checkpoint))
            order = Order(OURS, path, str(self.store.ours(REHEARSAL)), cold=False)
            self.tensors[checkpoint] = identity(self.relay.measure(order))
        if (found := identity(outcome)) != self.tensors[checkpoint]:
            raise MeasureFailedError(
                f"gave other tensors: count, bytes, exclusive or {found} "
                f"instead of {self.tensors[checkpoint]}"
            )

    def _drop(self, name: str, checkpoint: str, why: str) -> None:
        # Notes are published: where on this machine the files are is nobody's business.
        why = why.replace(f"{self.store.data}/", "")
        note = f"{name} has no figure on {checkpoint}: {why}"
        self.tell(f"  {note}")
        self.notes.append(note)
        self.absent.add((name, checkpoint))


def identity(outcome: Outcome) -> tuple[int, int, int]:
    """What any two loaders of one checkpoint agree on."""
    return outcome.tensors, outcome.tensor_bytes, outcome.seen


def shown(result: object) -> str:
    if isinstance(result, Outcome):
        touched_s = result.load_s + result.touch_s
        return (
            f"{result.load_s:.3f} s + {result.touch_s:.3f} s touching, "
            f"CPU {result.cpu_s:.2f} s, {result.tensor_bytes / touched_s / GB:.2f} GB/s"
        )
    if isinstance(result, Fetching):
        return (
            f"{result.size_bytes / result.fetch_s / GB:.2f} GB/s, of {result.fetch_s:.2f} s "
            f"{result.sync_s:.2f} syncing, first tensor after {result.first_tensor_s:.3f} s, "
            + (f"all loaded after {result.loaded_s:.3f} s, " if result.loaded_s else "")
            + f"CPU {result.cpu_s:.2f} s"
        )
    assert isinstance(result, float)
    return f"{result / GB:.2f} GB/s"
