"""What every request passes: the address it was sent to, the page it comes from, headers for browsers, and the key.

What browsers need to let a page of an allowed origin read an answer (CORS) is added between `Guard` and `KeyGuard`:
such a page hears that its key is wrong, and one of another origin hears nothing.
"""

import hmac
from collections.abc import Sequence
from urllib.parse import SplitResult, urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ppd.serve.errors import KEY, ApiError
from ppd.serve.settings import LOOPBACK, Settings
from ppd.serve.wire import json_response

_OPEN = ("/", "/health")
_PAGE = "/page/"
"""What needs no key: the page itself, and whether the server lives."""
_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
}


class Guard:
    """Refuses what was sent to another name or comes from another's page, and adds headers to every answer."""

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self._app, self._settings = app, settings

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """As every ASGI application."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        try:
            self._require(scope)
        except ApiError as error:
            await _refusal(error)(scope, receive, send_guarded)
            return
        await self._app(scope, receive, send_guarded)

    def _require(self, scope: Scope) -> None:
        headers = Headers(scope=scope)
        self._require_host(headers.get("host", ""))
        origin = headers.get("origin")
        if origin is not None and not self._is_own(origin, headers.get("host", "")):
            allowed: Sequence[str] = self._settings.allow_origins
            if "*" not in allowed and origin not in allowed:
                raise ApiError(403, f"pages of {origin[:80]!r} may not ask here; see --allow-origin", code="origin")

    def _require_host(self, host: str) -> None:
        """Refuse a name that a stranger's page has made point here, where only this machine should ask."""
        if self._settings.is_loopback and _name_of(host) not in (*LOOPBACK, self._settings.host):
            raise ApiError(403, f"the host is {host[:80]!r}; expected this machine's loopback address", code="host")

    def _is_own(self, origin: str, host: str) -> bool:
        return _parts_of(origin).netloc.lower() == host.lower() != ""


class KeyGuard:
    """Refuses what has not the key, where one is needed."""

    def __init__(self, app: ASGIApp, key: str) -> None:
        self._app, self._key = app, key.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """As every ASGI application."""
        if scope["type"] == "http" and self._needs_key(scope) and not self._has_key(scope):
            message = "the API key is missing or wrong; send it as Authorization: Bearer KEY"
            error = ApiError(401, message, code="invalid_api_key", kind=KEY, headers={"WWW-Authenticate": "Bearer"})
            await _refusal(error)(scope, receive, send)
            return
        await self._app(scope, receive, send)

    def _needs_key(self, scope: Scope) -> bool:
        path = scope["path"]
        return path not in _OPEN and not path.startswith(_PAGE) and scope["method"] != "OPTIONS"

    def _has_key(self, scope: Scope) -> bool:
        kind, _, given = Headers(scope=scope).get("authorization", "").partition(" ")
        # Both compared, whatever the first says, and in a time that does not tell how much of the key was right.
        return hmac.compare_digest(given.strip().encode(), self._key) and kind.lower() == "bearer"


def _refusal(error: ApiError) -> Response:
    return json_response(error.body, error.status, error.headers)


def _name_of(host: str) -> str:
    """The name or address of a host header, without the port and the brackets of an IPv6 address."""
    return (_parts_of(f"//{host}").hostname or "").lower()


def _parts_of(url: str) -> SplitResult:
    """The parts of a URL; all empty where it is none, as "http://[" is."""
    try:
        return urlsplit(url)
    except ValueError:
        return urlsplit("")
