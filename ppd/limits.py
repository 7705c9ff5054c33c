"""Ranges of a model's sizes: a file is held against them before anything is allocated by what it says."""

from collections.abc import Mapping
from typing import Any

from ppd.errors import PPDError

MAX_CONTEXT = 1 << 24
SIZES: Mapping[str, tuple[int, int]] = {
    "vocab_size": (1, 1 << 24),
    "hidden_size": (1, 1 << 16),
    "ffn_size": (1, 1 << 20),
    "num_layers": (1, 1024),
    "num_heads": (1, 1024),
    "num_kv_heads": (1, 1024),
    "head_dim": (1, 4096),
    "context": (1, MAX_CONTEXT),
}
"""Field → the smallest and the largest value, each some times that of the largest models there are."""


def require_ranges(
    record: Any, ranges: Mapping[str, tuple[int, int]], error: type[PPDError], before: str = "", after: str = ""
) -> None:
    """Refuse a record with a field outside its range.

    Args:
        ranges: Fields that the record lacks are passed over.
        error: What is raised.
        before: The message's beginning, such as the name of the file.
        after: What to do.
    """
    for name, (low, high) in ranges.items():
        value = getattr(record, name, low)
        if not low <= value <= high:
            raise error(f"{before}{name} is {value!r:.40}, expected {low} to {high}{after}")
