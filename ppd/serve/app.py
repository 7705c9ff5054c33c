"""The application: paths, and what answers there."""

import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from ppd.errors import ArgumentError, TokenizerError
from ppd.runtime import Model
from ppd.runtime.options import SOURCES, Source
from ppd.serve.counting import Counting
from ppd.serve.errors import ApiError, from_error
from ppd.serve.guard import Guard, KeyGuard
from ppd.serve.page import page_routes
from ppd.serve.service import Answering, Service
from ppd.serve.settings import MIB
from ppd.serve.wire import ClientDisconnect, event_stream, json_response, read_json, until_gone
from ppd.serve.worker import GoneError

_CLOSED = 499
"""Status of an answer that nobody waits for, as nginx has it; it is counted, and sent to nobody."""


def create_app(service: Service) -> Starlette:
    """The application that serves a model."""
    settings, started = service.settings, int(time.time())
    cors = Middleware(
        CORSMiddleware,
        allow_origins=list(settings.allow_origins),
        allow_methods=["GET", "POST"],
        allow_headers=["authorization", "content-type"],
    )

    async def health(_: Request) -> Response:
        worker = service.worker
        return json_response({"status": "ok", "model": service.name, "waiting": worker.num_waiting})

    async def metrics(_: Request) -> Response:
        return Response(service.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    async def models(request: Request) -> Response:
        found = _model_object(service, started)
        if "name" not in request.path_params:
            return json_response({"object": "list", "data": [found]})
        _require_name(service, request.path_params["name"])
        return json_response(found)

    routes = [
        Route("/v1/chat/completions", partial(_complete, service, is_chat=True), methods=["POST"]),
        Route("/v1/completions", partial(_complete, service, is_chat=False), methods=["POST"]),
        Route("/v1/models", models),
        Route("/v1/models/{name:path}", models),
        Route("/health", health),
        Route("/metrics", metrics),
        *page_routes(),
    ]
    middleware = [
        Middleware(Counting, metrics=service.metrics, routes=routes),
        Middleware(Guard, settings=settings),
        *[cors] * bool(settings.allow_origins),
        *([] if settings.api_key is None else [Middleware(KeyGuard, key=settings.api_key)]),
    ]
    handlers: Any = {HTTPException: _http_error, Exception: _error, ApiError: _error}
    return Starlette(routes=routes, middleware=middleware, exception_handlers=handlers, lifespan=_lifespan(service))


def _lifespan(service: Service) -> Callable[[Starlette], Any]:
    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        service.worker.start()
        try:
            yield
        finally:
            service.close()

    return lifespan


async def _complete(service: Service, request: Request, *, is_chat: bool) -> Response:
    """A completion, whole or as a stream."""
    gone = partial(until_gone, request)
    try:
        body = await read_json(request, service.settings.max_body * MIB)
        ask = service.read(body, is_chat=is_chat)
        _require_name(service, body.get("model"))
        async with AsyncExitStack() as stack:
            answering = await stack.enter_async_context(service.answering(ask, gone))
            if not ask.stream:
                return json_response(await answering.whole(gone))
            # The stream outlives this function, and stops the answer when it ends or is left.
            return event_stream(_chunks(answering, stack.pop_all().aclose))
    except (GoneError, ClientDisconnect):
        return Response(status_code=_CLOSED)


async def _chunks(answering: Answering, close: Callable[[], Awaitable[None]]) -> AsyncIterator[dict[str, Any]]:
    try:
        async for chunk in answering.chunks():
            yield chunk
    finally:
        await close()


def _require_name(service: Service, name: Any) -> None:
    if name is None:
        message = f"model is missing; expected the name of this server's model, {service.name!r}"
        raise ApiError(400, message, param="model", code="missing_value")
    if name != service.name:
        message = f"no model is called {name!r:.80}; this server has {service.name!r}"
        raise ApiError(404, message, param="model", code="model_not_found")


def _model_object(service: Service, started: int) -> dict[str, Any]:
    """The model as OpenAI's interface lists it, and what the page wants to know."""
    model = service.model
    manifest = model.bundle.manifest
    told = {
        "context": manifest.context,
        "precision": manifest.precision,
        "engine": model.engine.name,
        "sources": sorted(model.sources(service.settings.draft)),
        "can_draft_from": [source for source in SOURCES if _can_draft_from(model, source)],
        "chat": _chats(model),
        "max_new_tokens": service.max_new_tokens,
    }
    return {"id": service.name, "object": "model", "created": started, "owned_by": "ppd", "ppd": told}


def _chats(model: Model) -> bool:
    try:
        model.require_chat()
    except TokenizerError:
        return False
    return True


def _can_draft_from(model: Model, source: Source) -> bool:
    try:
        return bool(model.sources(source))
    except ArgumentError:
        return False


async def _error(_: Request, error: Exception) -> Response:
    found = from_error(error)
    return json_response(found.body, found.status, found.headers)


async def _http_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException), "it is registered for no other"
    found = ApiError(error.status_code, error.detail, code=error.detail.lower().replace(" ", "_"))
    return json_response(found.body, error.status_code, error.headers or {})
