"""Counts every request by its path and the status of its answer."""

from collections.abc import Collection

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ppd.serve.metrics import Metrics


class Counting:
    """Counts requests.

    Args:
        paths: Those that are counted by name; others are strangers', and count as one.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics, paths: Collection[str]) -> None:
        self._app, self._metrics, self._paths = app, metrics, paths

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
                path = scope["path"] if scope["path"] in self._paths else "other"
                self._metrics.requests.labels(path, str(status)).inc()
