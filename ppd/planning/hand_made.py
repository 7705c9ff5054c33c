"""The tree that export folds where none was given and none was calibrated for the device."""

from ppd.tree import Node, Tree

_NODES = (Node((), 1), Node((0,), 1), Node((1,), 1))


def hand_made_tree(num_prompt_tokens: int) -> Tree:
    """The two best guesses one token ahead, and one prompt row behind every node: six rows.

    It is deliberately small, because a CPU pays for every row, and prompt tokens that were not trained guess little
    beyond the next token. Which tree is best depends on model and device.

    Args:
        num_prompt_tokens: m, at least 1.
    """
    return Tree(num_prompt_tokens, dict.fromkeys({1, num_prompt_tokens}, _NODES))
