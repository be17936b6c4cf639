"""Errors as answers: OpenAI's error object on the data plane, RFC 9457 on the control plane."""

from __future__ import annotations

import math
from http import HTTPStatus
from typing import Any

import orjson
from starlette.responses import Response

from stoker.domain import RequestId
from stoker.errors import BadRequest, NotFound, StokerError
from stoker.gateway.call import Call, Plane

PROBLEM_MEDIA_TYPE = "application/problem+json"
MAX_RETRY_AFTER_S = 3600

# What speaks OpenAI's dialect; under /v1 also what is not served, so that its clients understand.
_CONTROL_ROOTS = frozenset({"functions", "requests", "uploads", "checkpoints"})


class RouteNotFound(NotFound):
    code = "route_not_found"


class MethodNotAllowed(BadRequest):
    status = 405
    code = "method_not_allowed"


class InternalError(StokerError):
    """A bug of the platform: the log has its traceback under the request's id."""


def plane_of(path: str) -> Plane:
    """The plane that a path belongs to, also when nothing is served there."""
    parts = path.strip("/").split("/")
    match parts:
        case ["function", *_] | ["v1", "functions", _, "invocations"]:
            return Plane.DATA
        case ["v1", root, *_] if root not in _CONTROL_ROOTS:
            return Plane.DATA
        case _:
            return Plane.CONTROL


def answer(error: StokerError, call: Call) -> Response:
    """The whole response for an error that came before the status line."""
    if call.plane is Plane.DATA:
        body, media_type = openai_error(error, call.request_id), "application/json"
    else:
        body, media_type = problem(error, call.request_id), PROBLEM_MEDIA_TYPE
    return Response(
        orjson.dumps(body, default=str),
        status_code=error.status,
        media_type=media_type,
        headers=retry_after(error),
    )


def openai_error(error: StokerError, request_id: RequestId) -> dict[str, Any]:
    """`{"error": {...}}` as the `openai` clients read it, with the request's id and facts."""
    return {
        "error": {
            "message": error.message,
            "type": error.type,
            "param": error.param,
            "code": error.code,
            "request_id": request_id,
            "details": error.details,
        }
    }


def problem(error: StokerError, request_id: RequestId) -> dict[str, Any]:
    """Problem details of RFC 9457, with the same extension members as the data plane's errors."""
    return {
        "type": f"urn:stoker:problem:{error.code}",
        "title": HTTPStatus(error.status).phrase,
        "status": error.status,
        "detail": error.message,
        "code": error.code,
        "param": error.param,
        "request_id": request_id,
        "details": error.details,
    }


def retry_after(error: StokerError) -> dict[str, str]:
    """`Retry-After` in whole seconds, rounded up, where the error knows when to come back."""
    if error.retry_after_s is None:
        return {}
    return {"retry-after": str(min(max(1, math.ceil(error.retry_after_s)), MAX_RETRY_AFTER_S))}
