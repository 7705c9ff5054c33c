"""The server: one socket, one event loop, one model."""

import asyncio
import logging
import math
import signal
import socket
from collections.abc import Callable
from types import FrameType

import uvicorn

from ppd.errors import ArgumentError
from ppd.host_memory import host_memory
from ppd.memory import kv_bytes_per_row
from ppd.runtime import Model
from ppd.runtime.slots import ExchangesCaches, Slots
from ppd.serve.app import create_app
from ppd.serve.metrics import Metrics
from ppd.serve.protocol import PatientProtocol
from ppd.serve.service import Service
from ppd.serve.settings import KEEP_ALIVE_SECONDS, LOOPBACK, MAX_CONNECTIONS, MAX_HEAD_BYTES, Settings
from ppd.signature import max_capacity

_PART = 0.5
"""Part of the free memory that caches may take."""
_ITEM_BYTES = 4
_LAST_WORDS_SECONDS = 5
"""For clients to hear that their answers were cut, before connections are closed on them."""
_logger = logging.getLogger("ppd.serve")


class _Server(uvicorn.Server):
    """Uvicorn's server, which lets answers finish when it ends, and cuts those that take too long."""

    def __init__(self, config: uvicorn.Config, service: Service) -> None:
        super().__init__(config)
        self._service = service

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """End: no new connections, then no answers under way, then no connections."""
        loop, seconds = asyncio.get_running_loop(), self._service.settings.drain_seconds
        # Closing waits for the step that runs, and that is done beside the event loop.
        timer = loop.call_later(seconds, loop.run_in_executor, None, self._service.worker.close)
        await super().shutdown(sockets)
        timer.cancel()


def bind(settings: Settings) -> socket.socket:
    """The socket to listen on, so that a port that is taken is told before a model is loaded.

    Raises:
        ArgumentError: The address is not this machine's, or taken.
    """
    host, port = settings.host, settings.port
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=MAX_CONNECTIONS)
    except (OSError, OverflowError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ArgumentError(
            f"cannot listen on {host:.80} port {port} ({reason}); give another --host or --port"
        ) from error


def url_of(listener: socket.socket) -> str:
    """Where a browser finds the server."""
    host, port = listener.getsockname()[:2]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


def serve(model: Model, settings: Settings, listener: socket.socket, ready: Callable[[Service], None]) -> None:
    """Answer requests until SIGTERM or Ctrl-C; answers that are under way then are finished, within a time.

    Args:
        listener: As `bind` made it.
        ready: Called when requests are answered from now on.
    """
    metrics = Metrics()
    service = Service(model, Slots(model.session, num_slots(model, settings.slots)), settings, metrics)
    config = uvicorn.Config(
        create_app(service),
        http=PatientProtocol,
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        limit_concurrency=MAX_CONNECTIONS,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=math.ceil(settings.drain_seconds) + _LAST_WORDS_SECONDS,
        h11_max_incomplete_event_size=MAX_HEAD_BYTES,
    )
    logging.getLogger("uvicorn").setLevel(logging.ERROR)
    ready(service)
    before = signal.signal(signal.SIGTERM, _ended)  # uvicorn raises it again when it is done: it is no failure
    try:
        _Server(config, service).run(sockets=[listener])
    finally:
        signal.signal(signal.SIGTERM, before)
        listener.close()


def num_slots(model: Model, wanted: int) -> int:
    """How many conversations to keep: as many as are wanted, if the engine can and the memory is there."""
    if wanted == 1 or not isinstance(model.engine, ExchangesCaches):
        return 1
    manifest = model.bundle.manifest
    each = max_capacity(manifest.context) * kv_bytes_per_row(manifest.model, _ITEM_BYTES)
    host = host_memory()
    found = wanted if host is None else max(1, min(wanted, int(host.available * _PART) // each))
    if found < wanted:
        _logger.warning("memory allows %d slots of %d MB each, %d were asked for", found, each // 10**6, wanted)
    return found


def warning_of(settings: Settings) -> str | None:
    """What whoever starts a server like this should know."""
    if settings.is_loopback or settings.api_key is not None:
        return None
    return (
        f"the server listens on {settings.host}, so that others in the network can use it, and it asks for no API key; "
        f"set one with --api-key-file, or listen on {LOOPBACK[0]}"
    )


def _ended(_: int, __: FrameType | None) -> None:
    """What SIGTERM does once the server has ended."""
