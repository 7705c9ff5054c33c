"""The tree that export folds where none was given and none was calibrated for the device."""

from ppd.tree import Node, NodePath, Tree

_CANDIDATES: tuple[NodePath, ...] = ((0,), (1,), (0, 0))


def hand_made_tree(num_prompt_tokens: int) -> Tree:
    """A small tree for every state: the two best guesses one token ahead, and a chain behind the best.

    It is deliberately small, because a CPU pays for every row; which tree is best depends on model and device.

    Args:
        num_prompt_tokens: m, at least 1.
    """
    m = num_prompt_tokens
    states = {}
    for state in range(m + 1):
        paths = [path for path in _CANDIDATES if len(path) <= state]
        states[state] = (Node((), min(m, 2)), *(Node(path, min(m, 2 if path == (0,) else 1)) for path in paths))
    states.setdefault(m, (Node((), m),))
    return Tree(m, states)
