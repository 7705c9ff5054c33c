"""Counts every request by its path and the status of its answer."""

from collections.abc import Collection

from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ppd.serve.metrics import Metrics


class Counting:
    """Counts requests.

    Args:
        routes: Those whose paths are counted by name; others are strangers', and count as one.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics, routes: Collection[Route]) -> None:
        self._app, self._metrics, self._routes = app, metrics, routes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """As every ASGI application."""
        status = 500

        async def send_counted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, send_counted)
        finally:
            if scope["type"] == "http":
                self._metrics.requests.labels(self._name_of(scope["path"]), str(status)).inc()

    def _name_of(self, path: str) -> str:
        return next((route.path_format for route in self._routes if route.path_regex.match(path)), "other")
