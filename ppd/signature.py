"""The graph's inputs, outputs and fixed sizes, shared by whoever writes the graph and whoever runs it.

Axis letters used in this project's comments and docstrings:

    N rows of a step                     m number of prompt tokens, or of guess heads
    R rows that go through the LM head   K best ids kept per row
    C rows the folded tables have room for
    L layers, H KV heads, S cache capacity in rows, D head size, V vocabulary (rows of the checkpoint's embedding)
"""

OPSET = 24
"""ONNX opset of the graph: the first with `TensorScatter`, the in-place KV write."""

MAX_TOP_IDS = 10
"""K: best ids of a row that the graph returns (fewer only if the vocabulary is smaller)."""

MAX_ROWS = 512
"""C: rows of the folded tree tables, the most that one step can have."""

CHAIN_LENGTHS = (1, 2, 3, 5, 7, 11, 15)
"""Candidates that a chain of guesses may have: few enough for engines to keep a buffer or a graph of each."""

BRANCH_LENGTHS = (1, 3, 7)
"""Guesses from the text that a step with the tree may have beside it, one behind the other."""

MIN_CAPACITY = 128
"""Smallest KV cache capacity S in rows; it doubles from here."""

INPUT_IDS, STATE, CACHE_LEN, HEAD_ROWS = "input_ids", "state", "cache_len", "head_rows"
TOP_IDS, LOGITS = "top_ids", "logits"
"""Best ids and logits of the R head rows. With guess heads, R·m further rows of `top_ids` follow: the best ids of the m
heads behind the first head row, then behind the second, and so on. They have no logits."""
PROMPT_TOKENS, TREE_MASK, TREE_DEPTH = "prompt_tokens", "tree_mask", "tree_depth"

PARAMETER_PREFIX = "decoder."
"""What stands before the decoder's parameter names in the graph."""

GUESS_HEADS_PREFIX = "guess_heads."
"""What stands before those of guess heads, in the decoder."""

QUANTISED_SUFFIX, SCALE_SUFFIX, ZERO_POINT_SUFFIX = "_q", "_scale", "_zero_point"
"""What stands behind the name of a quantised parameter: its whole numbers, their scales, and their zero points."""

GRAPH_FILE, WEIGHTS_FILE, TREE_TABLES_FILE = "model.onnx", "model.onnx.data", "tree.bin"

LOWERED_GRAPH_FILE = "model-lowered.onnx"
"""The graph rewritten for TensorRT 10.3; it reads the same weights."""

FUSED_GRAPH_FILE = "model-onnxruntime.onnx"
"""The graph rewritten for ONNX Runtime's CPU provider; it reads the same weights."""

EXACT_GRAPH_FILE = "model-onnxruntime-exact.onnx"
"""The same for a quantised model, where products are to be computed in fp32."""

FUSED_HEAD_MULTIPLE = 8
"""ONNX Runtime's attention over a cache takes head sizes that are multiples of it."""


def num_states(num_distances: int) -> int:
    """Entries of the folded tables: states 0..m, and the causal one."""
    return num_distances + 2


def causal_state(num_distances: int) -> int:
    """The state whose rows see each other causally: prefill, plain decoding, measuring."""
    return num_distances + 1


def num_answers(num_head_rows: int, num_guess_heads: int) -> int:
    """Rows of `top_ids`: those of R head rows, and of the guess heads behind each."""
    return num_head_rows * (1 + num_guess_heads)


def cache_names(num_layers: int) -> list[str]:
    """Names of the KV inputs in the graph's order: `k_0, v_0, k_1, …`. Outputs carry the suffix `_out`."""
    return [f"{kind}_{layer}" for layer in range(num_layers) for kind in "kv"]


def takes_fused_attention(head_dim: int) -> bool:
    """Whether the graph can be rewritten for ONNX Runtime's CPU provider."""
    return head_dim % FUSED_HEAD_MULTIPLE == 0


def max_capacity(context: int, max_rows: int = MAX_ROWS) -> int:
    """Largest S: a full step always fits behind a full context.

    Args:
        max_rows: Largest step of an engine that takes smaller ones only.
    """
    return context + max_rows


def capacity_for(num_rows: int, context: int) -> int:
    """The bucket S, in rows, that holds `num_rows`: a doubling of `MIN_CAPACITY`, at most `max_capacity`."""
    capacity = MIN_CAPACITY
    while capacity < num_rows:
        capacity *= 2
    return min(capacity, max_capacity(context))
