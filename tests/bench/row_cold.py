"""From nothing to the first token: checkpoint in memory, checkpoint on disk, and whether the
timeline tells the truth about it."""

from __future__ import annotations

from tests.bench.disk import (
    DiskRate,
    checkpoint_files,
    recycle_and_evict,
    resident_share,
)
from tests.bench.peers import first_token_s
from tests.bench.report import Row
from tests.bench.stage import PROMPT, Stage
from tests.bench.stats import median

from stoker.domain import Timeline

MAX_COLD_S = 0.25
MIN_SPEEDUP = 10.0
MAX_TIMELINE_ERROR = 0.05
EVICTED_SHARE = 0.01  # of a checkpoint's pages may stay: a page just read by mincore's caller

TRAP = (
    "On virtual machines with free-page reporting, memory freed some seconds ago goes back to the "
    "host, and touching it again costs 1-2.7 s per GB, charged as user time: compare figures "
    "within one run only, and read the CPU seconds beside the wall seconds."
)


def cold_rows(stage: Stage) -> list[Row]:
    """Scaled to zero with a warm pool, against a fresh Transformers process, in turns."""
    stage.warm()  # the first start ever also fills the page cache
    first_token_s(stage.checkpoint, PROMPT)  # and so does the peer's first run
    ours_s: list[float] = []
    peer_s: list[float] = []
    cpu_s: list[float] = []
    errors: list[float] = []
    phases: dict[str, list[float]] = {}
    tiers: set[str] = set()
    shares: list[float] = []
    answers: set[tuple[str, str]] = set()
    for _ in range(stage.plan.cold_runs):
        for side in stage.rng.sample(("ours", "peer"), 2):
            if side == "peer":
                seconds, text = first_token_s(stage.checkpoint, PROMPT)
                peer_s.append(seconds)
                continue
            stage.to_zero()
            shares.append(resident_share(stage.stored))
            cpu_before_s = stage.cpu_s()
            turn = stage.ask()
            cpu_s.append(stage.cpu_s() - cpu_before_s)
            assert turn.cold, "the request found a running instance"
            assert turn.first_token_ms is not None
            ours_s.append(turn.first_token_ms / 1000)
            timeline = stage.api.startup(turn.request_id)
            errors.append(timeline_error(timeline, turn.first_token_ms))
            tiers |= {str(phase.tier) for phase in timeline.phases if phase.tier}
            for phase in timeline.phases:
                phases.setdefault(f"phase_{phase.name}_ms", []).append(phase.duration_ms)
        answers.add((turn.text.split()[0], text.split()[0]))
    assert all(ours.startswith(peer) for ours, peer in answers), f"answers differ: {answers}"
    speedup = median(peer_s) / median(ours_s)
    return [
        Row(
            id="cold-resident",
            question="SmolLM2 scaled to zero, warm pool ready, checkpoint resident: request to "
            "first token",
            target=f"<= {MAX_COLD_S} s and >= {MIN_SPEEDUP:g}x faster than fresh Transformers",
            figure=f"{median(ours_s):.3f} s; Transformers {median(peer_s):.2f} s: {speedup:.1f}x",
            passed=median(ours_s) <= MAX_COLD_S and speedup >= MIN_SPEEDUP,
            method="The function is scaled to zero and the warm pool refilled (`/readyz?warm=1`). "
            "The clock runs in the client from before the request is sent to the first text of "
            "the streamed answer. The peer's clock runs from before its process is created to its "
            "first token (`from_pretrained` in bf16, `generate` of one token, same prompt, page "
            "cache warm, no model hub asked). Both in turns, in random order. " + TRAP,
            samples={"stoker_s": ours_s, "transformers_s": peer_s, "stoker_cpu_s": cpu_s, **phases},
            facts={
                "resident share at least": min(shares),
                "tiers that bytes came from": ", ".join(sorted(tiers)),
            },
        ),
        timeline_row(errors),
    ]


def timeline_error(timeline: Timeline, client_ms: float) -> float:
    """How far the sum of the phases is from the client's clock, as a share of the latter."""
    return abs(sum(phase.duration_ms for phase in timeline.phases) - client_ms) / client_ms


def timeline_row(errors: list[float]) -> Row:
    return Row(
        id="timeline-truth",
        question="sum of the timeline's phases against the client's own clock, cold request",
        target=f"within {MAX_TIMELINE_ERROR:.0%}",
        figure=f"{median(errors):.1%} off; worst {max(errors):.1%}",
        passed=median(errors) <= MAX_TIMELINE_ERROR,
        method="The requests of `cold-resident`: the phases of `/v1/requests/{id}/startup` are "
        "added up and compared with the client's time to the first text.",
        samples={"relative_error": errors},
    )


def evicted_row(stage: Stage) -> list[Row]:
    """Scaled to zero, and only the checkpoint's pages dropped from the page cache."""
    stage.warm()
    files = checkpoint_files(stage.stored)
    checkpoint_bytes = sum(path.stat().st_size for path in files)
    disk = DiskRate()
    ours_s: list[float] = []
    rates: list[float] = []
    cpu_s: list[float] = []
    tiers: set[str] = set()
    for _ in range(stage.plan.cold_runs):
        stage.to_zero()
        rates.append(disk.bytes_per_s(files))
        recycle_and_evict(stage.stored)
        share = resident_share(stage.stored)
        assert share <= EVICTED_SHARE, f"{share:.1%} of the checkpoint is still in the page cache"
        cpu_before_s = stage.cpu_s()
        turn = stage.ask()
        cpu_s.append(stage.cpu_s() - cpu_before_s)
        assert turn.cold, "the request found a running instance"
        assert turn.first_token_ms is not None
        ours_s.append(turn.first_token_ms / 1000)
        timeline = stage.api.startup(turn.request_id)
        tiers |= {str(phase.tier) for phase in timeline.phases if phase.tier}
    bound_s = MAX_COLD_S + checkpoint_bytes / median(rates)
    return [
        Row(
            id="cold-evicted",
            question="the same, page cache dropped for the checkpoint's files only",
            target=f"<= {MAX_COLD_S} s + bytes / measured disk rate",
            figure=f"{median(ours_s):.3f} s; bound {bound_s:.3f} s "
            f"({checkpoint_bytes / 1e6:.0f} MB at {median(rates) / 1e9:.2f} GB/s)",
            passed=median(ours_s) <= bound_s,
            method="As `cold-resident`. Before each start the disk's rate is measured on the same "
            "files (O_DIRECT, 8 readers, 8 MiB blocks, buffers touched ahead), then the files are "
            "read once and their pages dropped (`posix_fadvise`), and `mincore` confirms that at "
            f"most {EVICTED_SHARE:.0%} of them are left; the clock starts at once, so that the "
            "kernel takes pages that this machine had a moment ago. " + TRAP,
            samples={
                "stoker_s": ours_s,
                "disk_bytes_per_s": rates,
                "stoker_cpu_s": cpu_s,
            },
            facts={
                "bound_s": bound_s,
                "checkpoint_bytes": checkpoint_bytes,
                "tiers that bytes came from": ", ".join(sorted(tiers)),
            },
        )
    ]
