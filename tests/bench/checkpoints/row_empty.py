"""A node that does not have the checkpoint: the bucket at the other end of a link."""

from __future__ import annotations

from tests.bench.checkpoints.results import EMPTY, PHASES, Results, Starts
from tests.bench.checkpoints.row_parts import CLOCK, GB, facts, phase_cells, size, start_samples
from tests.bench.loader.network import LOOPBACK
from tests.bench.report import Row

MIN_RAW_SHARE = 0.90
ADDED_S = 0.4


def bound_s(starts: Starts) -> float:
    """What a start may take, by the raw GETs of the same rounds."""
    _, raw_bytes_per_s = starts.best_raw()
    return starts.checkpoint_bytes / (MIN_RAW_SHARE * raw_bytes_per_s) + ADDED_S


def empty_row(results: Results) -> Row:
    found = results.of(EMPTY)
    shaped = {name: starts for name, link, starts in found if link != LOOPBACK.name}
    met = {name: starts.first_token_s(EMPTY) <= bound_s(starts) for name, starts in shaped.items()}
    return Row(
        id=EMPTY,
        question="cold start on a node that does not have the checkpoint: request to first token",
        target=f"<= bytes / ({MIN_RAW_SHARE:.2f} x raw parallel GET of the same object) "
        f"+ {ADDED_S:g} s on a link of 10 Gbit/s",
        figure="; ".join(_figure(*one) for one in found),
        passed={name for name, _, _ in found} == met.keys() and all(met.values()),
        method="MinIO keeps the checkpoint at one end of a pair of virtual devices between two "
        "network namespaces that `tc` shapes; platform and client are at the other. On loopback, "
        "which has no target, server and node share the network and the processors. The node's "
        "copy is evicted before each start (`POST /v1/nodes/{node}/cache/{digest}/evict`), and "
        "the server's file is in its page cache. Raw: curl processes of one range each of the "
        "weights' object, which drop what they read; the best number of them counts. " + CLOCK,
        samples={
            name: values
            for size_name, link, starts in found
            for name, values in _samples(f"{size_name}_{link}", starts).items()
        },
        facts=facts(found),
        table=[
            ["checkpoint", "link", "first token", "bound", "best raw GET", *PHASES],
            *(
                [
                    f"{name}, {size(starts)}",
                    link,
                    f"{starts.first_token_s(EMPTY):.3f} s",
                    "" if link == LOOPBACK.name else f"{bound_s(starts):.3f} s",
                    _raw(starts),
                    *phase_cells(starts.by_kind[EMPTY]),
                ]
                for name, link, starts in found
            ),
        ],
    )


def _figure(name: str, link: str, starts: Starts) -> str:
    seconds = f"{name} over {link} {starts.first_token_s(EMPTY):.3f} s"
    return seconds if link == LOOPBACK.name else f"{seconds}, bound {bound_s(starts):.3f} s"


def _raw(starts: Starts) -> str:
    name, bytes_per_s = starts.best_raw()
    return f"{bytes_per_s / GB:.2f} GB/s ({name})"


def _samples(prefix: str, starts: Starts) -> dict[str, list[float]]:
    return {
        **start_samples(prefix, starts.by_kind[EMPTY]),
        **{
            f"{prefix}_raw {name}_bytes_per_s": values
            for name, values in starts.raw_bytes_per_s.items()
        },
    }
