"""OpenAI's endpoints: parse, resolve, invoke, answer in its words."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from starlette.requests import Request
from starlette.responses import Response

from stoker.domain import Function, Revision
from stoker.gateway.call import Call, call_of
from stoker.gateway.disconnect import unless_left
from stoker.gateway.encoding import json_response
from stoker.gateway.events import HOLD_S, PING_S, EventStream
from stoker.gateway.exchange import Embed
from stoker.gateway.invoke import Invoker
from stoker.gateway.openai import chat, completions, embeddings
from stoker.gateway.openai.text import Dialect, DrawSeed, Json, TextAnswer
from stoker.gateway.parsing import parse, read_json, startup_timeout_s
from stoker.gateway.resolve import EMBEDDING, MODELS, TEXT, Resolver
from stoker.gateway.schema import (
    ChatRequest,
    CompletionRequest,
    EmbeddingsRequest,
    TextRequest,
)
from stoker.store.catalog import Catalog
from stoker_runtime.contract import GenerateRequest


@dataclass(frozen=True, slots=True)
class OpenAI:
    """The endpoints under /v1 that an `openai` client calls. `now` gives Unix seconds."""

    catalog: Catalog
    resolver: Resolver
    invoker: Invoker
    now: Callable[[], float]
    draw_seed: DrawSeed
    hold_s: float = HOLD_S
    ping_s: float = PING_S

    async def chat_completions(self, request: Request) -> Response:
        body = parse(ChatRequest, await read_json(request))
        revision = await self.resolver.resolve(call_of(request), body.model, TEXT)
        return await self.chat(request, revision, body)

    async def completions(self, request: Request) -> Response:
        body = parse(CompletionRequest, await read_json(request))
        revision = await self.resolver.resolve(call_of(request), body.model, TEXT)
        return await self.complete(request, revision, body)

    async def embeddings(self, request: Request) -> Response:
        body = parse(EmbeddingsRequest, await read_json(request))
        revision = await self.resolver.resolve(call_of(request), body.model, EMBEDDING)
        return await self.embed(request, revision, body)

    async def models(self, request: Request) -> Response:  # noqa: ARG002
        """Every deployed function that serves a model, also the cold ones."""
        listed = [
            _model(function)
            for function in await self.catalog.functions()
            if (await self.resolver.latest(function)).runtime.engine in MODELS
        ]
        return json_response({"object": "list", "data": listed})

    async def model(self, request: Request) -> Response:
        name = request.path_params["id"]
        await self.resolver.resolve(call_of(request), name, MODELS)
        return json_response(_model(await self.catalog.function(name)))

    # --- with the function known ------------------------------------------------------------

    async def chat(self, request: Request, revision: Revision, body: ChatRequest) -> Response:
        call = call_of(request)
        generate = chat.to_generate(body, call.request_id, self.draw_seed)
        dialect = chat.ChatDialect(logprobs=bool(body.logprobs))
        return await self._text(request, revision, body, generate, dialect)

    async def complete(
        self, request: Request, revision: Revision, body: CompletionRequest
    ) -> Response:
        call = call_of(request)
        generate = completions.to_generate(body, call.request_id, self.draw_seed)
        dialect = completions.CompletionDialect(logprobs=body.logprobs is not None)
        return await self._text(request, revision, body, generate, dialect)

    async def embed(
        self, request: Request, revision: Revision, body: EmbeddingsRequest
    ) -> Response:
        call = call_of(request)
        exchange = Embed(embeddings.to_embed(body, call.request_id))
        timeout_s = startup_timeout_s(request)
        answer = await unless_left(
            request.receive, self._embedded(call, revision, body, exchange, timeout_s)
        )
        return json_response(answer)

    async def _embedded(
        self,
        call: Call,
        revision: Revision,
        body: EmbeddingsRequest,
        exchange: Embed,
        timeout_s: float | None,
    ) -> Json:
        async with self.invoker.answer(call, revision, exchange, timeout_s) as answer:
            responses = [response async for batch in answer for response in batch]
        metrics = self.invoker.metrics
        metrics.tokens(revision.function, prompt=exchange.prompt_tokens, completion=0)
        return embeddings.to_answer(responses[0], model=body.model, encoding=body.encoding_format)

    async def _text(
        self,
        request: Request,
        revision: Revision,
        body: TextRequest,
        generate: GenerateRequest,
        dialect: Dialect,
    ) -> Response:
        call = call_of(request)
        text = TextAnswer(
            invoker=self.invoker,
            call=call,
            revision=revision,
            request=generate,
            dialect=dialect,
            model=body.model,
            created=int(self.now()),
            include_usage=body.include_usage,
            timeout_s=startup_timeout_s(request),
        )
        if body.stream:
            return EventStream(call, text.stream, hold_s=self.hold_s, ping_s=self.ping_s)
        return json_response(await unless_left(request.receive, text.collect()))


def _model(function: Function) -> Json:
    return {
        "id": function.name,
        "object": "model",
        "created": int(function.created_at),
        "owned_by": "stoker",
    }
