"""A checkpoint over HTTP, written through to the disk and verified, against raw parallel GETs."""

from __future__ import annotations

from tests.bench.loader.http_child import AFTERWARDS, AS_IT_ARRIVES
from tests.bench.loader.network import LOOPBACK
from tests.bench.loader.results import GB, HttpResults, Results
from tests.bench.report import Row
from tests.bench.stats import median

MIN_SHAPED_SHARE = 0.95
MIN_LOOPBACK_SHARE = 0.75


def http_row(results: Results) -> Row:
    shares = {link: _share(found) for link, found in results.http.items()}
    met = {
        link: share >= (MIN_LOOPBACK_SHARE if link == LOOPBACK.name else MIN_SHAPED_SHARE)
        for link, share in shares.items()
    }
    both = len(shares) > 1
    return Row(
        id="http",
        question="checkpoint over HTTP, verified and written through, against the best raw "
        "parallel GET",
        target=f">= {MIN_SHAPED_SHARE:g} on a link of 10 Gbit/s, >= {MIN_LOOPBACK_SHARE:g} on "
        "loopback",
        figure="; ".join(f"{link} {share:.2f}" for link, share in shares.items()),
        passed=both and all(met.values()),
        method="nginx serves a resident file, at one end of a pair of virtual devices between two "
        "network namespaces that `tc` shapes, or on loopback, where server and client share the "
        "processors. Raw: curl processes of one range each, which drop what they read; the best "
        "number of them counts. Ours: `stoker_loader.fetch` with the digests of all chunks known, "
        "from the call to its return: every byte verified, in the file, and synced to the disk. "
        "All take turns in random order. The first tensor is one that a second thread got from "
        "the file as it arrived.",
        samples={
            f"{link}_{name}": values
            for link, found in results.http.items()
            for name, values in _samples(found).items()
        },
        table=[
            [
                "link",
                "best raw GET",
                "fetched",
                "share",
                "before the sync",
                "first tensor",
                "CPU per GB",
            ],
            *([link, *_cells(found)] for link, found in results.http.items()),
        ],
    )


def pipeline_row(results: Results) -> Row:
    """The ablation of the pipeline from the network to tensors."""
    factors = {
        link: _loaded_s(found, AFTERWARDS) / _loaded_s(found, AS_IT_ARRIVES)
        for link, found in results.http.items()
    }
    return Row(
        id="pipeline",
        question="checkpoint over HTTP to tensors, each page touched, with the pipeline switched "
        "off: a load behind the fetch instead of beside it",
        target="",
        figure="; ".join(f"{link} {factor:.2f}x as long" for link, factor in factors.items()),
        passed=None,
        method="In the same rounds as `http`. Beside it: a second thread opens the file as it "
        "arrives and loads it, so that what has come is mapped and touched while the rest is on "
        "its way. Behind it: the file is opened and loaded when the fetch has returned; its pages "
        "are in the page cache, where the fetch has put them.",
        samples={
            f"{link}_{when}_s": [one.loaded_s for one in fetchings]
            for link, found in results.http.items()
            for when, fetchings in found.loaded.items()
        },
        table=[
            ["link", "fetched", f"loaded {AS_IT_ARRIVES}", f"loaded {AFTERWARDS}"],
            *(
                [
                    link,
                    f"{median([one.fetch_s for one in found.fetched]):.3f} s",
                    f"{_loaded_s(found, AS_IT_ARRIVES):.3f} s",
                    f"{_loaded_s(found, AFTERWARDS):.3f} s",
                ]
                for link, found in results.http.items()
            ),
        ],
    )


def _loaded_s(found: HttpResults, when: str) -> float:
    return median([one.loaded_s for one in found.loaded[when]])


def _share(found: HttpResults) -> float:
    return _fetched(found) / _best(found)


def _best(found: HttpResults) -> float:
    return max(median(values) for values in found.raw.values())


def _fetched(found: HttpResults) -> float:
    return median([one.size_bytes / one.fetch_s for one in found.fetched])


def _cells(found: HttpResults) -> list[str]:
    best = _best(found)
    name = next(name for name, values in found.raw.items() if median(values) == best)
    arrived = median([one.size_bytes / (one.fetch_s - one.sync_s) for one in found.fetched])
    first_ms = median([one.first_tensor_s for one in found.fetched]) * 1000
    cpu = median([one.cpu_s / (one.size_bytes / GB) for one in found.fetched])
    return [
        f"{best / GB:.2f} GB/s ({name})",
        f"{_fetched(found) / GB:.2f} GB/s",
        f"{_share(found):.2f}",
        f"{arrived / GB:.2f} GB/s ({arrived / best:.2f})",
        f"{first_ms:.0f} ms",
        f"{cpu:.2f} s",
    ]


def _samples(found: HttpResults) -> dict[str, list[float]]:
    return {
        **{f"{name}_bytes_per_s": values for name, values in found.raw.items()},
        "fetch_s": [one.fetch_s for one in found.fetched],
        "sync_s": [one.sync_s for one in found.fetched],
        "first_tensor_s": [one.first_tensor_s for one in found.fetched],
        "cpu_s": [one.cpu_s for one in found.fetched],
    }
