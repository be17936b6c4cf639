"""Bytes to values: a request's body as JSON, and JSON as an edge model, with errors that help."""

from __future__ import annotations

import math
from difflib import get_close_matches
from typing import Any, TypeVar

import orjson
from pydantic import BaseModel, ValidationError
from starlette.requests import ClientDisconnect, Request

from stoker.errors import BadRequest
from stoker.gateway.disconnect import ClientLeft

M = TypeVar("M", bound=BaseModel)

TIMEOUT_HEADER = "x-scale-up-timeout"


async def read_json(request: Request) -> Any:
    """The body as JSON, whatever its content type says; None when it is empty.

    Raises BadRequest naming the position of what is no JSON, and PayloadTooLarge.
    """
    try:
        body = await request.body()
    except ClientDisconnect:
        raise ClientLeft from None
    if not body.strip():
        return None
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise BadRequest(
            f"the body is not JSON: {error.msg} (line {error.lineno}, column {error.colno})",
            details={"line": error.lineno, "column": error.colno, "position": error.pos},
        ) from None


def parse(model: type[M], value: Any) -> M:
    """The value as `model`. Raises BadRequest naming the parameter as `messages[0].content`,
    and for an unknown one the nearest that is known."""
    if not isinstance(value, dict):
        raise BadRequest(f"the body must be a JSON object, not {_json_type(value)}")
    try:
        return model.model_validate(value)
    except ValidationError as error:
        raise _bad_request(model, value, error) from None


def startup_timeout_s(request: Request) -> float | None:
    """What `X-Scale-Up-Timeout` asks for, in seconds; None leaves the function's own bound."""
    given = request.headers.get(TIMEOUT_HEADER)
    if given is None:
        return None
    try:
        timeout_s = float(given)
    except ValueError:
        timeout_s = math.nan
    if not 0 <= timeout_s < math.inf:
        raise BadRequest(f"{TIMEOUT_HEADER}: expected seconds, 0 or more", param=TIMEOUT_HEADER)
    return timeout_s


def _bad_request(model: type[BaseModel], value: Any, error: ValidationError) -> BadRequest:
    # A union reports each of its branches: the deepest one is what the user meant.
    found = max(
        error.errors(include_url=False, include_input=False), key=lambda one: len(one["loc"])
    )
    unknown = found["type"] == "extra_forbidden"
    param = _path(found["loc"], value, missing=found["type"] == "missing")
    if unknown:
        name = str(found["loc"][-1])
        near = get_close_matches(name, model.model_fields, n=1) if len(found["loc"]) == 1 else []
        hint = f"; did you mean {near[0]!r}?" if near else ""
        return BadRequest(f"unknown parameter {param!r}{hint}", param=param)
    return BadRequest(f"{param}: {found['msg']}" if param else found["msg"], param=param or None)


def _path(loc: tuple[int | str, ...], value: Any, *, missing: bool) -> str:
    """The place of an error in the user's own words: names of union branches are left out."""
    path = ""
    for position, part in enumerate(loc):
        if isinstance(part, int):
            path += f"[{part}]"
            value = value[part] if isinstance(value, list) and part < len(value) else None
        elif isinstance(value, dict) and part in value:
            path += f".{part}"
            value = value[part]
        elif missing and position == len(loc) - 1:
            path += f".{part}"
    return path.lstrip(".")


def _json_type(value: Any) -> str:
    match value:
        case None:
            return "nothing"
        case bool():
            return "a boolean"
        case int() | float():
            return "a number"
        case str():
            return "a string"
        case _:
            return "an array"
