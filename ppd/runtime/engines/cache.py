"""The part of a KV cache that all engines share: when it grows, and which rows a commit moves."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence

from ppd.signature import capacity_for


def moves(rows: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Destination and source, counted from the step's first row, of the accepted rows that are not in place yet.

    Args:
        rows: Accepted rows of the step, ascending, so that none lies before its destination: moved in this order, none
            is overwritten before it is read.
    """
    return ((destination, row) for destination, row in enumerate(rows) if row != destination)


class GrowingCache(ABC):
    """A cache whose capacity follows what it holds, in buckets, because attention's cost does.

    When the capacity changes, the memory is another, and has to be bound again. An engine compares it with what it has
    bound before each step, so that a growth that was interrupted (Ctrl-C) is noticed too.

    Args:
        context: Tokens that prompt and answer may fill; bounds the capacity.

    Attributes:
        capacity: S, in rows.
    """

    def __init__(self, context: int) -> None:
        self._context, self.capacity = context, 0

    def restart(self, num_rows: int, num_kept: int = 0) -> None:
        """Forget all but the first `num_kept` rows; make the capacity the smallest bucket that holds `num_rows`.

        Where the bucket stays, so do old rows: finite, and masked until they are overwritten.
        """
        capacity = capacity_for(num_rows, self._context)
        if capacity != self.capacity:
            self._become(capacity, num_kept)

    def reserve(self, cache_len: int, num_rows: int) -> None:
        """Make room for a step of `num_rows` rows behind `cache_len` committed ones, growing by doubling."""
        needed = cache_len + num_rows
        if needed > self.capacity:
            self._become(capacity_for(needed, self._context), cache_len)

    def commit(self, cache_len: int, rows: Sequence[int]) -> None:
        """Keep the KV of the accepted rows of a step behind `cache_len` committed ones, as `moves` has them."""
        for destination, row in moves(rows):
            self._move(cache_len + destination, cache_len + row)

    def _become(self, capacity: int, num_kept_rows: int) -> None:
        self.capacity = 0  # if this is interrupted or memory is short, the next step or restart does it again
        self._resize(capacity, num_kept_rows)
        self.capacity = capacity

    @abstractmethod
    def _resize(self, capacity: int, num_kept_rows: int) -> None:
        """Take memory of this capacity, zero-filled as masked rows enter attention as 0·V; keep the first rows."""

    @abstractmethod
    def _move(self, destination: int, source: int) -> None:
        """Copy one row over another, in all layers."""
