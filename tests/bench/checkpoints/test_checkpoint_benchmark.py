"""What is judged, and what is measured if something fails; no platform runs here."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tests.bench.checkpoints import run as running
from tests.bench.checkpoints import starts as starting
from tests.bench.checkpoints.judge import judge
from tests.bench.checkpoints.lines import MAX_TRIES, NOTE, Measured, heard, tried
from tests.bench.checkpoints.models import RENEWED_EVERY_BYTES, config_of, renew
from tests.bench.checkpoints.plan import Plan
from tests.bench.checkpoints.results import (
    DRAM,
    EMPTY,
    EVICTION,
    PHASES,
    SSD,
    UPLOAD,
    Results,
    Start,
    Starts,
    Upload,
)
from tests.bench.checkpoints.run import FAILED, ROWS, Bench, gather
from tests.bench.loader.network import LOOPBACK, Link, NoLinkError
from tests.bench.loader.plan import MIN_ROUNDS
from tests.bench.loader.processes import MeasureFailedError
from tests.bench.loader.safetensors_file import NOT_TINY, read_bits, write_random
from tests.bench.loader.shapes import LLAMA_1B
from tests.bench.report import CHECKPOINTS, Machine, Report, markdown, read_json, write_json

from stoker.domain import FunctionName, Phase, PhaseName, RequestId, RevisionId, Tier, Timeline
from stoker_runtime.engines.causal_lm_config import parse_config
from stoker_runtime.engines.causal_lm_weights import expected_names

SHAPED = "10 Gbit/s"
BYTES = 900_000_000
# What may be taken at 1 GB/s, by the targets as they are asked for.
EMPTY_BOUND_S = BYTES / (0.90 * 1e9) + 0.4
SSD_BOUND_S = BYTES / (0.95 * 1e9) + 0.3
DRAM_BOUND_S = 0.35
UPLOAD_BOUND_S = 2.0
MORE_S = 0.001


def measured(**first_token_s: float) -> Starts:
    """Starts that took as long as they may, or as is said by `empty`, `ssd` or `dram`."""
    seconds = {"empty": EMPTY_BOUND_S, "ssd": SSD_BOUND_S, "dram": DRAM_BOUND_S, **first_token_s}
    phases = dict.fromkeys(PHASES, 1.0)
    return Starts(
        checkpoint_bytes=BYTES,
        prompt_tokens=1,
        raw_bytes_per_s={"1 curl": [0.5e9] * MIN_ROUNDS, "4 curl": [1e9] * MIN_ROUNDS},
        disk_bytes_per_s=[1e9] * MIN_ROUNDS,
        by_kind={
            kind: [Start(seconds[name], phases)] * MIN_ROUNDS
            for kind, name in {EMPTY: "empty", SSD: "ssd", DRAM: "dram"}.items()
        },
    )


def on_loopback(first_token_s: float = 60.0) -> Starts:
    """The starts on loopback, which have no target."""
    one = measured(empty=first_token_s)
    return replace(one, by_kind={EMPTY: one.by_kind[EMPTY]}, disk_bytes_per_s=[])


def uploads(answered_s: float = UPLOAD_BOUND_S, runs: int = MIN_ROUNDS) -> list[Upload]:
    return [Upload(0.1, 1.4, 0.5, answered_s)] * runs


def rates(ours: float, lru: float, lfu: float) -> dict[str, list[float]]:
    found = {"ours": ours, "LRU": lru, "LFU": lfu}
    return {name: [rate] * MIN_ROUNDS for name, rate in found.items()}


def results() -> Results:
    """Of a machine on which every target is just met."""
    return Results(
        starts={
            ("smollm2", SHAPED): measured(),
            ("smollm2", LOOPBACK.name): on_loopback(),
            ("llama_1b", SHAPED): measured(),
            ("llama_1b", LOOPBACK.name): on_loopback(),
        },
        upload_bytes=[272_000_000],
        uploads=uploads(),
        eviction={"steady": rates(0.47, 0.35, 0.46), "drifting": rates(0.48, 0.37, 0.35)},
    )


def with_large(changed: Starts) -> dict[str, object]:
    return {"starts": {**results().starts, ("llama_1b", SHAPED): changed}}


def verdicts(found: Results) -> dict[str, bool | None]:
    return {row.id: row.passed for row in judge(found)}


def test_every_target_is_met_at_its_boundary() -> None:
    assert verdicts(results()) == dict.fromkeys(ROWS, True)
    by_id = {row.id: row for row in judge(results())}
    assert by_id[EMPTY].figure == (
        "smollm2 over 10 Gbit/s 1.400 s, bound 1.400 s; smollm2 over loopback 60.000 s; "
        "llama_1b over 10 Gbit/s 1.400 s, bound 1.400 s; llama_1b over loopback 60.000 s"
    )
    assert by_id[DRAM].figure == "smollm2 0.350 s; llama_1b 0.350 s"
    assert by_id[EVICTION].figure.startswith("steady: ours 0.470, LRU 0.350, LFU 0.460; drifting")


@pytest.mark.parametrize(
    ("change", "missed"),
    [
        (with_large(measured(empty=EMPTY_BOUND_S + MORE_S)), EMPTY),
        (with_large(measured(ssd=SSD_BOUND_S + MORE_S)), SSD),
        (with_large(measured(dram=DRAM_BOUND_S + MORE_S)), DRAM),
        ({"uploads": uploads(UPLOAD_BOUND_S + MORE_S)}, UPLOAD),
        ({"eviction": {"steady": rates(0.46, 0.35, 0.46)}}, EVICTION),
        ({"eviction": {"steady": rates(0.47, 0.47, 0.46)}}, EVICTION),
        (
            {"eviction": {"steady": rates(0.5, 0.4, 0.4), "drifting": rates(0.4, 0.5, 0.3)}},
            EVICTION,
        ),
        # Loopback has no target, so it meets none.
        ({"starts": {("smollm2", LOOPBACK.name): measured(empty=0.1)}}, EMPTY),
        (
            {
                "starts": {
                    ("smollm2", SHAPED): measured(),
                    ("llama_1b", LOOPBACK.name): measured(empty=0.1),
                }
            },
            EMPTY,
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_missed_target_is_found(change: dict[str, object], missed: str) -> None:
    found = verdicts(replace(results(), **change))  # type: ignore[arg-type]
    assert {row for row, passed in found.items() if passed is False} == {missed}


def test_medians_are_judged_and_every_sample_is_kept() -> None:
    changed = measured()
    slow = Start(10.0, dict.fromkeys(PHASES, 1.0))
    changed.by_kind[DRAM] = [*changed.by_kind[DRAM][:-1], slow]
    row = {row.id: row for row in judge(replace(results(), **with_large(changed)))}[DRAM]  # type: ignore[arg-type]
    assert row.passed is True
    assert max(row.samples["llama_1b_first_token_s"]) == 10.0


def test_few_runs_meet_no_target_but_can_miss_one() -> None:
    few = replace(results(), uploads=uploads(runs=MIN_ROUNDS - 1))
    assert verdicts(few)[UPLOAD] is None
    slow = replace(results(), uploads=uploads(UPLOAD_BOUND_S + MORE_S, MIN_ROUNDS - 1))
    assert verdicts(slow)[UPLOAD] is False


def test_a_report_has_its_page(tmp_path: Path) -> None:
    report = Report(
        started_at="2026-11-24T00:00:00+00:00",
        duration_s=1.0,
        commit="0" * 12,
        dirty=False,
        machine=Machine(
            cpu="none",
            cores=2,
            memory_bytes=1 << 30,
            kernel="6.18",
            python="3.11",
            torch="2",
            filesystem="ext4",
            load_before=0.0,
        ),
        parameters=Plan().parameters(),
        rows=judge(results()),
    )
    write_json(report, tmp_path / "report.json")
    page = markdown(read_json(tmp_path / "report.json"), CHECKPOINTS)
    assert page.startswith("# Checkpoint benchmarks\n")
    assert "| checkpoint | link | first token | bound | best raw GET | queue |" in page
    assert "| llama_1b, 0.90 GB | 10 Gbit/s | 1.400 s | 1.400 s | 1.00 GB/s (4 curl) |" in page


# --- what is measured ---------------------------------------------------------------------------


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(
        Plan.quick(), tmp_path / "models", tmp_path / "data", tmp_path / "scratch", lambda _: None
    )


@contextmanager
def no_link() -> Iterator[Link]:
    raise NoLinkError("takes root")
    yield LOOPBACK


@contextmanager
def a_link() -> Iterator[Link]:
    yield Link(SHAPED, (), (), "127.0.0.1")


Started = Callable[[Bench, str, Link, tuple[str, ...]], None]


def starting_on(names: list[tuple[str, tuple[str, ...]]], broken: str | None = None) -> Started:
    def start(_bench: Bench, _size: str, link: Link, kinds: tuple[str, ...]) -> None:
        names.append((link.name, kinds))
        if link.name == broken:
            raise MeasureFailedError(f"{_bench.scratch}/x broke")

    return start


def test_loopback_has_the_starts_that_a_link_has_not(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    for shaped, broken, on_shaped, left in (
        (a_link, None, [(SHAPED, (EMPTY, SSD))], (EMPTY,)),
        (a_link, SHAPED, [(SHAPED, (EMPTY, SSD))], (EMPTY, SSD)),
        (no_link, None, [], (EMPTY, SSD)),
    ):
        started: list[tuple[str, tuple[str, ...]]] = []
        monkeypatch.setattr(running, "shaped", shaped)
        monkeypatch.setattr(running, "start", starting_on(started, broken))
        gather(bench, {EMPTY, SSD})
        assert started == [*on_shaped, (LOOPBACK.name, left)]
    assert bench.notes == [
        f"{FAILED} smollm2 over a shaped link: x broke",
        "no figure of smollm2 over a shaped link: takes root",
    ]


def test_a_stage_that_fails_costs_no_other(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(running, "start", starting_on([], LOOPBACK.name))
    gather(bench, {DRAM, EVICTION})
    assert bench.notes == [f"{FAILED} cold starts of smollm2: x broke"]
    by_policy = bench.results.eviction["steady"]
    assert {name: len(found) for name, found in by_policy.items()} == {
        "ours": 1,
        "LRU": 1,
        "LFU": 1,
    }


def test_a_measurement_is_tried_again_a_bounded_number_of_times(
    capsys: pytest.CaptureFixture[str],
) -> None:
    fails = [MAX_TRIES - 1]

    def measure() -> float:
        if fails[0]:
            fails[0] -= 1
            raise MeasureFailedError("it broke")
        return 1.0

    assert tried("ssd-node", measure) == 1.0
    said = [Measured(**json.loads(line)) for line in capsys.readouterr().out.splitlines()]
    assert said == [Measured(NOTE, "ssd-node: measured again, since it broke")] * (MAX_TRIES - 1)
    fails[0] = MAX_TRIES
    with pytest.raises(MeasureFailedError, match="it broke"):
        tried("ssd-node", measure)


def test_a_process_that_fails_says_why() -> None:
    with pytest.raises(MeasureFailedError, match="missing 7 required positional arguments"):
        list(heard(starting.__name__, "{}", before=(), environment=os.environ))


def timeline(*phases: Phase) -> Timeline:
    return Timeline(
        request_id=RequestId("r"),
        function=FunctionName("f"),
        revision=RevisionId("f-00001"),
        cold=True,
        total_ms=sum(phase.duration_ms for phase in phases),
        phases=phases,
    )


def test_a_start_has_every_phase_once() -> None:
    queue, load, behind = (
        Phase(PhaseName.QUEUE, 0.0, 1.0),
        Phase(PhaseName.LOAD, 1.0, 5.0, tier=Tier.SSD),
        Phase(PhaseName.QUEUE, 6.0, 2.0),
    )
    found = starting.phases_ms(timeline(queue, load, behind))
    assert found == {**dict.fromkeys(PHASES, 0.0), "queue": 3.0, "load": 5.0}


@pytest.mark.parametrize(
    ("kind", "tiers", "right"),
    [
        (EMPTY, (Tier.REMOTE,), True),
        (EMPTY, (Tier.REMOTE, Tier.DRAM), True),
        (EMPTY, (Tier.DRAM,), False),
        (SSD, (Tier.SSD,), True),
        (SSD, (Tier.DRAM,), False),
        (SSD, (Tier.REMOTE, Tier.SSD), False),
        (DRAM, (Tier.DRAM,), True),
        (DRAM, (), False),
    ],
)
def test_a_start_from_another_tier_is_no_sample(
    kind: str, tiers: tuple[Tier, ...], right: bool
) -> None:
    one = timeline(*(Phase(PhaseName.LOAD, 0.0, 1.0, tier=tier) for tier in tiers))
    if right:
        starting.check_tier(kind, one)
        return
    with pytest.raises(MeasureFailedError, match="the bytes came from"):
        starting.check_tier(kind, one)


def test_the_made_model_is_one_that_the_runtime_knows() -> None:
    config = parse_config(config_of(LLAMA_1B))
    assert set(expected_names(config)) == LLAMA_1B.shapes().keys()
    assert (config.query_width, config.key_width) == (LLAMA_1B.queries, LLAMA_1B.keys)


def test_renewed_weights_are_others_and_nearly_the_same(tmp_path: Path) -> None:
    files = [tmp_path / f"{number}.safetensors" for number in range(3)]
    for number, file in enumerate(files):
        write_random(file, {"a": (300, 1000), "b": (70,)}, seed=1, always_set=NOT_TINY)
        if number:
            renew(file, number)
    old, *new = [dict(read_bits(file)) for file in files]
    size_bytes = sum(tensor.nbytes for tensor in old.values())
    changed_at = []
    for tensors in new:
        changed = {name: np.flatnonzero(tensors[name] != old[name]) for name in old}
        assert sum(map(len, changed.values())) == -(-size_bytes // RENEWED_EVERY_BYTES)
        assert all(((tensors[name] ^ old[name]) <= 1).all() for name in old)
        changed_at.append({(name, int(at)) for name, where in changed.items() for at in where})
    assert changed_at[0].isdisjoint(changed_at[1])


def test_weights_that_are_computed_with_are_not_tiny(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    write_random(file, {"a": (1000, 64)}, seed=1, always_set=NOT_TINY)
    ((_, bits),) = read_bits(file)
    values = (np.asarray(bits, dtype=np.uint32) << 16).view(np.float32)
    assert (np.abs(values) >= 2.0**-15).all()
    assert (np.abs(values) < 2).all()
