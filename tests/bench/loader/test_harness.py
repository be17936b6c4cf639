"""The loader's benchmark still runs, on tiny checkpoints; no time is judged here."""

from __future__ import annotations

import json
import os
import random
import shutil
import socket
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.bench.loader.child import MAX_COLD_SHARE, Order, Outcome, evict
from tests.bench.loader.compare import close_to_ours
from tests.bench.loader.contenders import CONTENDERS, FAILURES_FILE, OURS, Peers, requirements
from tests.bench.loader.contest import MAX_TRIES, Contest
from tests.bench.loader.judge import judge
from tests.bench.loader.ours import ABLATION, VERIFICATION, VERIFY_OFF, VERIFY_ON
from tests.bench.loader.plan import MIN_ROUNDS, Plan
from tests.bench.loader.processes import MeasureFailedError, Relay
from tests.bench.loader.results import Results, touched_s, usable_s
from tests.bench.loader.run import FAILED, ROWS, gather, run
from tests.bench.loader.store import REHEARSAL, Store
from tests.bench.report import LOADER, markdown, read_json, write_json

import stoker_loader

ROOT = Path(__file__).resolve().parents[3]
PEERS = [name for name in CONTENDERS if name != OURS]
WHY = "no installer here"


@pytest.fixture(scope="module")
def store() -> Iterator[Store]:
    """Without any peer, on the repository's disk: a tmpfs has no pages that could be dropped."""
    cache = ROOT / ".cache"
    cache.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache, prefix="bench-test-") as folder:
        failures = {name: WHY for names in requirements().values() for name in names}
        (Path(folder) / FAILURES_FILE).write_text(json.dumps(failures))
        data = Path(folder) / "data"
        yield Store(data, Path(folder) / "models", Peers.at(Path(folder)), lambda line: None)


def test_a_quick_run_has_every_row_and_says_who_is_missing(store: Store, tmp_path: Path) -> None:
    said: list[str] = []
    report = run(ROOT, store, Plan.quick(), ROWS, said.append)
    assert {row.id for row in report.rows} >= {
        *("cold-limit", "cold-peers", "warm-attach", "warm-peers", "many-tensors"),
        *("cpu", "memory", "verification", "verification-warm", "ablation"),
    }
    for row in report.rows:
        assert row.samples, row.id
        assert all(value >= 0 for values in row.samples.values() for value in values), row.id
    notes = "\n".join(report.notes)
    fetched = [name for row in report.rows for name in row.samples if name.endswith("fetch_s")]
    if shutil.which("nginx") and shutil.which("curl"):
        assert "loopback_fetch_s" in fetched
        (pipeline,) = (row for row in report.rows if row.id == "pipeline")
        assert {"loopback_as it arrives_s", "loopback_afterwards_s"} <= pipeline.samples.keys()
        assert all(value > 0 for values in pipeline.samples.values() for value in values)
    else:
        assert "no figure over HTTP: nginx and curl are needed" in notes
    for peer in PEERS:
        assert f"{peer} has no figure on tiny: does not install: {WHY}" in notes
    # Nobody is beaten who was not measured.
    passed = {row.id: row.passed for row in report.rows}
    assert (passed["cold-peers"], passed["warm-peers"], passed["cpu"]) == (False, False, False)
    assert any(line.lstrip().startswith("cold tiny 1/1 stoker:") for line in said)
    write_json(report, tmp_path / "report.json")
    assert read_json(tmp_path / "report.json") == report
    page = markdown(report, LOADER)
    assert page.startswith("# Loader benchmarks\n")
    assert f"- {PEERS[0]} has no figure on tiny" in page
    assert "| bulk: pieces of 128 KiB instead of 8 MiB |" in page


def test_a_checkpoint_that_cannot_be_evicted_is_no_cold_one(store: Store) -> None:
    path = store.ours(REHEARSAL)
    with stoker_loader.open(path) as checkpoint:
        checkpoint.populate()
        with pytest.raises(MeasureFailedError, match="is in the page cache"):
            Relay().measure(Order(OURS, str(path), str(path), cold=True))


def test_pages_that_were_sent_over_the_network_can_be_evicted(store: Store) -> None:
    """By a server on one processor to a client on another, several times: it takes chance."""
    path = store.ours(REHEARSAL)
    allowed = sorted(os.sched_getaffinity(0))
    for _ in range(8):
        stoker_loader.prefetch(path)
        with socket.create_server(("127.0.0.1", 0)) as listening:
            sending = threading.Thread(target=send, args=(path, listening, allowed[0]))
            sending.start()
            os.sched_setaffinity(0, {allowed[-1]})
            received_bytes = 0
            try:
                with socket.create_connection(listening.getsockname()) as client:
                    while piece := client.recv(1 << 20):
                        received_bytes += len(piece)
            finally:
                os.sched_setaffinity(0, allowed)
            sending.join()
            assert received_bytes == path.stat().st_size
        assert evict(path.parent) <= MAX_COLD_SHARE


def send(path: Path, listening: socket.socket, processor: int) -> None:
    """All of a file to whoever connects, from the page cache and by one processor."""
    os.sched_setaffinity(0, {processor})  # of this thread
    client, _ = listening.accept()
    with client, path.open("rb") as file:
        client.sendfile(file)


def test_a_contender_that_gives_other_tensors_has_no_time(store: Store) -> None:
    contest = Contest(store, store.peers, Plan.quick(), random.Random(1), lambda line: None)
    calls = contest.by_contender(REHEARSAL, cold=False)
    outcome = calls[OURS]()
    contest.tensors[REHEARSAL] = (outcome.tensors, outcome.tensor_bytes, outcome.seen ^ 1)
    with pytest.raises(MeasureFailedError, match="gave other tensors"):
        calls[OURS]()
    contest.relay.end()


def test_a_peer_that_fails_is_left_out_with_its_reason(store: Store) -> None:
    contest = Contest(
        store, store.peers, replace(Plan.quick(), rounds=3), random.Random(1), lambda line: None
    )
    asked: list[str] = []

    def fail() -> float:
        asked.append("tensorizer")
        raise MeasureFailedError(f"exit 1: {store.data}/tiny/x broke")

    calls = {"tensorizer": fail, "other": lambda: 1.0}
    found = contest.rounds("cold", REHEARSAL, calls, time_limit_s=60)
    assert found == {"other": [1.0, 1.0, 1.0]}
    assert asked == ["tensorizer"]
    assert contest.notes == [f"tensorizer has no figure on {REHEARSAL}: exit 1: tiny/x broke"]


def test_a_measurement_of_ours_is_tried_again_a_bounded_number_of_times(store: Store) -> None:
    contest = Contest(store, store.peers, Plan.quick(), random.Random(1), lambda line: None)
    fails = [MAX_TRIES - 1]

    def fail() -> float:
        if fails[0]:
            fails[0] -= 1
            raise MeasureFailedError("exit 1: it broke")
        return 1.0

    calls = {OURS: fail}
    assert contest.rounds("cold", REHEARSAL, calls, time_limit_s=60) == {OURS: [1.0]}
    assert len(contest.notes) == MAX_TRIES - 1
    assert all("measured again, since exit 1: it broke" in note for note in contest.notes)
    fails[0] = MAX_TRIES
    with pytest.raises(MeasureFailedError, match="it broke"):
        contest.rounds("cold", REHEARSAL, calls, time_limit_s=60)


def test_a_stage_that_fails_costs_no_other(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    contest = Contest(
        store, store.peers, replace(Plan.quick(), time_limit_s=60), random.Random(1), print
    )
    rounds = Contest.rounds

    def break_warm(self: Contest, what: str, *rest: Any) -> Any:
        if what == "warm":
            raise MeasureFailedError("exit 1: it broke")
        return rounds(self, what, *rest)

    monkeypatch.setattr(Contest, "rounds", break_warm)
    results = gather(contest, {"warm", "verify"})
    assert results.verification
    assert not results.warm
    failed = [note for note in contest.notes if note.startswith(FAILED)]
    assert len(failed) == 1
    assert "it broke" in failed[0]
    contest.relay.end()


def test_a_stage_ends_with_its_share_of_the_time_and_the_report_says_so(store: Store) -> None:
    contest = Contest(store, store.peers, Plan(), random.Random(1), lambda line: None)
    found = contest.rounds("cold", REHEARSAL, {"other": lambda: 1.0}, time_limit_s=-1)
    assert found == {"other": [1.0]}
    assert contest.notes == [
        f"cold {REHEARSAL}: 1 rounds instead of {MIN_ROUNDS}, since its share of the time, -1 s, "
        "was over"
    ]


def outcome(
    load_s: float,
    touch_s: float = 0.0,
    again_s: float = 0.0,
    cpu_s: float = 0.1,
    extra: int = 0,
    faults: int = 0,
) -> Outcome:
    return Outcome(
        load_s=load_s,
        touch_s=touch_s,
        touch_faults=faults,
        again_s=again_s,
        cpu_s=cpu_s,
        tensors=19_000,
        tensor_bytes=10**9,
        seen=0,
        process_bytes=10**9 + extra,
        cached_bytes=0,
        resident_share_before=0.0,
    )


def results() -> Results:
    """Of a machine on which every target is met: one checkpoint of 1 GB."""
    fast, slow = [outcome(0.5)] * MIN_ROUNDS, [outcome(0.6, cpu_s=0.2)] * MIN_ROUNDS
    attached = [outcome(0.002, touch_s=0.010, again_s=0.010)] * MIN_ROUNDS
    faulting = [outcome(0.004, touch_s=0.120, again_s=0.010, faults=15_000)] * MIN_ROUNDS
    return Results(
        checkpoint_bytes={"one": 10**9},
        limit={"one": {"psync": [1.9e9] * MIN_ROUNDS, "io_uring": [2.05e9] * MIN_ROUNDS}},
        cold={"one": {OURS: fast, "peer": slow}},
        warm={"one": {OURS: attached, "peer": faulting}},
        many={"one": {OURS: attached, "peer": faulting}},
        steps={"one": dict.fromkeys(ABLATION, fast)},
        verification={"one": dict.fromkeys(VERIFICATION, fast)},
        verification_warm={"one": dict.fromkeys((VERIFY_OFF, VERIFY_ON), fast)},
    )


def verdicts(found: Results) -> dict[str, bool | None]:
    return {row.id: row.passed for row in judge(found)}


def test_every_target_can_be_met() -> None:
    assert {row for row, passed in verdicts(results()).items() if passed is not True} == {
        "ablation",  # these have none
        "verification-warm",
    }
    by_id = {row.id: row for row in judge(results())}
    assert by_id["cold-limit"].figure == "one 2.00 of 2.05 GB/s (io_uring): 0.98"
    assert by_id["warm-attach"].figure == "one 2.00 ms per GB"
    assert by_id["warm-peers"].figure == "one: peer 57.00x ours"


@pytest.mark.parametrize(
    ("change", "missed"),
    [
        ({"limit": {"one": {"psync": [1.9e9], "io_uring": [2.2e9]}}}, {"cold-limit"}),
        (
            {"cold": {"one": {OURS: [outcome(0.5)], "peer": [outcome(0.49, cpu_s=0.2)]}}},
            {"cold-peers"},
        ),
        ({"cold": {"one": {OURS: [outcome(0.5)]}}}, {"cold-peers", "cpu"}),
        (
            {"cold": {"one": {OURS: [outcome(0.5)], "peer": [outcome(0.6, cpu_s=0.1)]}}},
            {"cpu"},
        ),
        (
            {
                "cold": {
                    "one": {
                        OURS: [outcome(0.5, extra=65 << 20)],
                        "peer": [outcome(0.6, cpu_s=0.2)],
                    }
                }
            },
            {"memory"},
        ),
        (
            {"warm": {"one": {OURS: [outcome(0.0031)], "peer": [outcome(0.2)]}}},
            {"warm-attach"},
        ),
        ({"warm": {"one": {OURS: [outcome(0.002)], "peer": [outcome(0.09)]}}}, {"warm-peers"}),
        ({"many": {"one": {OURS: [outcome(0.061)], "peer": [outcome(0.2)]}}}, {"many-tensors"}),
        ({"many": {"one": {OURS: [outcome(0.05)], "peer": [outcome(0.04)]}}}, {"many-tensors"}),
        (
            {
                "verification": {
                    "one": {
                        VERIFY_OFF: [outcome(0.5)],
                        VERIFY_ON: [outcome(0.53)],
                        "verify_first": [outcome(0.5)],
                        "verify_afterwards": [outcome(0.6)],
                    }
                }
            },
            {"verification"},
        ),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "-".join(sorted(value)),
)
def test_a_missed_target_is_found(change: dict[str, object], missed: set[str]) -> None:
    found = verdicts(replace(results(), **change))  # type: ignore[arg-type]
    assert {row for row, passed in found.items() if passed is False} == missed


@pytest.mark.parametrize(("faults", "ms"), [(0, 2.0), (244, 2.0), (245, 12.0)])
def test_a_pass_adds_what_its_page_faults_cost_and_no_noise(faults: int, ms: float) -> None:
    one = outcome(0.002, touch_s=0.020, again_s=0.010, faults=faults)  # of 244,140 pages
    assert usable_s([one]) == pytest.approx([ms / 1000])


def test_whoever_came_close_is_measured_once_more() -> None:
    ours = [outcome(1.0)] * MIN_ROUNDS
    measured = {OURS: ours}
    for name, seconds in {"ahead": 0.81, "far ahead": 0.79, "behind": 1.24, "far": 1.26}.items():
        measured[name] = [outcome(seconds)] * MIN_ROUNDS
    assert close_to_ours(measured, touched_s) == ["ahead", "behind"]


def test_a_limit_that_is_beaten_is_none() -> None:
    beaten = replace(results(), limit={"one": {"psync": [1.8e9] * MIN_ROUNDS}})
    row = {row.id: row for row in judge(beaten)}["cold-limit"]
    assert row.passed is None
    assert row.figure.endswith("1.11 (no way that was tried found the limit)")


def test_few_rounds_meet_no_target_but_can_miss_one() -> None:
    few = [outcome(0.002, touch_s=0.010, again_s=0.010)] * (MIN_ROUNDS - 1)
    faulting = [outcome(0.004, touch_s=0.120, again_s=0.010, faults=15_000)] * MIN_ROUNDS
    found = replace(results(), warm={"one": {OURS: few, "peer": faulting}})
    row = {row.id: row for row in judge(found)}["warm-attach"]
    assert (row.passed, row.figure) == (
        None,
        "one 2.00 ms per GB (no verdict by 6 rounds, 7 are needed)",
    )
    slow = [outcome(0.0031)] * (MIN_ROUNDS - 1)
    assert (
        verdicts(replace(found, warm={"one": {OURS: slow, "peer": faulting}}))["warm-attach"]
        is False
    )


def test_a_peer_may_be_ahead_on_one_size_by_three_percent_and_no_more() -> None:
    ours = [outcome(1.0)] * MIN_ROUNDS

    def cold(peer_s: float) -> Results:
        return replace(
            results(),
            checkpoint_bytes={"one": 10**9, "two": 10**9},
            cold={
                "one": {OURS: ours, "peer": [outcome(peer_s, cpu_s=0.2)] * MIN_ROUNDS},
                "two": {OURS: ours, "peer": [outcome(2.0, cpu_s=0.2)] * MIN_ROUNDS},
            },
            limit={},
        )

    assert verdicts(cold(0.972))["cold-peers"] is True
    assert verdicts(cold(0.969))["cold-peers"] is False
