"""The folded tables of a tree: the graph's two constants, and the file `tree.bin` that holds them."""

import numpy as np
import numpy.typing as npt

from ppd.errors import TreeError
from ppd.signature import MAX_ROWS, causal_state, num_states
from ppd.tree import Tree


def fold_tables(tree: Tree) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.int64]]:
    """Fold a tree into the graph's constants.

    Returns:
        `tree_mask` bool [m+2, C, C] and `tree_depth` int64 [m+2, C]; entry m+1 is causal. Behind the rows of a state
        stand those of its branch; rows past them see only themselves.
    """
    m = tree.num_prompt_tokens
    mask = np.tile(np.eye(MAX_ROWS, dtype=np.bool_), (num_states(m), 1, 1))  # [m+2, C, C]
    depth = np.zeros((num_states(m), MAX_ROWS), np.int64)  # [m+2, C]
    for state, alone in tree.rows.items():
        rows = [alone, *tree.branched[state].values()][-1]
        mask[state, : rows.num_rows, : rows.num_rows] = rows.mask()
        depth[state, : rows.num_rows] = rows.depths()
    mask[causal_state(m)] = np.tri(MAX_ROWS, dtype=np.bool_)
    depth[causal_state(m)] = np.arange(MAX_ROWS)
    return mask, depth


def tree_tables_bytes(tree: Tree) -> bytes:
    """The content of `tree.bin`: `tree_mask` (one byte per entry), then `tree_depth` (little-endian int64)."""
    mask, depth = fold_tables(tree)
    return mask.tobytes() + depth.astype("<i8").tobytes()


def tree_tables_from_bytes(
    content: bytes, num_prompt_tokens: int
) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.int64]]:
    """Read `tree.bin` back, without a copy. Shapes as from `fold_tables`.

    Raises:
        TreeError: The content's size does not match m.
    """
    states = num_states(num_prompt_tokens)
    mask_size, depth_size = states * MAX_ROWS * MAX_ROWS, states * MAX_ROWS * 8
    if len(content) != mask_size + depth_size:
        raise TreeError(f"the tree tables have {len(content)} bytes; expected {mask_size + depth_size}: export again")
    mask = np.frombuffer(content, np.bool_, mask_size).reshape(states, MAX_ROWS, MAX_ROWS)
    return mask, np.frombuffer(content, "<i8", offset=mask_size).reshape(states, MAX_ROWS)
