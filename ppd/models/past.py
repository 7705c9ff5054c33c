"""Past: the keys and values that a pass finds, and what becomes of its rows' own.

The decoder asks its past for the columns that a layer's rows attend to, and knows nothing else of caches: the exported
graph's cache that is written in place, one that grows, a prefix that many rows share, or none.
"""

from typing import Protocol

import torch
from torch import Tensor

from ppd.models.operators import kv_write


class Past(Protocol):
    """What the layers of one pass call, each once, in order."""

    def extend(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Take the rows' own keys (rotated) and values; give the columns that they attend to.

        Args:
            layer: Counted from 0.
            k: [B, H, N, D].
            v: [B, H, N, D].

        Returns:
            Keys and values, each [B, H, columns, D]; the mask of the pass says which row sees which column.
        """


class NoPast:
    """The columns are the rows themselves."""

    def extend(self, _layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """As `Past.extend`."""
        return k, v


class GraphCache:
    """The cache of the exported graph: the columns are all its rows, the new ones written behind the committed.

    Args:
        kv: `[k_0, v_0, k_1, …]`, each [1, H, S, D].
        cache_len: int64 [1], committed rows.

    Attributes:
        written: The caches after the pass, in the order of `kv`.
    """

    def __init__(self, kv: list[Tensor], cache_len: Tensor) -> None:
        self._kv, self._cache_len = kv, cache_len
        self.written: list[Tensor] = []

    def extend(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """As `Past.extend`."""
        k = kv_write(self._kv[2 * layer], k, self._cache_len)
        v = kv_write(self._kv[2 * layer + 1], v, self._cache_len)
        self.written += [k, v]
        return k, v


class GrowingCache:
    """Keeps the rows of every pass behind those of the passes before; the columns are all of them.

    Args:
        num_rows: Maximum number of rows.
    """

    def __init__(self, num_rows: int) -> None:
        self._num_rows = num_rows
        self._kv: list[tuple[Tensor, Tensor]] = []
        self._filled: list[int] = []

    def extend(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """As `Past.extend`."""
        if layer == len(self._kv):
            shape = (*k.shape[:2], self._num_rows, k.shape[3])
            self._kv.append((k.new_empty(shape), v.new_empty(shape)))
            self._filled.append(0)
        start, self._filled[layer] = self._filled[layer], self._filled[layer] + k.shape[2]
        for kept, new in zip(self._kv[layer], (k, v), strict=True):
            kept[:, :, start : self._filled[layer]] = new
        return self.rows(layer)

    def repeat(self, count: int) -> None:
        """Let `count` sequences go on from the rows of the only one so far."""
        self._kv = [(_repeated(k, count), _repeated(v, count)) for k, v in self._kv]

    def keep(self, index: Tensor) -> None:
        """Go on with some of the sequences.

        Args:
            index: int64 [kept], which one takes each place; only those that move are copied.
        """
        places = torch.arange(len(index), device=index.device)
        moved = places[index != places]
        taken = index[moved]
        for (k, v), filled in zip(self._kv, self._filled, strict=True):
            to, came_from = moved.to(k.device), taken.to(k.device)  # layers may lie on several devices
            for kept in (k, v):
                kept[to, :, :filled] = kept[came_from, :, :filled]
        self._kv = [(k[: len(index)], v[: len(index)]) for k, v in self._kv]

    def rows(self, layer: int) -> tuple[Tensor, Tensor]:
        """Keys and values of a layer so far, [B, H, rows, D]."""
        k, v = self._kv[layer]
        return k[:, :, : self._filled[layer]], v[:, :, : self._filled[layer]]


class SharedPrefix:
    """Rows before the pass's own, which every pass reads and none changes."""

    def __init__(self, cache: GrowingCache) -> None:
        self._cache = cache

    def extend(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """As `Past.extend`."""
        before_k, before_v = self._cache.rows(layer)
        return torch.cat([before_k, k], 2), torch.cat([before_v, v], 2)


def _repeated(kept: Tensor, count: int) -> Tensor:
    wider = kept.new_empty((count, *kept.shape[1:]))
    wider[:] = kept
    return wider
