"""Bodies in and out: JSON within limits, and server-sent events."""

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from types import MappingProxyType
from typing import Any

from sse_starlette import EventSourceResponse, ServerSentEvent
from sse_starlette.sse import AppStatus
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from ppd.json_files import parse
from ppd.serve.errors import ApiError
from ppd.serve.settings import BODY_SECONDS, MIB, PING_SECONDS

_THROWN_AWAY = 128 * MIB
"""How much of a body that is too large is read to its end, so that the client hears why it is refused."""
AppStatus.enable_automatic_graceful_drain = False  # SIGTERM lets answers finish; it does not cut them


def json_response(body: Any, status: int = 200, headers: Mapping[str, str] = MappingProxyType({})) -> Response:
    """JSON in ASCII, which holds any text, half a surrogate pair too."""
    return Response(json.dumps(body), status, dict(headers), "application/json")


def event_stream(chunks: AsyncIterator[dict[str, Any]]) -> Response:
    """Chunks as server-sent events, as OpenAI's interface has them."""

    async def events() -> AsyncIterator[ServerSentEvent]:
        is_whole = True
        async for chunk in chunks:
            is_whole = "error" not in chunk
            yield ServerSentEvent(json.dumps(chunk), sep="\n")
        if is_whole:
            yield ServerSentEvent("[DONE]", sep="\n")

    return EventSourceResponse(events(), ping=PING_SECONDS, sep="\n")


async def read_json(request: Request, max_bytes: int) -> Any:
    """The JSON of a request's body.

    Raises:
        ApiError: It is too large, too slow, or no JSON.
        ClientDisconnect: The client went away.
    """
    try:
        content = await asyncio.wait_for(_read(request, max_bytes), BODY_SECONDS)
    except asyncio.TimeoutError:
        message = f"the body did not come within {BODY_SECONDS:.0f} s"
        raise ApiError(408, message, code="timeout", headers={"Connection": "close"}) from None
    if len(content) > max_bytes:
        message = f"the body has more than {max_bytes // MIB} MiB, which is the limit (--max-body)"
        raise ApiError(413, message, code="body_too_large", headers={"Connection": "close"})
    try:
        return parse(content)
    except ValueError as error:
        raise ApiError(
            400, f"the body is not JSON ({error!s:.200}); expected an object", code="invalid_json"
        ) from error


async def _read(request: Request, max_bytes: int) -> bytes:
    """The body; of one that is too large, what goes beyond the limit is thrown away."""
    content, size = bytearray(), 0
    async for chunk in request.stream():
        size += len(chunk)
        content += chunk[: max(0, max_bytes + 1 - len(content))]
        if size > _THROWN_AWAY:
            break
    return bytes(content)


async def until_gone(request: Request) -> None:
    """Return when the client has gone away. The body has to be read already."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


__all__ = ["ClientDisconnect", "event_stream", "json_response", "read_json", "until_gone"]
