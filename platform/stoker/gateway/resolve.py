"""A name in a request to the revision that serves it, and whether it can."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Set
from dataclasses import dataclass

from stoker.domain import EngineName, Function, Revision, RevisionId
from stoker.errors import BadRequest, FunctionNotFound
from stoker.gateway.call import Call
from stoker.store.catalog import Catalog

MAX_CACHED_REVISIONS = 1024  # they are immutable, so one that was read stays true

TEXT = frozenset({EngineName.AUTO, EngineName.CAUSAL_LM, EngineName.TRANSFORMERS})
EMBEDDING = frozenset({EngineName.AUTO, EngineName.EMBEDDING})
MODELS = TEXT | EMBEDDING
ANY = frozenset(EngineName)


@dataclass(frozen=True, slots=True)
class _Use:
    """How a function with some engine is called."""

    does: str
    route: str


_USES = {
    EngineName.AUTO: _Use("serves a model", "/v1/chat/completions or /v1/embeddings"),
    EngineName.CAUSAL_LM: _Use("completes text", "/v1/chat/completions"),
    EngineName.TRANSFORMERS: _Use("completes text", "/v1/chat/completions"),
    EngineName.EMBEDDING: _Use("embeds text", "/v1/embeddings"),
    EngineName.HANDLER: _Use("runs a handler", "/v1/functions/{name}/invocations"),
}


class Resolver:
    """Finds the latest revision of a function; that costs one read of the catalog."""

    def __init__(self, catalog: Catalog, limit: int = MAX_CACHED_REVISIONS) -> None:
        self._catalog = catalog
        self._limit = limit
        self._revisions: OrderedDict[RevisionId, Revision] = OrderedDict()

    async def resolve(
        self, call: Call, name: str, engines: Set[EngineName], *, param: str | None = "model"
    ) -> Revision:
        """Raises FunctionNotFound, and BadRequest when its engine is none of `engines`; both
        name `param`."""
        try:
            function = await self._catalog.function(name)
        except FunctionNotFound as error:
            error.param = param
            raise
        revision = await self.latest(function)
        call.function, call.revision = revision.function, revision.id
        engine = revision.runtime.engine
        if engine not in engines:
            use = _USES[engine]
            raise BadRequest(
                f"function {name!r} {use.does}; call {use.route.format(name=name)}",
                param=param,
                details={"engine": engine.value},
            )
        return revision

    async def latest(self, function: Function) -> Revision:
        """The revision that takes the function's traffic."""
        revision_id = function.latest
        revision = self._revisions.get(revision_id)
        if revision is None:
            revision = await self._catalog.revision(revision_id)
            self._revisions[revision_id] = revision
            if len(self._revisions) > self._limit:
                self._revisions.popitem(last=False)
        else:
            self._revisions.move_to_end(revision_id)
        return revision
