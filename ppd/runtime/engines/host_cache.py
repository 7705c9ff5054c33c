"""The KV cache in host memory: one array, committed by moving the accepted rows to the front of the step."""

import numpy as np
import numpy.typing as npt

from ppd.errors import EngineError
from ppd.runtime.engines.cache import GrowingCache


class KVCache(GrowingCache):
    """The cache of all layers in one array, `[L, 2, H, S, D]`.

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
        super().__init__(context)
        self.array: npt.NDArray[np.floating] = np.zeros((num_layers, 2, num_kv_heads, 0, head_dim), dtype)

    def _resize(self, capacity: int, num_kept_rows: int) -> None:
        num_layers, two, heads, _, head_dim = self.array.shape
        try:
            array = np.zeros((num_layers, two, heads, capacity, head_dim), self.array.dtype)
        except MemoryError as error:
            raise EngineError(
                f"no memory for a KV cache of {capacity} rows; give a shorter prompt, or a smaller --context at export"
            ) from error
        array[:, :, :, :num_kept_rows] = self.array[:, :, :, :num_kept_rows]
        self.array = array

    def _move(self, destination: int, source: int) -> None:
        self.array[:, :, :, destination] = self.array[:, :, :, source]
