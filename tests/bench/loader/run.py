"""Measures what the plan asks for, stage after stage, and gathers the report."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import nullcontext
from datetime import UTC, datetime
from pathlib import Path

from tests.bench.loader.child import Outcome
from tests.bench.loader.compare import close_to_ours
from tests.bench.loader.contenders import CONTENDERS, OURS
from tests.bench.loader.contest import Contest, Tell
from tests.bench.loader.http_contest import Exchange, as_results
from tests.bench.loader.judge import judge
from tests.bench.loader.limit import best_ways
from tests.bench.loader.network import LOOPBACK, NoLinkError, shaped
from tests.bench.loader.ours import ABLATION, VERIFICATION, VERIFY_OFF, VERIFY_ON
from tests.bench.loader.plan import Plan
from tests.bench.loader.processes import MeasureFailedError
from tests.bench.loader.results import ByName, Results, touched_s
from tests.bench.loader.store import Store
from tests.bench.loader.web import NoServerError
from tests.bench.machine import commit, machine
from tests.bench.report import Report

ROWS = ("cold", "warm", "many", "http", "verify", "steps")
FAILED = "not measured:"
SWITCH = (VERIFY_OFF, VERIFY_ON)


def run(root: Path, store: Store, plan: Plan, rows: Iterable[str], tell: Tell) -> Report:
    """Measures `rows` (of `ROWS`) and judges them; `tell` hears each measurement as it comes."""
    began = time.monotonic()
    started_at = datetime.now(UTC).isoformat(timespec="seconds")
    head, dirty = commit(root)
    store.data.mkdir(parents=True, exist_ok=True)
    here = machine(store.data)
    contest = Contest(store, store.peers, plan, random.Random(plan.seed), tell)
    made_s = prepare(contest)
    results = gather(contest, set(rows))
    report = Report(
        started_at=started_at,
        duration_s=round(time.monotonic() - began, 1),
        commit=head,
        dirty=dirty,
        machine=here,
        parameters={
            **plan.parameters(),
            **contest.peers.versions(),
            "making_checkpoints_s": round(made_s, 1),
        },
        notes=[*contest.notes, *left_out(plan)],
        rows=judge(results),
    )
    for row in report.rows:
        verdict = {True: "met   ", False: "MISSED", None: "      "}[row.passed]
        tell(f"{verdict} {row.question}: {row.figure}")
    return report


def prepare(contest: Contest) -> float:
    """Makes every checkpoint in every format before anything is measured; the seconds it took."""
    began = time.monotonic()
    for checkpoint in contest.plan.checkpoints:
        contest.by_contender(checkpoint, cold=True)
    return time.monotonic() - began


def gather(contest: Contest, rows: set[str]) -> Results:
    """Measures stage after stage; what one leaves of its share of the time the others get."""
    plan, store = contest.plan, contest.store
    results = Results()
    for checkpoint in plan.checkpoints:
        results.checkpoint_bytes[checkpoint] = store.ours(checkpoint).stat().st_size
    stages = [
        *(("cold", name, _cold(contest, results, name)) for name in plan.sizes),
        *(("warm", name, _warm(contest, results.warm, name)) for name in plan.warm_sizes),
        ("many", plan.many, _warm(contest, results.many, plan.many)),
        ("http", plan.middle, _http(contest, results)),
        ("verify", plan.middle, _verified(contest, results.verification, VERIFICATION, True)),
        ("verify", plan.middle, _verified(contest, results.verification_warm, SWITCH, False)),
        ("steps", plan.middle, _steps(contest, results)),
    ]
    wanted = [stage for stage in stages if stage[0] in rows]
    deadline = time.monotonic() + plan.time_limit_s
    shares = [plan.share(kind, checkpoint) for kind, checkpoint, _ in wanted]
    for number, (kind, checkpoint, measure) in enumerate(wanted):
        left_s = deadline - time.monotonic()
        contest.tell(f"{kind} {checkpoint} ... {left_s:.0f} s are left for all")
        try:
            measure(left_s * shares[number] / sum(shares[number:]))
        except MeasureFailedError as error:
            # An hour of other measurements is worth as much as before.
            contest.notes.append(f"{FAILED} {kind} {checkpoint}: {error}")
            contest.tell(contest.notes[-1])
    return results


Stage = Callable[[float], None]


def _cold(contest: Contest, results: Results, checkpoint: str) -> Stage:
    """The contenders, and the best ways of reading their file, in the same rounds; then those ways
    and the contenders that came close once more, since few rounds tell no small difference."""

    def measure(time_limit_s: float) -> None:
        deadline = time.monotonic() + time_limit_s
        file = contest.store.ours(checkpoint)
        reads = {str(way): way for way in best_ways(file, contest.tell)}
        calls: dict[str, Callable[[], Outcome | float]] = {
            **contest.by_contender(checkpoint, cold=True),
            **{name: (lambda way=way: way.bytes_per_s(file)) for name, way in reads.items()},
        }
        outcomes: ByName = {}
        limit: dict[str, list[float]] = {}

        def take(found: Mapping[str, list[Outcome | float]]) -> None:
            for name, values in found.items():
                for value in values:
                    if isinstance(value, Outcome):
                        outcomes.setdefault(name, []).append(value)
                    else:
                        limit.setdefault(name, []).append(value)

        take(contest.rounds("cold", checkpoint, calls, time_limit_s))
        close = close_to_ours(outcomes, touched_s)
        left_s = deadline - time.monotonic()
        if close and left_s > 0:
            again = {name: calls[name] for name in (*close, OURS, *reads)}
            found = contest.rounds("cold once more", checkpoint, again, left_s)
            take(found)
            for failed in again.keys() - found.keys():
                del outcomes[failed]  # it has no figure, as its note says
        results.cold[checkpoint] = outcomes
        if limit:
            results.limit[checkpoint] = limit
        else:
            contest.notes.append(f"no limit on {checkpoint}: its disk refuses O_DIRECT")

    return measure


def _warm(contest: Contest, into: dict[str, ByName], checkpoint: str) -> Stage:
    def measure(time_limit_s: float) -> None:
        calls = contest.by_contender(checkpoint, cold=False)
        into[checkpoint] = contest.rounds("warm", checkpoint, calls, time_limit_s)

    return measure


def _http(contest: Contest, results: Results) -> Stage:
    def measure(time_limit_s: float) -> None:
        exchange = Exchange(contest.store, contest.plan.middle)
        links = [nullcontext(LOOPBACK), shaped()]
        for number, entering in enumerate(links):
            left = len(links) - number
            try:
                with entering as link, exchange.over(link) as calls:
                    what = f"http over {link.name}"
                    found = contest.rounds(what, contest.plan.middle, calls, time_limit_s / left)
            except (NoLinkError, NoServerError) as error:
                contest.notes.append(f"no figure over HTTP: {error}")
                continue
            results.http[link.name] = as_results(found)

    return measure


def _steps(contest: Contest, results: Results) -> Stage:
    def measure(time_limit_s: float) -> None:
        checkpoint = contest.plan.middle
        calls = contest.by_step(checkpoint, ABLATION)
        results.steps[checkpoint] = contest.rounds("steps", checkpoint, calls, time_limit_s)

    return measure


def _verified(
    contest: Contest, into: dict[str, ByName], variants: Iterable[str], cold: bool
) -> Stage:
    def measure(time_limit_s: float) -> None:
        checkpoint = contest.plan.middle
        calls = contest.by_step(checkpoint, variants, cold)
        into[checkpoint] = contest.rounds("verify", checkpoint, calls, time_limit_s)

    return measure


def left_out(plan: Plan) -> list[str]:
    """What the plan itself leaves out."""
    names = [one.name for one in CONTENDERS.values() if not one.large]
    if plan.large not in plan.sizes or not names:
        return []
    return [
        f"{', '.join(names)}: not measured on {plan.large}, for the time and the disk it would take"
    ]
