"""The OpenAPI document is whole: what it names exists, what is served is in it."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette
from starlette.routing import Route

from integration.gateway.peer import MemoryLeasing
from stoker.checkpoints.directory import DirectoryStore
from stoker.checkpoints.registry import Registry
from stoker.config import Settings
from stoker.gateway.app import create_app
from stoker.store.catalog import Catalog
from stoker.store.memory import MemoryStore

METHODS = {"get", "put", "post", "delete"}


@pytest.fixture
async def app(tmp_path: Path) -> AsyncIterator[Starlette]:
    store = MemoryStore()
    catalog = Catalog(store)
    yield create_app(
        catalog=catalog,
        registry=Registry(tmp_path, catalog, DirectoryStore(tmp_path / "checkpoints")),
        leasing=MemoryLeasing(),
        settings=Settings(home=tmp_path),
    )
    await store.close()


@pytest.fixture
async def document(app: Starlette) -> dict[str, Any]:
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://gateway") as http:
        response = await http.get("/openapi.json")
    assert response.status_code == 200
    return response.json()


def references(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        if isinstance(value.get("$ref"), str):
            yield value["$ref"]
        for inner in value.values():
            yield from references(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from references(inner)


async def test_every_reference_resolves(document: dict[str, Any]) -> None:
    found = set(references(document))
    assert "#/components/schemas/ChatRequest" in found
    for reference in found:
        target: Any = document
        for part in reference.removeprefix("#/").split("/"):
            assert part in target, reference
            target = target[part]


async def test_every_operation_is_well_formed(document: dict[str, Any]) -> None:
    assert document["openapi"].startswith("3.1")
    assert document["info"]["title"]
    assert document["info"]["version"]
    ids = []
    for path, item in document["paths"].items():
        assert path.startswith("/")
        assert set(item) <= METHODS
        for operation in item.values():
            ids.append(operation["operationId"])
            assert operation["responses"]
            named = {p["name"] for p in operation["parameters"] if p["in"] == "path"}
            assert named == set(re.findall(r"{(\w+)}", path)), path
            assert all(p["required"] for p in operation["parameters"] if p["in"] == "path")
    assert len(ids) == len(set(ids))


async def test_every_route_is_described(app: Starlette, document: dict[str, Any]) -> None:
    for route in app.routes:
        assert isinstance(route, Route)
        if route.path == "/openapi.json":
            continue
        path = re.sub(r"{(\w+):\w+}", r"{\1}", route.path)
        for method in (route.methods or set()) - {"HEAD"}:
            assert method.lower() in document["paths"][path], (method, path)
