"""Our eviction against the policies that everybody knows, on the requests that models get
(`support/zipf_requests.py`)."""

from __future__ import annotations

from statistics import median

import pytest

from support.zipf_requests import OURS, POLICIES, byte_hit_rate, requests

SEEDS = range(7)


@pytest.mark.parametrize("drifting", [False, True])
def test_more_bytes_are_there_than_with_the_policies_that_everybody_knows(drifting: bool) -> None:
    rates: dict[str, list[float]] = {name: [] for name in POLICIES}
    for seed in SEEDS:
        sizes, asked = requests(seed, drifting=drifting)
        for name, use in POLICIES.items():
            rates[name].append(byte_hit_rate(use, sizes, asked))
    ours = median(rates.pop(OURS))
    theirs = {name: median(found) for name, found in rates.items()}
    assert ours > max(theirs.values()), (ours, theirs)
