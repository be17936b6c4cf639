"""`stoker describe`: a function's facts, and its last cold start as a waterfall."""

from __future__ import annotations

from rich.console import Group, RenderableType

from stoker.client.http import Json
from stoker.client.render import waterfall
from stoker.client.tables import details
from stoker.client.timeline import timeline_from


def function_page(body: Json) -> RenderableType:
    """All that `GET /v1/functions/{name}` says."""
    last = body.get("last_startup")
    facts = details({key: value for key, value in body.items() if key != "last_startup"})
    return Group(facts, "", waterfall(timeline_from(last))) if last else facts
