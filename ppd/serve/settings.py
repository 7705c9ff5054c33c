"""What a server is started with, and the limits that it keeps."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ppd.arguments import number, whole
from ppd.errors import ArgumentError
from ppd.runtime.options import Draft

MIB = 1 << 20
HEAD_SECONDS = 15.0
"""From the opening of a connection, or the first byte of a further request, to the end of the request's head."""
BODY_SECONDS = 30.0
"""From the end of the head to the end of the body."""
KEEP_ALIVE_SECONDS = 15
SEND_SECONDS = 60.0
"""How long a client may take nothing of what is sent to it."""
PING_SECONDS = 15
"""A stream that has nothing to say sends a comment this often, so that neither end takes the other for dead."""
MAX_HEAD_BYTES = 32 << 10
MAX_CONNECTIONS = 256
LOOPBACK = ("127.0.0.1", "::1", "localhost")


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What `ppd serve` takes besides the bundle.

    Attributes:
        host: Where to listen: an address of this machine.
        port: 0 for any that is free.
        name: The model's name for clients; the bundle's folder by default.
        api_key: What clients have to send as a bearer token; None for nothing.
        allow_origins: Web pages of other origins that may ask, such as "https://example.org"; "*" for all.
        slots: Conversations whose caches are kept, if the engine can and memory allows it.
        queue: Requests that may wait; a further one is refused.
        wait_seconds: How long a request waits for its turn at most.
        drain_seconds: How long answers may take to finish after SIGTERM.
        max_new_tokens: Tokens of an answer at most; None for as many as fit the context.
        max_body: MiB of a request at most; 64 at most, which is what is parsed.
        draft: As in `ppd.runtime.Options`, for requests that do not say.

    Raises:
        ArgumentError: A value is not allowed.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    name: str | None = None
    api_key: str | None = None
    allow_origins: Sequence[str] = ()
    slots: int = 4
    queue: int = 64
    wait_seconds: float = 60.0
    drain_seconds: float = 30.0
    max_new_tokens: int | None = None
    max_body: int = 4
    draft: Draft = "auto"

    def __post_init__(self) -> None:
        ranges = {"port": (0, 65535), "slots": (1, 1024), "queue": (1, 4096), "max_body": (1, 64)}
        if self.max_new_tokens is not None:
            ranges["max_new_tokens"] = (1, 1 << 24)
        for field, (low, high) in ranges.items():
            found = whole(getattr(self, field))
            _require(found is not None and low <= found <= high, field, getattr(self, field), f"{low} to {high}")
        for field in ("wait_seconds", "drain_seconds"):
            seconds = number(getattr(self, field))
            fine = seconds is not None and 0 < seconds <= 86400
            _require(fine, field, getattr(self, field), "a number above 0 and at most 86400")
        _require(self.name is None or self.name.isprintable(), "name", self.name, "a word that can be printed")
        key = self.api_key
        fine = key is None or (key.isascii() and key.isprintable() and key == key.strip() != "")
        _require(fine, "api_key", "…", "ASCII, not empty, and no spaces at its ends")
        for origin in self.allow_origins:
            fine = origin == "*" or (origin.startswith(("http://", "https://")) and not origin.endswith("/"))
            _require(fine, "allow_origins", origin, "* or an origin such as https://example.org")

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine reaches the server."""
        return self.host in LOOPBACK or self.host.startswith("127.")


def _require(holds: bool, name: str, value: Any, expected: str) -> None:
    if not holds:
        raise ArgumentError(f"{name} is {value!r:.80}; expected {expected}")
