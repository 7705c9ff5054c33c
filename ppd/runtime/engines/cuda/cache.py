"""The KV cache in device memory: rows are moved by strided copies over all layers at once."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from ppd.runtime.engines.cache import moves
from ppd.runtime.engines.cuda.calls import Cuda, aligned


@dataclass(frozen=True, slots=True)
class _Layout:
    """Where the rows lie for one S.

    Attributes:
        pitch: Bytes from a head to the next.
        addresses: Of the 2L tensors.
        spans: Address and number of heads of runs of heads that are equally far apart. Without padding between the
            tensors that is one: one copy moves a row in all layers.
        pending: Copies that bring the rows here from the last layout, the next one last: destination, source, bytes.
    """

    capacity: int
    pitch: int
    addresses: list[int]
    spans: list[tuple[int, int]]
    num_heads: int
    pending: list[tuple[int, int, int]] = field(default_factory=list)

    def heads(self) -> list[int]:
        """Addresses of all heads of all tensors."""
        return [address + i * self.pitch for address in self.addresses for i in range(self.num_heads)]


class DeviceCache:
    """The cache of all layers in one allocation, zero-filled: masked rows still enter attention as 0·V.

    It is `[2L, H, S, D]`; each of the 2L tensors starts at an aligned address. S may become
    smaller, and large again, in the same memory.

    Args:
        num_tensors: 2L.
        capacity: The largest S.
        row_bytes: D times the size of an element.

    Raises:
        EngineError: The GPU does not have enough memory.
    """

    def __init__(self, cuda: Cuda, num_tensors: int, num_kv_heads: int, capacity: int, row_bytes: int) -> None:
        self._cuda, self._num_tensors, self._num_kv_heads = cuda, num_tensors, num_kv_heads
        self._row_bytes = row_bytes
        size = num_tensors * aligned(num_kv_heads * capacity * row_bytes)
        self._base = cuda.allocate(size, f"a KV cache of {capacity} rows")
        self._layout = self._layout_for(capacity)

    @property
    def capacity(self) -> int:
        """S, in rows."""
        return self._layout.capacity

    @property
    def addresses(self) -> list[int]:
        """Addresses of the 2L tensors, another list whenever S is another."""
        return self._layout.addresses

    def commit(self, cache_len: int, rows: Sequence[int]) -> None:
        """Keep the accepted rows of a step behind `cache_len` committed ones, as `moves` has them, in stream order."""
        for destination, row in moves(rows):
            self.move(cache_len + destination, cache_len + row)

    def move(self, destination: int, source: int) -> None:
        """Copy one row over another, in all layers."""
        pitch, row_bytes = self._layout.pitch, self._row_bytes
        for base, height in self._layout.spans:
            self._cuda.copy_strided(
                base + destination * row_bytes, pitch, base + source * row_bytes, pitch, row_bytes, height
            )

    def write(self, source: int, stride: int, cache_len: int, num_rows: int) -> None:
        """Copy a step's own rows behind the committed ones: `[H, N, D]` of every tensor, each `stride` bytes on."""
        width, layout = num_rows * self._row_bytes, self._layout
        spans = layout.spans
        if len(spans) == 1 and stride != width * self._num_kv_heads:
            spans = [(address, self._num_kv_heads) for address in layout.addresses]
        for index, (base, height) in enumerate(spans):
            destination = base + cache_len * self._row_bytes
            self._cuda.copy_strided(destination, layout.pitch, source + index * stride, width, width, height)

    def resize(self, capacity: int, num_kept: int) -> None:
        """Make S another, at most the first; keep the first rows. The others stay what they are: finite, and masked."""
        self._finish()
        if capacity == self.capacity:
            return
        to, source = self._layout_for(capacity), self._layout
        pairs = zip(to.heads(), source.heads(), strict=True)
        to.pending.extend(move for pair in pairs for move in _pieces(*pair, num_kept * self._row_bytes))
        if to.pitch < source.pitch:  # every move goes to where nothing lies any more that has to move
            to.pending.reverse()
        self._layout = to
        self._finish()

    def _finish(self) -> None:
        """Do the pending copies, in the order of the stream. After Ctrl-C the next call goes on with them."""
        pending = self._layout.pending
        while pending:
            destination, source, size = pending[-1]
            self._cuda.copy_strided(destination, size, source, size, size, 1)
            pending.pop()

    def _layout_for(self, capacity: int) -> _Layout:
        pitch = capacity * self._row_bytes
        exact = self._num_kv_heads * pitch
        stride = aligned(exact)
        addresses = [self._base + i * stride for i in range(self._num_tensors)]
        spans = [(self._base, self._num_tensors * self._num_kv_heads)]
        if stride != exact:
            spans = [(address, self._num_kv_heads) for address in addresses]
        return _Layout(capacity, pitch, addresses, spans, self._num_kv_heads)


def _pieces(to: int, source: int, size: int) -> Iterator[tuple[int, int, int]]:
    """Copies of `size` bytes, cut so that no copy overwrites what it has yet to read."""
    step = abs(to - source)
    if step:
        for start in range(0, size, step):
            yield to + start, source + start, min(step, size - start)
