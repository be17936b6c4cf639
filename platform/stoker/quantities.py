"""Durations and sizes as people write them: "5m", "1h30m", "2Gi", or plain numbers."""

from __future__ import annotations

import math
import re

_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_BYTES = {
    "": 1,
    "k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12,
    "Ki": 1 << 10, "Mi": 1 << 20, "Gi": 1 << 30, "Ti": 1 << 40,
}  # fmt: skip
_PART = r"(\d+(?:\.\d+)?)(ms|s|m|h|d)"
_DURATION = re.compile(rf"(?:{_PART})+")
_SIZE = re.compile(r"(\d+(?:\.\d+)?)(Ki|Mi|Gi|Ti|k|M|G|T|)")


def parse_duration_s(text: object) -> float:
    """Seconds of "5m", "30s", "1h30m", "250ms", or of a number. Raises ValueError."""
    if isinstance(text, str) and _DURATION.fullmatch(text):
        return sum(float(number) * _SECONDS[unit] for number, unit in re.findall(_PART, text))
    return _number(text, 'expected a duration like "5m", "30s" or a number of seconds')


def parse_size_bytes(text: object) -> int:
    """Bytes of "2Gi" (binary), "2G" (decimal), or of a number (suffixes are those of
    https://kubernetes.io/docs/reference/kubernetes-api/common-definitions/quantity/).
    Raises ValueError."""
    if isinstance(text, str) and (match := _SIZE.fullmatch(text)):
        return round(float(match[1]) * _BYTES[match[2]])
    return round(_number(text, 'expected a size like "2Gi", "512Mi" or a number of bytes'))


def _number(value: object, expected: str) -> float:
    if isinstance(value, bool):
        raise ValueError(f"{expected}, not {value!r}")  # noqa: TRY004 - Pydantic collects these
    if isinstance(value, int | float) and math.isfinite(value) and value >= 0:
        return float(value)
    if isinstance(value, str) and re.fullmatch(r"\d+(\.\d+)?", value):
        return float(value)
    raise ValueError(f"{expected}, not {value!r}")
