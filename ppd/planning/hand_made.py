"""The tree that export folds where none was given and none was calibrated for the device."""

from ppd.tree import Node, Tree

_NODES = (Node((), 1), Node((0,), 1), Node((1,), 1))
_BY_HEADS = (Node((), 0), Node((0,), 0), Node((1,), 0))


def hand_made_tree(num_prompt_tokens: int, *, by_heads: bool = False) -> Tree:
    """The two best guesses one token ahead, and one prompt row behind every node: six rows; three with guess heads.

    It is deliberately small, because a CPU pays for every row, and prompt tokens that were not trained guess little
    beyond the next token. Which tree is best depends on model and device.

    Args:
        num_prompt_tokens: m, at least 1.
        by_heads: Whether guess heads guess, and not prompt tokens.
    """
    if by_heads:
        return Tree(num_prompt_tokens, {num_prompt_tokens: _BY_HEADS}, by_heads)
    return Tree(num_prompt_tokens, dict.fromkeys({1, num_prompt_tokens}, _NODES))
