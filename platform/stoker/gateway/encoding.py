"""Values to bytes."""

from __future__ import annotations

import json
from typing import Any

import orjson
from starlette.responses import Response


def to_json(value: Any) -> bytes:
    """Compact JSON, also of integers beyond 64 bits, which a user's handler may return."""
    try:
        return orjson.dumps(value)
    except orjson.JSONEncodeError:
        return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()


def json_response(
    value: Any, *, status: int = 200, headers: dict[str, str] | None = None
) -> Response:
    """A response whose whole body is `value`."""
    return Response(
        to_json(value), status_code=status, media_type="application/json", headers=headers
    )
