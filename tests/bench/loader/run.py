"""Measures what the plan asks for, contender beside contender, and gathers the report."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeVar

from tests.bench.loader.child import Order, Outcome
from tests.bench.loader.contenders import CONTENDERS, OURS, Contender, Peers
from tests.bench.loader.judge import judge
from tests.bench.loader.limit import ways
from tests.bench.loader.ours import ABLATION, VERIFICATION
from tests.bench.loader.plan import Plan
from tests.bench.loader.processes import MeasureFailedError, measure
from tests.bench.loader.results import GB, ByName, Results
from tests.bench.loader.store import REHEARSAL, Store
from tests.bench.machine import commit, machine
from tests.bench.report import Report

T = TypeVar("T")
ROWS = ("cold", "warm", "many", "verification", "ablation")


@dataclass(frozen=True, slots=True)
class Session:
    """One run. A contender that fails once is left out from then on, and the report says why."""

    store: Store
    peers: Peers
    plan: Plan
    rng: random.Random
    tell: Callable[[str], None]
    missing: dict[str, str] = field(default_factory=dict)
    tensors: dict[str, tuple[int, int, int]] = field(default_factory=dict)

    def by_contender(
        self, checkpoint: str, contenders: Iterable[Contender], cold: bool
    ) -> dict[str, Callable[[], Outcome]]:
        """What measures each contender that can run."""
        calls: dict[str, Callable[[], Outcome]] = {}
        for contender in contenders:
            if contender.name in self.missing:
                continue
            if why := self.peers.missing(contender):
                self._drop(contender.name, f"does not install: {why}")
                continue
            try:
                calls[contender.name] = self._call(checkpoint, contender, contender.name, cold)
            except MeasureFailedError as error:
                self._drop(contender.name, f"cannot write {checkpoint} in its format: {error}")
        return calls

    def by_step(self, checkpoint: str, makers: Iterable[str]) -> dict[str, Callable[[], Outcome]]:
        """What measures each variant of our loader, cold."""
        ours = CONTENDERS[OURS]
        return {maker: self._call(checkpoint, ours, maker, cold=True) for maker in makers}

    def rounds(self, what: str, calls: Mapping[str, Callable[[], T]]) -> dict[str, list[T]]:
        """Each call once a round, in random order. One that fails is no longer there."""
        found: dict[str, list[T]] = {name: [] for name in calls}
        for number in range(1, self.plan.rounds + 1):
            for name in self.rng.sample(list(found), len(found)):
                began = time.monotonic()
                try:
                    result = calls[name]()
                except MeasureFailedError as error:
                    if name == OURS or name in ABLATION or name in VERIFICATION:
                        raise
                    self._drop(name, f"{what}: {error}")
                    del found[name]
                    continue
                found[name].append(result)
                took_s = time.monotonic() - began
                self.tell(
                    f"  {what} {number}/{self.plan.rounds} {name}: {_shown(result)}"
                    f" ({took_s:.1f} s in all)"
                )
        return found

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
                outcome = measure(order)
            else:
                outcome = measure(order, self.peers.python(contender.environment))
            self._check(checkpoint, outcome)
            return outcome

        return call

    def _check(self, checkpoint: str, outcome: Outcome) -> None:
        """Every contender gives the same tensors as ours gives; else its time means nothing."""
        if checkpoint not in self.tensors:
            path = str(self.store.ours(checkpoint))
            reference = measure(Order(OURS, path, str(self.store.ours(REHEARSAL)), cold=False))
            self.tensors[checkpoint] = _identity(reference)
        if (found := _identity(outcome)) != self.tensors[checkpoint]:
            expected = self.tensors[checkpoint]
            raise MeasureFailedError(
                f"gave other tensors of {checkpoint}: count, bytes, exclusive or {found} "
                f"instead of {expected}"
            )

    def _drop(self, name: str, why: str) -> None:
        self.tell(f"  {name} is left out: {why}")
        self.missing[name] = why


def run(
    root: Path, store: Store, plan: Plan, rows: Iterable[str], tell: Callable[[str], None]
) -> Report:
    """Measures `rows` (of `ROWS`) and judges them; `tell` hears each measurement as it comes."""
    began = time.monotonic()
    started_at = datetime.now(UTC).isoformat(timespec="seconds")
    head, dirty = commit(root)
    store.data.mkdir(parents=True, exist_ok=True)
    here = machine(store.data)
    session = Session(store, store.peers, plan, random.Random(plan.seed), tell)
    made_s = prepare(session)
    results = gather(session, set(rows))
    report = Report(
        started_at=started_at,
        duration_s=round(time.monotonic() - began, 1),
        commit=head,
        dirty=dirty,
        machine=here,
        parameters={
            **plan.parameters(),
            **session.peers.versions(),
            "making_checkpoints_s": round(made_s, 1),
        },
        notes=notes(session),
        rows=judge(results),
    )
    for row in report.rows:
        verdict = {True: "met   ", False: "MISSED", None: "      "}[row.passed]
        tell(f"{verdict} {row.question}: {row.figure}")
    return report


def prepare(session: Session) -> float:
    """Makes every checkpoint in every format before anything is measured; seconds that it took."""
    began = time.monotonic()
    for checkpoint in session.plan.checkpoints:
        session.by_contender(checkpoint, _contenders(session.plan, checkpoint), cold=True)
    return time.monotonic() - began


def gather(session: Session, rows: set[str]) -> Results:
    plan, store = session.plan, session.store
    results = Results(missing=session.missing)
    for checkpoint in plan.checkpoints:
        results.checkpoint_bytes[checkpoint] = store.ours(checkpoint).stat().st_size

    def compare(checkpoint: str, cold: bool, what: str) -> ByName:
        contenders = _contenders(plan, checkpoint)
        return session.rounds(
            f"{what} {checkpoint}", session.by_contender(checkpoint, contenders, cold)
        )

    if "cold" in rows:
        for checkpoint in plan.sizes:
            cold, limit = with_limit(session, checkpoint)
            results.cold[checkpoint] = cold
            if limit:
                results.limit[checkpoint] = limit
    if "warm" in rows:
        for checkpoint in plan.warm_sizes:
            results.warm[checkpoint] = compare(checkpoint, cold=False, what="warm")
    if "many" in rows:
        results.many[plan.many] = compare(plan.many, cold=False, what="warm")
    if "verification" in rows:
        results.verification[plan.middle] = session.rounds(
            f"verification {plan.middle}",
            session.by_step(plan.middle, ("all_steps", *VERIFICATION)),
        )
    if "ablation" in rows:
        results.steps[plan.middle] = session.rounds(
            f"ablation {plan.middle}", session.by_step(plan.middle, ABLATION)
        )
    return results


def with_limit(session: Session, checkpoint: str) -> tuple[ByName, dict[str, list[float]]]:
    """The contenders of a checkpoint, and every way of reading its file, in the same rounds."""
    file = session.store.ours(checkpoint)
    reads = {str(way): way for way in ways()}
    calls: dict[str, Callable[[], Outcome | float]] = {
        **session.by_contender(checkpoint, _contenders(session.plan, checkpoint), cold=True),
        **{name: (lambda way=way: way.bytes_per_s(file)) for name, way in reads.items()},
    }
    found = session.rounds(f"cold {checkpoint}", calls)
    outcomes: ByName = {}
    limit: dict[str, list[float]] = {}
    for name, values in found.items():
        if not values:
            continue
        if name in reads:
            limit[name] = [value for value in values if isinstance(value, float)]
        else:
            outcomes[name] = [value for value in values if isinstance(value, Outcome)]
    return outcomes, limit


def notes(session: Session) -> list[str]:
    """What a reader must know was not measured."""
    found = [f"{name} has no figure: {why}" for name, why in session.missing.items()]
    left_out = [one.name for one in CONTENDERS.values() if not one.large]
    if session.plan.large in session.plan.sizes and left_out:
        found.append(
            f"Not measured on {session.plan.large}, for the time and the disk that it would take: "
            + ", ".join(left_out)
        )
    return found


def _contenders(plan: Plan, checkpoint: str) -> list[Contender]:
    return [one for one in CONTENDERS.values() if checkpoint != plan.large or one.large]


def _identity(outcome: Outcome) -> tuple[int, int, int]:
    return outcome.tensors, outcome.tensor_bytes, outcome.seen


def _shown(result: object) -> str:
    if isinstance(result, Outcome):
        touched_s = result.load_s + result.touch_s
        return (
            f"{result.load_s:.3f} s + {result.touch_s:.3f} s touching, "
            f"CPU {result.cpu_s:.2f} s, {result.tensor_bytes / touched_s / GB:.2f} GB/s"
        )
    assert isinstance(result, float)
    return f"{result / GB:.2f} GB/s"
