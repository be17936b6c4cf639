"""Events of the bucket, as MinIO's webhook sends them, and what has become of its folders.

POST   /v1/bucket-events  -> 204; a hint of where to look, from whoever has the token
GET    /v1/imports        ?wait=0|1 -> folders of the bucket: what they lack, or what they became
"""

from __future__ import annotations

import asyncio
import hmac
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from typing import TYPE_CHECKING, ClassVar
from urllib.parse import unquote_plus

from pydantic import BaseModel, ConfigDict, Field, SecretStr
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from stoker.errors import StokerError
from stoker.gateway.parsing import parse, read_json
from stoker.gateway.upload_deploys import shown
from stoker.store.catalog import Catalog

if TYPE_CHECKING:
    # It brings boto3, which takes a third of a second.
    from stoker.checkpoints.imports import Imports

WAIT_S = 10.0


class EventsRefused(StokerError):
    """Somebody who has not the token, or none was set."""

    status = 403
    code = "events_refused"
    type = "invalid_request_error"


class _Part(BaseModel):
    """Of a message of MinIO's or S3's, of which much else is not read."""

    model_config: ClassVar[ConfigDict] = ConfigDict(extra="ignore")


class _Object(_Part):
    key: str


class _Entity(_Part):
    object: _Object


class _Record(_Part):
    s3: _Entity


class BucketEvents(_Part):
    """https://docs.aws.amazon.com/AmazonS3/latest/userguide/notification-content-structure.html"""

    records: list[_Record] = Field(default_factory=list, alias="Records", max_length=10_000)


def routes(
    imports: Imports,
    catalog: Catalog,
    token: SecretStr | None,
    middleware: Sequence[Middleware],
) -> list[Route]:
    async def events(request: Request) -> Response:
        """Take events of the bucket; they only say where to look."""
        _admit(request, token)
        for record in parse(BucketEvents, await read_json(request)).records:
            imports.changed(unquote_plus(record.s3.object.key))
        return Response(status_code=204)

    async def listed(request: Request) -> Response:
        """List the bucket's folders, what they lack, and what they became; with wait=1 after
        something about them has changed, or WAIT_S."""
        if request.query_params.get("wait") == "1":
            with suppress(TimeoutError):
                await asyncio.wait_for(imports.news(), WAIT_S)
        rows = [
            {**asdict(found), "deploy": shown(await catalog.uploaded(found.name))}
            for found in imports.imports()
        ]
        return JSONResponse({"imports": rows})

    return [
        Route(
            "/v1/bucket-events",
            events,
            methods=["POST"],
            name="bucket_events",
            middleware=middleware,
        ),
        Route("/v1/imports", listed, methods=["GET"], name="imports"),
    ]


def _admit(request: Request, token: SecretStr | None) -> None:
    if token is None:
        raise EventsRefused("events are not taken: STOKER_EVENTS_TOKEN is not set")
    given = request.headers.get("authorization", "").encode("latin-1", errors="replace")
    if not hmac.compare_digest(given, f"Bearer {token.get_secret_value()}".encode()):
        raise EventsRefused("events are taken from whoever sends STOKER_EVENTS_TOKEN alone")
