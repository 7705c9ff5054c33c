"""Whose turn it is: one generation at a time uses a model's cache; other threads wait."""

import threading

from ppd.errors import BusyError


class Turn:
    """A lock that knows its holder, and that another thread may give back (a stream may be closed anywhere)."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._holder: threading.Thread | None = None

    def take(self) -> None:
        """Wait until the model is free. Interrupted, the turn is not taken.

        Raises:
            BusyError: This thread itself holds an open stream, so that waiting would never end.
        """
        thread = threading.current_thread()
        if self._holder is thread:
            raise BusyError(
                "this thread holds an open stream of the model; read it to its end or close it before generating again"
            )
        try:
            with self._changed:
                while self._holder is not None:
                    self._changed.wait()
                self._holder = thread
        except BaseException:
            if self._holder is thread:
                self.give_back()
            raise

    def give_back(self) -> None:
        """Let the next generation begin."""
        with self._changed:
            self._holder = None
            self._changed.notify()

    def __enter__(self) -> None:
        self.take()

    def __exit__(self, *_: object) -> None:
        self.give_back()
