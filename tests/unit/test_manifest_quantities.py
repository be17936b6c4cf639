"""Durations and sizes."""

from __future__ import annotations

from typing import Any

import pytest

from stoker.quantities import parse_duration_s, parse_size_bytes


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("5m", 300), ("30s", 30), ("1h30m", 5400), ("250ms", 0.25), ("1.5h", 5400), ("2d", 172800),
     (7, 7), (0.5, 0.5), (0, 0), ("90", 90)],
)  # fmt: skip
def test_durations(text: Any, seconds: float) -> None:
    assert parse_duration_s(text) == pytest.approx(seconds)


@pytest.mark.parametrize(
    ("text", "size_bytes"),
    [("2Gi", 2 << 30), ("512Mi", 512 << 20), ("1.5Gi", 3 << 29), ("2G", 2_000_000_000),
     ("4Ki", 4096), ("1k", 1000), ("123", 123), (123, 123), ("1Ti", 1 << 40)],
)  # fmt: skip
def test_sizes(text: Any, size_bytes: int) -> None:
    assert parse_size_bytes(text) == size_bytes


@pytest.mark.parametrize(
    "text",
    [
        "",
        "m",
        "5 m",
        "5x",
        "-5m",
        "m5",
        "5m garbage",
        -1,
        True,
        None,
        [],
        float("nan"),
        float("inf"),
    ],
)
def test_what_is_neither(text: Any) -> None:
    with pytest.raises(ValueError, match="expected a duration"):
        parse_duration_s(text)
    with pytest.raises(ValueError, match="expected a size"):
        parse_size_bytes(text)
