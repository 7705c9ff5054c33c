"""Whose turn it is: one generation at a time uses a model's cache; other threads wait."""

import threading

from ppd.errors import BusyError


class Turn:
    """A lock that knows its holder, and that another thread may release (a stream may be closed anywhere)."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._holder: threading.Thread | None = None

    def take(self) -> None:
        """Wait until the model is free.

        Raises:
            BusyError: This thread itself holds an open stream, so that waiting would never end.
        """
        if self._holder is threading.current_thread():
            raise BusyError(
                "this thread holds an open stream of the model; read it to its end or close it before generating again"
            )
        self._lock.acquire()
        self._holder = threading.current_thread()

    def give_back(self) -> None:
        """Let the next generation begin."""
        self._holder = None
        self._lock.release()
