"""The memory of a step's inputs and answers: what the host writes and reads, and where the GPU has it."""

import numpy as np
import numpy.typing as npt

from ppd.manifest import Manifest
from ppd.runtime.engines.base import Ids
from ppd.runtime.engines.cuda.calls import Cuda, aligned
from ppd.signature import CACHE_LEN, HEAD_ROWS, INPUT_IDS, STATE, TOP_IDS, num_answers

_WORD = np.dtype(np.int64).itemsize
LOGITS_AT_ONCE = 4


class Buffers:
    """Device addresses of the graph's inputs and best ids, and the pinned memory that they are copied from and to.

    The four inputs lie in one block, so that one copy brings them; every tensor is aligned.

    Args:
        max_rows: Rows of the largest step.
        max_head_rows: Of them, the most that go through the LM head.
        shared: Whether the GPU uses the pinned memory itself.
    """

    def __init__(self, cuda: Cuda, manifest: Manifest, max_rows: int, max_head_rows: int, *, shared: bool) -> None:
        self._cuda, self._shared = cuda, shared
        self._num_top_ids, self._num_guess_heads = manifest.num_top_ids, manifest.num_guess_heads
        sizes = {STATE: 1, CACHE_LEN: 1, INPUT_IDS: max_rows, HEAD_ROWS: max_head_rows}
        self._offsets, end = {}, 0
        for name, size in sizes.items():
            self._offsets[name] = end
            end += aligned(size * _WORD)
        num_ids = num_answers(max_head_rows, self._num_guess_heads) * self._num_top_ids
        self._host_inputs, self._inputs = self._pair(end, "a step's inputs")
        top_ids, self._top_ids = self._pair(num_ids * _WORD, "the best ids")
        self._host_top_ids: Ids = top_ids.view(np.int64)
        self.addresses = {name: self._inputs + offset for name, offset in self._offsets.items()}
        self.addresses[TOP_IDS] = self._top_ids

    def write(self, input_ids: Ids, state: int, cache_len: int, head_rows: Ids) -> None:
        """Put a step's inputs, as `Engine.run` takes them, into pinned memory."""
        self._write(INPUT_IDS, input_ids, len(input_ids))
        self._write(HEAD_ROWS, head_rows, len(head_rows))
        self._write(STATE, state, 1)
        self._write(CACHE_LEN, cache_len, 1)

    def send(self) -> None:
        """Copy the inputs to the GPU, in the order of the stream."""
        if not self._shared:
            self._cuda.copy_to_device(self._inputs, self._host_inputs)

    def fetch(self, num_head_rows: int) -> None:
        """Copy the best ids from the GPU, in the order of the stream."""
        if not self._shared:
            self._cuda.copy_to_host(self.top_ids(num_head_rows).reshape(-1), self._top_ids)

    def top_ids(self, num_head_rows: int) -> Ids:
        """Where the best ids of a step arrive: int64 [R, K], with guess heads [R·(1+m), K]."""
        num_answered = num_answers(num_head_rows, self._num_guess_heads)
        return self._host_top_ids[: num_answered * self._num_top_ids].reshape(num_answered, self._num_top_ids)

    def _pair(self, size: int, purpose: str) -> tuple[npt.NDArray[np.uint8], int]:
        """Pinned memory, and where the GPU has it."""
        if self._shared:
            return self._cuda.allocate_shared(size)
        return self._cuda.allocate_pinned(size), self._cuda.allocate(size, purpose)

    def _write(self, name: str, values: npt.ArrayLike, count: int) -> None:
        start = self._offsets[name]
        self._host_inputs[start : start + count * _WORD].view(np.int64)[:] = values


class LogitRows:
    """Brings rows of a step's logits to the host when one is asked for, a few at once: a wait costs more than a row.

    Rows are ordered depth first, siblings by rank, so the likeliest path goes on with the next row.

    Args:
        row_bytes: Size of a row.
    """

    def __init__(self, cuda: Cuda, row_bytes: int) -> None:
        self._cuda, self._row_bytes = cuda, row_bytes
        self._host = cuda.allocate_pinned(LOGITS_AT_ONCE * row_bytes)
        self._address, self._num_rows, self._fetched = 0, 0, range(0)

    def are_at(self, address: int, num_rows: int) -> None:
        """Say where the rows of the step that runs now will be."""
        self._address, self._num_rows, self._fetched = address, num_rows, range(0)

    def row(self, index: int) -> npt.NDArray[np.uint8]:
        """The bytes of a row, until the next is asked for."""
        size = self._row_bytes
        if index not in self._fetched:
            self._fetched = range(0)
            rows = range(index, min(index + LOGITS_AT_ONCE, self._num_rows))
            self._cuda.copy_to_host(self._host[: len(rows) * size], self._address + index * size)
            self._cuda.synchronize()
            self._fetched = rows
        place = index - self._fetched.start
        return self._host[place * size : (place + 1) * size]
