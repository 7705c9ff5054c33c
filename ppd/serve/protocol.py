"""HTTP as uvicorn speaks it, and neither a client that says nothing nor one that takes nothing is waited for for ever.

A connection that does not finish its request's head is closed; one that takes nothing of what is sent to it is cut,
since closing would wait for it to take the rest.
"""

import asyncio
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

from ppd.serve.settings import HEAD_SECONDS, SEND_SECONDS


class PatientProtocol(H11Protocol):
    """Waits for its client, but not for ever."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._deadline: asyncio.TimerHandle | None = None
        self._cut: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        """A connection was opened; its first request is due."""
        super().connection_made(transport)
        transport.set_write_buffer_limits(high=0)  # writing pauses where anything is left that the client did not take
        self._expect_head()

    def data_received(self, data: bytes) -> None:
        """Bytes came: of a head, or of a body, which has a time limit of its own."""
        super().data_received(data)
        if self._has_request:
            self._forget_deadline()
        elif self._deadline is None:
            self._expect_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection is closed."""
        self._forget_deadline()
        self._forget_cut()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        """The client does not take what is sent to it."""
        super().pause_writing()
        self._expect_taking()

    def resume_writing(self) -> None:
        """The client has taken everything."""
        self._forget_cut()
        super().resume_writing()

    @property
    def _has_request(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _expect_head(self) -> None:
        self._deadline = self.loop.call_later(HEAD_SECONDS, self._close_idle)

    def _close_idle(self) -> None:
        self._deadline = None
        if not self._has_request and not self.transport.is_closing():
            self.transport.close()

    def _expect_taking(self) -> None:
        self._cut = self.loop.call_later(SEND_SECONDS, self._cut_unless_less, self.transport.get_write_buffer_size())

    def _cut_unless_less(self, before: int) -> None:
        if self.transport.get_write_buffer_size() < before:
            self._expect_taking()
        else:
            self.transport.abort()

    def _forget_cut(self) -> None:
        if self._cut is not None:
            self._cut.cancel()
            self._cut = None

    def _forget_deadline(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
