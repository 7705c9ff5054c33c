"""Memory that a bundle takes on a device, by arithmetic: weights, KV cache, logits, workspace."""

from dataclasses import dataclass

from ppd.manifest import ModelInfo

GB = 10**9
LARGE_MODEL = 200_000_000
"""Parameters above which a whole model in 32 bits is more than a small machine should hold for a moment."""
_MUCH_OF_WEIGHTS = 0.1
"""Part of the weights, which every step reads, from which on reading something else is worth a note."""
_WORKSPACE = 0.1
"""Part of the weights that an engine's workspace is taken to be before one is built: an assumption."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """Bytes by what they are for; `workspace` is 0 if unknown."""

    weights: float
    cache: float
    logits: float
    workspace: float = 0.0

    @property
    def total(self) -> float:
        """The sum."""
        return self.weights + self.cache + self.logits + self.workspace


def memory_of(model: ModelInfo, *, weights: float, item_bytes: int, capacity: int, head_rows: int) -> Memory:
    """The memory of a bundle, without the workspace.

    Args:
        item_bytes: Size of an element of the graph's type, 2 or 4.
        capacity: S, rows of the KV cache.
        head_rows: Maximum number of rows through the LM head at once; their logits are fp32.
    """
    return Memory(
        weights=weights,
        cache=capacity * kv_bytes_per_row(model, item_bytes),
        logits=4.0 * head_rows * model.vocab_size,
    )


def with_workspace(memory: Memory) -> Memory:
    """The same with a workspace for an engine that is not built yet: a tenth of the weights."""
    return Memory(
        weights=memory.weights, cache=memory.cache, logits=memory.logits, workspace=_WORKSPACE * memory.weights
    )


def item_bytes_of(graph_type: str) -> int:
    """Bytes of a number of a graph's type."""
    return 2 if graph_type == "float16" else 4


def kv_bytes_per_row(model: ModelInfo, item_bytes: int) -> int:
    """Bytes of one cached row over all layers."""
    return 2 * model.num_layers * model.num_kv_heads * model.head_dim * item_bytes


@dataclass(frozen=True, slots=True)
class WholeCache:
    """The KV cache of an engine that reads all its rows in every step, however short the text is.

    Attributes:
        weights_bytes: What such a step reads besides.
    """

    rows: int
    size_bytes: int
    weights_bytes: float

    @property
    def is_much(self) -> bool:
        """Whether it is worth a note."""
        return self.size_bytes >= _MUCH_OF_WEIGHTS * self.weights_bytes

    @property
    def words(self) -> str:
        """What is read, and how much that is."""
        return (
            f"the cache of all {self.rows} rows in every step, however short the text is: "
            f"{self.size_bytes / 1e6:.0f} MB, {self.size_bytes / self.weights_bytes:.0%} of the weights"
        )


def whole_cache(model: ModelInfo, graph_type: str, rows: int, weights_bytes: float) -> WholeCache:
    """The cache of so many rows, in a graph of a type."""
    return WholeCache(rows, rows * kv_bytes_per_row(model, item_bytes_of(graph_type)), weights_bytes)
