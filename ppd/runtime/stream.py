"""A generation under way, read piece by piece."""

import threading
from collections.abc import Generator, Iterator
from types import TracebackType

from ppd.errors import PPDError
from ppd.runtime.result import Piece, Result
from ppd.runtime.turn import Turn


class Stream(Iterator[Piece]):
    """Pieces of a generation under way. It holds the model until it is read to its end, closed or dropped.

    Args:
        turn: The model's turn, taken now.
        pieces: The generation; it has not begun, and returns its result.
    """

    def __init__(self, turn: Turn, pieces: Generator[Piece, None, Result]) -> None:
        self._pieces = pieces
        self._result: Result | None = None
        self._step = threading.RLock()  # one step at a time; closing waits for the step that is running
        self._turn: Turn | None = turn
        try:
            turn.take()
        except BaseException:
            self._turn = None
            raise

    def __next__(self) -> Piece:
        with self._step:
            if self._turn is None:
                raise StopIteration
            try:
                return next(self._pieces)
            except StopIteration as end:
                self._result = end.value
                self.close()
                raise StopIteration from None
            except BaseException:  # an error, or Ctrl-C: the model is free again
                self.close()
                raise

    def close(self) -> None:
        """Stop here and free the model, after the step that may be running. Closing twice does no harm."""
        with self._step:
            if self._turn is not None:
                self._turn.give_back()
                self._turn = None

    @property
    def result(self) -> Result:
        """The result, once the stream was read to its end.

        Raises:
            PPDError: The stream was not read to its end.
        """
        if self._result is None:
            raise PPDError("the stream was not read to its end, so it has no result; iterate over it first")
        return self._result

    def __enter__(self) -> "Stream":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()
