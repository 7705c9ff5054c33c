"""What engines keep per step shape: bound buffers, execution contexts."""

from collections.abc import Collection
from typing import Generic, TypeVar

from ppd.bundle import Bundle
from ppd.signature import CHAIN_LENGTHS

Shape = tuple[int, int]
"""Rows of a step, and how many of them go through the LM head."""
Value = TypeVar("Value")


class ShapeCache(Generic[Value]):
    """Values by step shape; the least recently used one is evicted for a new one.

    It cannot make or free a value itself: that would take a reference to the engine, and an engine in a reference cycle
    keeps its memory until the garbage collector runs.

    Args:
        pinned: Shapes that are never evicted.
        num_spare: How many other shapes are kept.
    """

    def __init__(self, pinned: Collection[Shape], num_spare: int) -> None:
        self._pinned, self._num_spare = frozenset(pinned), num_spare
        self._kept: dict[Shape, Value] = {}
        self._spare: dict[Shape, Value] = {}  # the least recently used first

    def __len__(self) -> int:
        return len(self._kept) + len(self._spare)

    def get(self, shape: Shape) -> Value | None:
        """The value of a shape, if there is one."""
        value = self._kept.get(shape)
        if value is None and shape in self._spare:
            value = self._spare[shape] = self._spare.pop(shape)
        return value

    def put(self, shape: Shape, value: Value) -> Value | None:
        """Keep a value; return the one that was evicted for it."""
        if shape in self._pinned:
            self._kept[shape] = value
            return None
        evicted = self._spare.pop(next(iter(self._spare))) if len(self._spare) >= self._num_spare else None
        self._spare[shape] = value
        return evicted

    def clear(self) -> None:
        """Forget all values."""
        self._kept.clear()
        self._spare.clear()


def shapes_of(bundle: Bundle) -> set[Shape]:
    """The shapes of decoding: those of the tree, by state and branch, plain decoding's, and those of chains."""
    sizes = {1, *bundle.tree.step_sizes, *(1 + length for length in CHAIN_LENGTHS)}
    return {(size, size) for size in sizes}
