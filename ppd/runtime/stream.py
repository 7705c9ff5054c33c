"""A generation under way, read piece by piece."""

from collections.abc import Callable, Generator, Iterator
from types import TracebackType

from ppd.errors import PPDError
from ppd.runtime.result import Piece, Result
from ppd.runtime.turn import Turn


class Stream(Iterator[Piece]):
    """Pieces of a generation under way. It holds the model until it is read to its end, closed or dropped.

    Args:
        turn: The model's turn, taken now.
        run: Starts the generation; is given what to call with the result.
    """

    def __init__(self, turn: Turn, run: Callable[[Callable[[Result], None]], Generator[Piece, None, None]]) -> None:
        self._result: Result | None = None
        self._turn: Turn | None = None
        turn.take()
        self._turn = turn
        self._pieces = run(self._report)

    def __next__(self) -> Piece:
        if self._turn is None:
            raise StopIteration
        try:
            return next(self._pieces)
        except BaseException:  # the end, an error, or Ctrl-C: the model is free again
            self.close()
            raise

    def close(self) -> None:
        """Stop here and free the model. Closing twice does no harm."""
        turn, self._turn = self._turn, None
        if turn is not None:
            turn.give_back()

    @property
    def result(self) -> Result:
        """The result, once the stream was read to its end.

        Raises:
            PPDError: It was not.
        """
        if self._result is None:
            raise PPDError("the stream was not read to its end, so it has no result; iterate over it first")
        return self._result

    def _report(self, result: Result) -> None:
        self._result = result

    def __enter__(self) -> "Stream":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()
