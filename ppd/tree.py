"""Trees: which guesses a step verifies and where its prompt rows hang, per state; their rows; their folded tables.

A step in state s holds the root (row 0), candidates of depth 1..s, and the prompt rows of every node. After the step
the state becomes the number of prompt rows of the last accepted node (the paper's dynamic sparse tree, section 3.2).
Where guess heads guess in place of prompt tokens, no node has prompt rows, and every node leads to state m.
"""

import functools
import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ppd.errors import TreeError
from ppd.json_files import parse
from ppd.signature import BRANCH_LENGTHS, MAX_ROWS, MAX_TOP_IDS

TREE_SCHEMA = 1
_SHOWN_RANKS = 12
"""Ranks of a path that a message shows."""
_NO_RANK = -1
"""In the path of a branch's node: its guess comes from the text."""

_COUNTS = ("num_prompt_tokens", "num_guess_heads")
_GUESSERS = ("prompt tokens", "guess heads")
"""The key of m in a tree file, and words: of prompt tokens, and of guess heads."""

NodePath = tuple[int, ...]
"""Ranks from the root to a node; `()` is the root itself."""
Branch = tuple[int, int]
"""Guesses of a branch, and how many prompt rows the last of them has."""


@dataclass(frozen=True, slots=True)
class Node:
    """The root or a candidate.

    Attributes:
        path: Ranks from the root, one per distance.
        prompts: Prompt rows that hang on it, 0..m.
    """

    path: NodePath
    prompts: int


@dataclass(frozen=True)
class Tree:
    """A tree for every state that can be reached.

    Attributes:
        num_prompt_tokens: m, at least 1: prompt tokens, or guess heads.
        states: State s → its nodes, the root among them, in any order. State m is present, and every state that a
            node leads to; the exception is the tree without any drafting, `Tree.none(m)`.
        by_heads: Whether guess heads guess, and not prompt tokens.

    Raises:
        TreeError: A rule of the tree file format is broken; the message names the state and the path.
    """

    num_prompt_tokens: int
    states: Mapping[int, tuple[Node, ...]]
    by_heads: bool = False

    def __post_init__(self) -> None:
        m = self.num_prompt_tokens
        if not 1 <= m < MAX_ROWS:
            raise TreeError(f"{_COUNTS[self.by_heads]} is {m}; expected 1 to {MAX_ROWS - 1}")
        for state, nodes in self.states.items():
            if not 0 <= state <= m:
                raise TreeError(f"state {state} is defined; with {m} prompt tokens the states are 0 to {m}")
            if self.by_heads and self.drafts and state != m:
                raise TreeError(f"state {state} is defined; with {m} guess heads every step is in state {m}")
            _check_state(state, nodes, 0 if self.by_heads else m)
        if self.drafts:
            _check_reachable(self)

    @classmethod
    def none(cls, num_prompt_tokens: int, *, by_heads: bool = False) -> "Tree":
        """The tree that never drafts: one root, no prompt rows, prefill included."""
        return cls(num_prompt_tokens, {0: (Node((), 0),)}, by_heads)

    @property
    def drafts(self) -> bool:
        """False only for `Tree.none`."""
        return dict(self.states) != {0: (Node((), 0),)}

    @property
    def max_rank(self) -> int:
        """The largest rank used, -1 without candidates."""
        return max((rank for nodes in self.states.values() for node in nodes for rank in node.path), default=-1)

    @functools.cached_property
    def rows(self) -> dict[int, "Rows"]:
        """The ordered rows of every state 0..m. A state that is not defined is the root with m prompt rows."""
        absent = (Node((), self.num_prompt_tokens if self.drafts and not self.by_heads else 0),)
        return {s: order_rows(self.states.get(s, absent)) for s in range(self.num_prompt_tokens + 1)}

    @functools.cached_property
    def branched(self) -> dict[int, dict[Branch, "Rows"]]:
        """The rows of every state 0..m with a branch, ascending: those that a step has room for.

        A branch may end with its last candidate, or with the prompt rows of that.

        There are none for the tree without any drafting.
        """
        prompts = 0 if self.by_heads else self.num_prompt_tokens
        return {
            state: {
                (length, last): rows.with_branch(length, prompts, last)
                for length in BRANCH_LENGTHS
                for last in sorted({0, prompts})
                if self.drafts and rows.num_rows + length * (1 + prompts) <= MAX_ROWS
            }
            for state, rows in self.rows.items()
        }

    @property
    def step_sizes(self) -> set[int]:
        """N of every step with the tree, with branches and without."""
        with_branch = [rows for branched in self.branched.values() for rows in branched.values()]
        return {rows.num_rows for rows in (*self.rows.values(), *with_branch)}

    def leads_to(self, node: Node) -> int:
        """The state after a step whose last accepted node is this one."""
        return self.num_prompt_tokens if self.by_heads else node.prompts

    def require_fit(self, num_distances: int, num_top_ids: int, *, by_heads: bool = False) -> None:
        """Refuse a tree made for other guesses, or for more ids per row than the graph returns.

        Args:
            num_distances: m.
            by_heads: Whether the model has guess heads.

        Raises:
            TreeError: The tree does not fit.
        """
        if (self.num_prompt_tokens, self.by_heads) != (num_distances, by_heads):
            raise TreeError(
                f"the tree is for {self.num_prompt_tokens} {_GUESSERS[self.by_heads]}, the model has {num_distances} "
                f"{_GUESSERS[by_heads]}; use a tree made for this model"
            )
        if self.max_rank >= num_top_ids:
            raise TreeError(f"the tree uses rank {self.max_rank}; the graph returns ranks 0 to {num_top_ids - 1}")


@dataclass(frozen=True, slots=True)
class Rows:
    """The rows of a step, in the one order that everything uses.

    Root; candidates depth-first, siblings by rank; then the prompt rows, node by node; then the branch, if there is
    one: a chain of candidates for guesses from the text, each followed by its prompt rows. Accepted rows therefore
    ascend and never lie before the place they are moved to.

    Attributes:
        nodes: The nodes in row order, those of the tree first. Those of the branch have no ranks: their paths hold -1.
        node_rows: Row of each node; without a branch, node i is row i.
        parents: Which node is each one's parent; -1 for the root.
        first_prompts: Row of each node's first prompt row (where it would be, if the node has none).
        children: Which nodes are each one's children: by rank, then the branch.
        num_rows: N, prompt rows included.
        num_in_tree: How many of the nodes are the tree's.
    """

    nodes: tuple[Node, ...]
    node_rows: Sequence[int]
    parents: tuple[int, ...]
    first_prompts: tuple[int, ...]
    children: tuple[tuple[int, ...], ...]
    num_rows: int
    num_in_tree: int

    @property
    def num_candidates(self) -> int:
        """Nodes other than the root."""
        return len(self.nodes) - 1

    def with_branch(self, length: int, prompts: int, last: int) -> "Rows":
        """These rows and a branch behind them: a chain of candidates on the root, each followed by its prompt rows.

        A shorter branch is the beginning of a longer one, so that one folded tree serves every length, and none.

        Args:
            length: At least 1.
            last: Prompt rows of the last candidate, at most those of the others.
        """
        count, step = len(self.nodes), 1 + prompts
        rows = range(self.num_rows, self.num_rows + step * length, step)
        below = [(count + place,) for place in range(length)]
        return Rows(
            nodes=(
                *self.nodes,
                *(Node((_NO_RANK,) * depth, prompts if depth < length else last) for depth in range(1, length + 1)),
            ),
            node_rows=(*self.node_rows, *rows),
            parents=(*self.parents, *(count + place - 1 if place else 0 for place in range(length))),
            first_prompts=(*self.first_prompts, *(row + 1 for row in rows)),
            children=((*self.children[0], count), *self.children[1:], *below[1:], ()),
            num_rows=self.num_rows + step * length - prompts + last,
            num_in_tree=self.num_in_tree,
        )

    def mask(self) -> npt.NDArray[np.bool_]:
        """Which rows see which: bool [N, N], entry (r, c) true where row r attends to row c."""
        mask = np.eye(self.num_rows, dtype=np.bool_)
        for node, (row, parent) in enumerate(zip(self.node_rows, self.parents, strict=True)):
            if parent >= 0:
                mask[row] |= mask[self.node_rows[parent]]
            first, count = self.first_prompts[node], self.nodes[node].prompts
            for j in range(count):
                mask[first + j] |= mask[row]
                mask[first + j, first : first + j] = True
        return mask

    def depths(self) -> npt.NDArray[np.int64]:
        """Positions relative to the root: int64 [N]."""
        depths = np.zeros(self.num_rows, np.int64)
        for node, row, first in zip(self.nodes, self.node_rows, self.first_prompts, strict=True):
            depth = len(node.path)
            depths[row] = depth
            depths[first : first + node.prompts] = depth + 1 + np.arange(node.prompts)
        return depths

    def input_ids(self, vocab_size: int) -> npt.NDArray[np.int64]:
        """A step's ids: int64 [N], prompt rows filled in (ids V.. select prompt tokens), nodes left 0."""
        ids = np.zeros(self.num_rows, np.int64)
        for node, first in zip(self.nodes, self.first_prompts, strict=True):
            ids[first : first + node.prompts] = vocab_size + np.arange(node.prompts)
        return ids


def order_rows(nodes: tuple[Node, ...]) -> Rows:
    """Order the rows of one state.

    Args:
        nodes: Prefix-closed, in any order.

    Returns:
        The rows; sorting paths lexicographically is depth-first with siblings by rank.
    """
    ordered = tuple(sorted(nodes, key=lambda node: node.path))
    row_of = {node.path: row for row, node in enumerate(ordered)}
    parents = tuple(row_of[node.path[:-1]] if node.path else -1 for node in ordered)
    children: list[list[int]] = [[] for _ in ordered]
    first_prompts, next_row = [], len(ordered)
    for row, (node, parent) in enumerate(zip(ordered, parents, strict=True)):
        if parent >= 0:
            children[parent].append(row)
        first_prompts.append(next_row)
        next_row += node.prompts
    return Rows(
        nodes=ordered,
        node_rows=range(len(ordered)),
        parents=parents,
        first_prompts=tuple(first_prompts),
        children=tuple(map(tuple, children)),
        num_rows=next_row,
        num_in_tree=len(ordered),
    )


def tree_from_json(text: str, name: str = "tree.json") -> Tree:
    """Read a tree file.

    Args:
        name: What messages call the file.

    Raises:
        TreeError: The text is not JSON, or not a tree; the message says where.
    """
    try:
        data = parse(text, object_pairs_hook=_object_without_repetitions)
    except ValueError as error:
        raise TreeError(f"{name} is not JSON ({error}); expected a tree file") from error
    by_heads = isinstance(data, dict) and _COUNTS[True] in data
    _check_keys(data, {"schema", _COUNTS[by_heads], "states"}, name)
    if type(data["schema"]) is not int or data["schema"] != TREE_SCHEMA:
        raise TreeError(f"{name} has schema {data['schema']!r:.40}; this version reads schema {TREE_SCHEMA}")
    if not isinstance(data["states"], dict):
        raise TreeError(f"{name}: states is not an object; expected one list of nodes per state")
    states = {}
    for key, nodes in data["states"].items():
        if not re.fullmatch("0|[1-9][0-9]{0,2}", key) or not isinstance(nodes, list):
            raise TreeError(f"{name}: state {key!r:.20} is not a number from 0 to {MAX_ROWS - 1} with a list of nodes")
        states[int(key)] = tuple(_node_from_json(node, f"{name}: state {key}") for node in nodes)
    try:
        return Tree(_integer(data[_COUNTS[by_heads]], f"{name}: {_COUNTS[by_heads]}"), states, by_heads)
    except TreeError as error:
        raise error if str(error).startswith(name) else TreeError(f"{name}: {error}") from error


def json_from_tree(tree: Tree) -> str:
    """Write a tree file: states ascending, nodes in row order."""
    states = {
        str(state): [{"path": list(node.path), "prompts": node.prompts} for node in order_rows(nodes).nodes]
        for state, nodes in sorted(tree.states.items())
    }
    count = {_COUNTS[tree.by_heads]: tree.num_prompt_tokens}
    return json.dumps({"schema": TREE_SCHEMA, **count, "states": states}) + "\n"


def load_tree(path: Path) -> Tree:
    """Read a tree file from disk.

    Raises:
        TreeError: The file cannot be read, or is not a tree.
    """
    try:
        return tree_from_json(path.read_text("utf-8"), path.name)
    except (OSError, UnicodeDecodeError) as error:
        raise TreeError(f"cannot read the tree file {path} ({error}); expected a JSON tree file") from error


def _check_state(state: int, nodes: tuple[Node, ...], num_prompt_tokens: int) -> None:
    paths = {node.path for node in nodes}
    if len(paths) != len(nodes):
        seen = Counter(node.path for node in nodes)
        twice = next(path for path, count in seen.items() if count > 1)
        raise TreeError(f"state {state} has path {_shown(twice)} twice; every path may appear once")
    if () not in paths:
        raise TreeError(f"state {state} has no root; expected a node with path []")
    for node in nodes:
        where = f"state {state}, path {_shown(node.path)}"
        if len(node.path) > state:
            raise TreeError(f"{where} has depth {len(node.path)}; state {state} has guesses for depths up to {state}")
        if node.path and node.path[:-1] not in paths:
            raise TreeError(f"{where} has no parent; expected path {_shown(node.path[:-1])} in the same state")
        if not all(0 <= rank < MAX_TOP_IDS for rank in node.path):
            raise TreeError(f"{where} uses a rank outside 0 to {MAX_TOP_IDS - 1}")
        if not 0 <= node.prompts <= num_prompt_tokens:
            raise TreeError(f"{where} has {node.prompts} prompt rows; expected 0 to {num_prompt_tokens}")
    num_rows = len(nodes) + sum(node.prompts for node in nodes)
    if num_rows > MAX_ROWS:
        raise TreeError(f"state {state} has {num_rows} rows; a step has room for {MAX_ROWS}: use a smaller tree")


def _check_reachable(tree: Tree) -> None:
    if tree.num_prompt_tokens not in tree.states:
        raise TreeError(f"state {tree.num_prompt_tokens} is not defined, and prefill leads to it; define it")
    for state, nodes in tree.states.items():
        for node in nodes:
            if tree.leads_to(node) not in tree.states:
                raise TreeError(
                    f"state {node.prompts} is not defined, and state {state}, path {_shown(node.path)}, "
                    f"with {node.prompts} prompt rows leads to it; define it"
                )


def _shown(path: NodePath) -> str:
    """A path for a message; of a long one, its beginning."""
    ranks = ", ".join(map(str, path[:_SHOWN_RANKS]))
    return f"[{ranks}, …]" if len(path) > _SHOWN_RANKS else f"[{ranks}]"


def _object_without_repetitions(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    data = dict(pairs)
    if len(data) < len(pairs):
        twice = next(key for i, (key, _) in enumerate(pairs) if key in dict(pairs[:i]))
        raise ValueError(f"the key {twice!r} appears twice")
    return data


def _node_from_json(data: Any, where: str) -> Node:
    _check_keys(data, {"path", "prompts"}, f"{where}, node {data!r:.60}")
    if not isinstance(data["path"], list):
        raise TreeError(f"{where}: path {data['path']!r:.60} is not a list of ranks")
    path = tuple(_integer(rank, f"{where}: rank") for rank in data["path"])
    return Node(path, _integer(data["prompts"], f"{where}, path {_shown(path)}: prompts"))


def _integer(value: Any, what: str) -> int:
    if type(value) is not int:
        raise TreeError(f"{what} is {value!r:.60}; expected a whole number")
    return value


def _check_keys(data: Any, expected: set[str], where: str) -> None:
    if not isinstance(data, dict):
        raise TreeError(f"{where} is not an object with {', '.join(sorted(expected))}")
    if data.keys() != expected:
        wrong = sorted(data.keys() ^ expected)
        raise TreeError(f"{where} has keys {sorted(data)!s:.200}; expected {sorted(expected)} (see {wrong[0]!s:.40})")
