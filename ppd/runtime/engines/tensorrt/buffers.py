"""The memory of a step's inputs and answers: what the host writes and reads, and where the GPU has it."""

import numpy as np
import numpy.typing as npt

from ppd.manifest import EngineInfo, Manifest
from ppd.runtime.engines.base import Ids
from ppd.runtime.engines.cuda.calls import Cuda, aligned
from ppd.signature import CACHE_LEN, HEAD_ROWS, INPUT_IDS, LOGITS, STATE, TOP_IDS, num_answers

LOGITS_AT_ONCE = 4
"""Rows of logits that are fetched when one is asked for: a wait costs more than a few rows."""
_WORD = np.dtype(np.int64).itemsize


class Buffers:
    """Device addresses of the graph's tensors, and the pinned memory that they are copied from and to.

    The four inputs lie in one block, so that one copy brings them; every tensor is aligned.

    Args:
        shared: Whether the GPU uses pinned memory itself for inputs and best ids. Logits are always copied: an
            integrated GPU does not cache such memory, and looks for the best of each row in them.
    """

    def __init__(
        self, cuda: Cuda, info: EngineInfo, manifest: Manifest, logits_row_bytes: int, *, shared: bool
    ) -> None:
        self.shared = shared
        max_rows = max(info.max_prefill_rows, info.max_decode_rows)
        max_head_rows = max(info.max_prefill_head_rows, info.max_decode_rows)
        sizes = {STATE: 1, CACHE_LEN: 1, INPUT_IDS: max_rows, HEAD_ROWS: max_head_rows}
        self._offsets, end = {}, 0
        for name, size in sizes.items():
            self._offsets[name] = end
            end += aligned(size * _WORD)
        num_ids = num_answers(max_head_rows, manifest.num_guess_heads) * manifest.num_top_ids
        self.host_inputs, self.inputs = self._pair(cuda, end, "a step's inputs")
        top_ids, top_ids_address = self._pair(cuda, num_ids * _WORD, "the best ids")
        self.host_top_ids: Ids = top_ids.view(np.int64)
        self.host_logits = cuda.allocate_pinned(LOGITS_AT_ONCE * logits_row_bytes)
        self.addresses = {name: self.inputs + offset for name, offset in self._offsets.items()}
        self.addresses[TOP_IDS] = top_ids_address
        self.addresses[LOGITS] = cuda.allocate(max_head_rows * logits_row_bytes, f"logits of {max_head_rows} rows")

    def _pair(self, cuda: Cuda, size: int, purpose: str) -> tuple[npt.NDArray[np.uint8], int]:
        """Pinned memory, and where the GPU has it."""
        return cuda.allocate_shared(size) if self.shared else (cuda.allocate_pinned(size), cuda.allocate(size, purpose))

    def write(self, name: str, values: npt.ArrayLike, count: int) -> None:
        """Put an input's values, int64 [count], into pinned memory."""
        start = self._offsets[name]
        self.host_inputs[start : start + count * _WORD].view(np.int64)[:] = values
