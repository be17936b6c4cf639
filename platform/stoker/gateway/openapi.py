"""The route table, and the OpenAPI 3.1 document that is made from it."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

Endpoint = Callable[[Request], Awaitable[Response]]
Json = dict[str, Any]

OPENAPI_VERSION = "3.1.0"
_REFERENCE = "#/components/schemas/{model}"
_PARAMETER = re.compile(r"{(\w+)(:\w+)?}")


@dataclass(frozen=True, slots=True)
class Operation:
    """One method of one path, with all that its description needs."""

    method: str
    path: str
    endpoint: Endpoint
    summary: str
    tag: str
    body: type[BaseModel] | None = None
    any_body: bool = False  # any JSON value
    query: tuple[str, ...] = ()
    media_types: tuple[str, ...] = ("application/json",)
    success: int = 200

    @property
    def id(self) -> str:
        words = re.sub(r"\W+", "_", f"{self.method.lower()}_{self.path}")
        return words.strip("_")


def routes_of(operations: Sequence[Operation], middleware: Sequence[Middleware]) -> list[BaseRoute]:
    """The operations as routes, each behind `middleware`."""
    return [
        Route(one.path, one.endpoint, methods=[one.method], middleware=middleware)
        for one in operations
    ]


def document(operations: Sequence[Operation], extra: Sequence[BaseRoute], version: str) -> Json:
    """The OpenAPI document. `extra` are routes that only their docstrings describe."""
    models = list(dict.fromkeys(one.body for one in operations if one.body is not None))
    _, definitions = models_json_schema(
        [(model, "validation") for model in models], ref_template=_REFERENCE
    )
    paths: dict[str, Json] = {}
    for one in operations:
        paths.setdefault(_path(one.path), {})[one.method.lower()] = _operation(one)
    for route in extra:
        if isinstance(route, Route):
            for method in sorted((route.methods or set()) - {"HEAD"}):
                paths.setdefault(_path(route.path), {})[method.lower()] = _described(route, method)
    return {
        "openapi": OPENAPI_VERSION,
        "info": {
            "title": "Stoker",
            "version": version,
            "summary": "A serverless function platform for models.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "paths": paths,
        "components": {"schemas": {**definitions.get("$defs", {}), **_ERRORS}},
    }


def _operation(one: Operation) -> Json:
    content: Json = {media_type: {} for media_type in one.media_types}
    described: Json = {
        "operationId": one.id,
        "summary": one.summary,
        "tags": [one.tag],
        "parameters": [
            *_path_parameters(one.path),
            *({"name": name, "in": "query", "schema": {"type": "string"}} for name in one.query),
        ],
        "responses": {
            str(one.success): {
                "description": "Success",
                **({"content": content} if one.success != 204 else {}),
            },
            "default": _failure(one.tag),
        },
    }
    if one.body is not None:
        schema: Json = {"$ref": _REFERENCE.format(model=one.body.__name__)}
        described["requestBody"] = {
            "required": True,
            "content": {"application/json": {"schema": schema}},
        }
    elif one.any_body:
        described["requestBody"] = {"content": {"application/json": {"schema": {}}}}
    return described


def _described(route: Route, method: str) -> Json:
    lines = (route.endpoint.__doc__ or route.name).strip().splitlines()
    return {
        "operationId": f"{method.lower()}_{route.name}",
        "summary": lines[0],
        "tags": ["control"],
        "parameters": _path_parameters(route.path),
        "responses": {
            "200": {"description": "Success"},
            "default": _failure("control"),
        },
    }


def _failure(tag: str) -> Json:
    shape, media_type = (
        ("Error", "application/json") if tag == "data" else ("Problem", "application/problem+json")
    )
    schema = {"$ref": _REFERENCE.format(model=shape)}
    return {"description": "Failure", "content": {media_type: {"schema": schema}}}


def _path(path: str) -> str:
    return _PARAMETER.sub(r"{\1}", path)


def _path_parameters(path: str) -> list[Json]:
    return [
        {"name": match[1], "in": "path", "required": True, "schema": {"type": "string"}}
        for match in _PARAMETER.finditer(path)
    ]


_FACTS: Json = {
    "code": {"type": "string"},
    "param": {"type": ["string", "null"]},
    "request_id": {"type": "string"},
    "details": {"type": "object"},
}
_ERRORS: Json = {
    "Error": {
        "type": "object",
        "required": ["error"],
        "properties": {
            "error": {
                "type": "object",
                "required": ["message", "type", "param", "code"],
                "properties": {
                    "message": {"type": "string"},
                    "type": {"type": "string"},
                    **_FACTS,
                },
            }
        },
    },
    "Problem": {
        "type": "object",
        "required": ["type", "title", "status", "detail", "code"],
        "properties": {
            "type": {"type": "string", "format": "uri"},
            "title": {"type": "string"},
            "status": {"type": "integer"},
            "detail": {"type": "string"},
            **_FACTS,
        },
    },
}
