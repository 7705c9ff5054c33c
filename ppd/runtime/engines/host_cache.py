"""The KV cache in host memory: one array, committed by moving the accepted rows to the front of the step."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from ppd.errors import EngineError
from ppd.signature import capacity_for


class KVCache:
    """The cache of all layers, `[L, 2, H, S, D]`, zero-filled: masked rows still enter attention as 0·V.

    Args:
        num_layers: L.
        num_kv_heads: H.
        head_dim: D.
        context: Tokens that prompt and answer may fill; bounds S.
        dtype: Of the graph's KV tensors.
    """

    def __init__(
        self, num_layers: int, num_kv_heads: int, head_dim: int, context: int, dtype: npt.DTypeLike = np.float32
    ) -> None:
        self._context = context
        self.array: npt.NDArray[np.floating] = np.zeros((num_layers, 2, num_kv_heads, 0, head_dim), dtype)

    @property
    def capacity(self) -> int:
        """S, in rows."""
        return self.array.shape[3]

    def restart(self, num_rows: int) -> bool:
        """Forget everything; make the capacity the smallest bucket that holds `num_rows`.

        Returns:
            Whether the array is another one now, so that it has to be bound again.
        """
        capacity = capacity_for(num_rows, self._context)
        if capacity == self.capacity:
            return False  # old rows stay: finite, and masked until they are overwritten
        self.array = self._allocate(capacity)
        return True

    def reserve(self, cache_len: int, num_rows: int) -> bool:
        """Make room for a step of `num_rows` rows behind `cache_len` committed ones, growing by doubling.

        Returns:
            Whether the array is another one now, so that it has to be bound again.
        """
        if cache_len + num_rows <= self.capacity:
            return False
        grown = self._allocate(capacity_for(cache_len + num_rows, self._context))
        grown[:, :, :, :cache_len] = self.array[:, :, :, :cache_len]
        self.array = grown
        return True

    def commit(self, cache_len: int, rows: Sequence[int]) -> None:
        """Keep the KV of the accepted rows of a step.

        Args:
            cache_len: Committed rows before the step.
            rows: Accepted rows of the step, ascending, so that none lies before its destination: they are moved in
                order, without scratch memory, and rows already in place are not touched.
        """
        for destination, row in enumerate(rows):
            if row != destination:
                self.array[:, :, :, cache_len + destination] = self.array[:, :, :, cache_len + row]

    def _allocate(self, capacity: int) -> npt.NDArray[np.floating]:
        num_layers, two, heads, _, head_dim = self.array.shape
        try:
            return np.zeros((num_layers, two, heads, capacity, head_dim), self.array.dtype)
        except MemoryError as error:
            raise EngineError(
                f"no memory for a KV cache of {capacity} rows; give a shorter prompt, or a smaller --context at export"
            ) from error
