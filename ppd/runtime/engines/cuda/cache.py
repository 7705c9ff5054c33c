"""The KV cache in device memory: rows are moved by strided copies over all layers at once."""

from collections.abc import Sequence

from ppd.runtime.engines.cache import GrowingCache, moves
from ppd.runtime.engines.cuda.calls import Cuda, aligned


class DeviceCache:
    """The cache of all layers in one allocation, zero-filled: masked rows still enter attention as 0·V.

    It is `[2L, H, S, D]`; each of the 2L tensors starts at an aligned address.

    Args:
        num_tensors: 2L.
        row_bytes: D times the size of an element.

    Raises:
        EngineError: The GPU does not have enough memory.
    """

    def __init__(self, cuda: Cuda, num_tensors: int, num_kv_heads: int, capacity: int, row_bytes: int) -> None:
        self._cuda, self.capacity, self._row_bytes, self._num_kv_heads = cuda, capacity, row_bytes, num_kv_heads
        self._pitch = capacity * row_bytes  # from a head to the next
        exact = num_kv_heads * self._pitch
        stride = aligned(exact)
        self._base = cuda.allocate(num_tensors * stride, f"a KV cache of {capacity} rows")
        self.addresses = [self._base + i * stride for i in range(num_tensors)]
        # Without padding between the tensors, all heads of all layers are equally far apart: one copy moves a row.
        self._spans = [(self._base, num_tensors * num_kv_heads)]
        if stride != exact:
            self._spans = [(address, num_kv_heads) for address in self.addresses]

    def commit(self, cache_len: int, rows: Sequence[int]) -> None:
        """Keep the accepted rows of a step behind `cache_len` committed ones, as `moves` has them, in stream order."""
        for destination, row in moves(rows):
            self.move(cache_len + destination, cache_len + row)

    def move(self, destination: int, source: int) -> None:
        """Copy one row over another, in all layers."""
        for base, height in self._spans:
            self._cuda.copy_strided(
                base + destination * self._row_bytes,
                self._pitch,
                base + source * self._row_bytes,
                self._pitch,
                self._row_bytes,
                height,
            )

    def write(self, index: int, source: int, cache_len: int, num_rows: int) -> None:
        """Copy a step's own rows `[H, N, D]` at `source` into tensor `index`, behind the committed ones."""
        width = num_rows * self._row_bytes
        destination = self.addresses[index] + cache_len * self._row_bytes
        self._cuda.copy_strided(destination, self._pitch, source, width, width, self._num_kv_heads)

    def copy_from(self, other: "DeviceCache", num_rows: int) -> None:
        """Copy the first rows of a cache of another capacity."""
        width = num_rows * self._row_bytes
        for to, source in zip(self.addresses, other.addresses, strict=True):
            self._cuda.copy_strided(to, self._pitch, source, other._pitch, width, self._num_kv_heads)

    def free(self) -> None:
        """Give the memory back."""
        self._cuda.free(self._base)


class GrowingDeviceCache(GrowingCache):
    """A `DeviceCache` that is replaced by a larger one when it is full.

    Args:
        num_tensors: 2L.
        row_bytes: D times the size of an element.
        context: Tokens that prompt and answer may fill; bounds S.
    """

    def __init__(self, cuda: Cuda, num_tensors: int, num_kv_heads: int, row_bytes: int, context: int) -> None:
        super().__init__(context)
        self._cuda, self._num_tensors, self._num_kv_heads = cuda, num_tensors, num_kv_heads
        self._row_bytes = row_bytes
        self._cache: DeviceCache | None = None

    @property
    def addresses(self) -> list[int]:
        """Addresses of the 2L tensors, another list whenever the memory is another; none before the first restart."""
        return self._cache.addresses if self._cache else []

    def _resize(self, capacity: int, num_kept_rows: int) -> None:
        old = self._cache
        if old is not None and num_kept_rows == 0:
            self._cache = None
            old.free()
            old = None
        new = DeviceCache(self._cuda, self._num_tensors, self._num_kv_heads, capacity, self._row_bytes)
        if old is not None:
            new.copy_from(old, num_kept_rows)
        self._cuda.synchronize()
        self._cache = new
        if old is not None:
            old.free()

    def _move(self, destination: int, source: int) -> None:
        assert self._cache is not None, "restart comes first"
        self._cache.move(destination, source)
