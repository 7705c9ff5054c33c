"""Trees that several test files fold."""

from ppd.tree import Node, Tree

CHAIN = Tree(3, {s: tuple(Node((0,) * depth, 3) for depth in range(s + 1)) for s in range(1, 4)})
"""In every state the best guess of each distance, unlike the tree that export folds."""
