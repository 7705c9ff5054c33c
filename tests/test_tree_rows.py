"""Trees: the order of their rows, what a row sees, and the folded tables."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given

from ppd.errors import TreeError
from ppd.signature import BRANCH_LENGTHS, MAX_ROWS, MAX_TOP_IDS
from ppd.tree import Node, NodePath, Rows, Tree, json_from_tree, order_rows, tree_from_json
from ppd.tree_tables import fold_tables, tree_tables_bytes, tree_tables_from_bytes
from tests.strategies import FEW, MANY, trees

REFERENCE = Path(__file__).parent / "fixtures" / "reference_cases"

Label = tuple[NodePath, int]
"""What a row is: its node's path, and 0 for the node itself or j for its j-th prompt row."""


def labels(nodes: tuple[Node, ...]) -> list[Label]:
    """The rows in order, worked out by walking the tree: root, candidates depth-first, then prompt rows."""
    prompts = {node.path: node.prompts for node in nodes}

    def walk(path: NodePath) -> list[NodePath]:
        children = [(*path, rank) for rank in range(MAX_TOP_IDS) if (*path, rank) in prompts]
        return [path, *(below for child in children for below in walk(child))]

    walked = walk(())
    return [(path, 0) for path in walked] + [(path, j + 1) for path in walked for j in range(prompts[path])]


def sees(row: Label, column: Label) -> bool:
    """Every row sees root, ancestors and itself; prompt row j also prompt rows 1..j-1 of its node; no one else's."""
    (path, j), (other, i) = row, column
    if i == 0:
        return path[: len(other)] == other
    return path == other and i <= j


def branch_labels(tree: Tree, num_rows: int) -> list[Label]:
    """The branch behind so many rows: candidates of no rank, one behind the other, each followed by its prompt rows."""
    if not tree.drafts:
        return []
    prompts = 0 if tree.by_heads else tree.num_prompt_tokens
    length = max((n for n in BRANCH_LENGTHS if num_rows + n * (1 + prompts) <= MAX_ROWS), default=0)
    return [((-1,) * depth, j) for depth in range(1, length + 1) for j in range(prompts + 1)]


def naive_mask(rows: list[Label]) -> list[list[bool]]:
    return [[sees(row, column) for column in rows] for row in rows]


def naive_depths(rows: list[Label]) -> list[int]:
    return [len(path) + j for path, j in rows]


# ---- rows


@MANY
@given(trees())
def test_rows_are_root_then_candidates_depth_first_then_prompt_rows_node_by_node(tree: Tree) -> None:
    for state, nodes in tree.states.items():
        rows, expected = tree.rows[state], labels(nodes)
        assert row_labels(rows) == expected
        assert rows.num_rows == len(expected)
        assert rows.num_candidates == len(nodes) - 1


@MANY
@given(trees())
def test_parents_and_children_agree_with_the_paths(tree: Tree) -> None:
    for rows in tree.rows.values():
        paths = [node.path for node in rows.nodes]
        assert rows.parents[0] == -1
        assert [paths[parent] for parent in rows.parents[1:]] == [path[:-1] for path in paths[1:]]
        for row, path in enumerate(paths):
            below = sorted(other for other in paths if other[:-1] == path and other)
            assert [paths[child] for child in rows.children[row]] == below


@MANY
@given(trees())
def test_accepted_rows_ascend_and_never_lie_before_their_destination(tree: Tree) -> None:
    for rows in tree.rows.values():
        row_of = {node.path: row for row, node in enumerate(rows.nodes)}
        for node in rows.nodes:
            accepted = [row_of[node.path[:length]] for length in range(len(node.path) + 1)]
            assert accepted == sorted(set(accepted))
            assert all(row >= destination for destination, row in enumerate(accepted))
            if not any(node.path):  # the likeliest path moves nothing
                assert accepted == list(range(len(accepted)))


@MANY
@given(trees())
def test_prompt_rows_take_the_ids_behind_the_vocabulary(tree: Tree) -> None:
    for state, nodes in tree.states.items():
        ids = tree.rows[state].input_ids(vocab_size=1000)
        assert ids.dtype == np.int64
        assert ids.tolist() == [1000 + j - 1 if j else 0 for _, j in labels(nodes)]


def row_labels(rows: Rows) -> list[Label]:
    """What `Rows` says each row is."""
    found: list[Label | None] = [None] * rows.num_rows
    for row, (node, first) in enumerate(zip(rows.nodes, rows.first_prompts, strict=True)):
        for place, label in [(row, 0), *((first + j, j + 1) for j in range(node.prompts))]:
            assert found[place] is None, f"two rows stand at {place}"
            found[place] = (node.path, label)
    return [label for label in found if label is not None]


# ---- what a row sees


@MANY
@given(trees())
def test_mask_and_depths_equal_the_naive_definition(tree: Tree) -> None:
    for state, nodes in tree.states.items():
        rows, expected = tree.rows[state], labels(nodes)
        assert rows.mask().dtype == np.bool_
        np.testing.assert_array_equal(rows.mask(), naive_mask(expected))
        np.testing.assert_array_equal(rows.depths(), naive_depths(expected))


def test_a_small_mask_by_hand() -> None:
    rows = order_rows((Node((0,), 0), Node((), 2), Node((1,), 1), Node((0, 0), 0)))

    # root, 0, 0-0, 1, root's prompt rows 1 and 2, prompt row 1 of candidate 1
    expected = """
        1......
        11.....
        111....
        1..1...
        1...1..
        1...11.
        1..1..1
    """
    assert rows.mask().tolist() == [[mark == "1" for mark in line] for line in expected.split()]
    assert rows.depths().tolist() == [0, 1, 2, 1, 1, 2, 2]


@pytest.mark.parametrize("name", ["a", "b"])
@pytest.mark.parametrize("state", [1, 2, 3])
def test_the_authors_buffers_are_the_same_up_to_the_order_of_rows(name: str, state: int) -> None:
    given_tree = json.loads((REFERENCE / f"tree_{name}.json").read_text("utf-8"))[str(state)]
    theirs = json.loads((REFERENCE / f"buffers_tree_{name}.json").read_text("utf-8"))[str(state)]
    nodes = (Node((), 3), *(Node(tuple(path), prompts) for path, _, prompts in given_tree))
    rows = order_rows(nodes)
    by_length = sorted((node.path for node in nodes), key=lambda path: (len(path), path))
    their_row: dict[tuple[NodePath, int], int] = {}
    for path, node_row, prompt_rows in zip(
        by_length, theirs["normal_token_indices"], theirs["special_token_indices"], strict=True
    ):
        their_row |= {(path, j): row for j, row in enumerate([node_row, *prompt_rows])}
    order = [their_row[label] for label in row_labels(rows)]

    assert sorted(order) == list(range(theirs["n_rows"]))
    np.testing.assert_array_equal(rows.mask(), np.array(theirs["attn_mask"], bool)[np.ix_(order, order)])
    np.testing.assert_array_equal(rows.depths(), np.array(theirs["position_ids"])[order])


@FEW
@given(trees())
def test_a_branch_is_a_chain_on_the_root_behind_the_trees_rows(tree: Tree) -> None:
    for state, alone in tree.rows.items():
        for (length, last), rows in tree.branched[state].items():
            count = len(alone.nodes)
            assert (rows.nodes[:count], rows.num_in_tree, len(rows.nodes)) == (alone.nodes, count, count + length)
            assert list(rows.node_rows[:count]) == list(range(count))
            assert [rows.parents[node] for node in range(count, count + length)] == [
                0,
                *range(count, count + length - 1),
            ]
            assert rows.children[0] == (*alone.children[0], count)
            assert [rows.children[node] for node in range(count, count + length)] == [
                *((node,) for node in range(count + 1, count + length)),
                (),
            ]
            assert list(rows.node_rows) == sorted(rows.node_rows)
            assert rows.num_rows in tree.step_sizes
            assert rows.nodes[-1].prompts == last
            longest = max(tree.branched[state].values(), key=lambda rows: rows.num_rows)
            np.testing.assert_array_equal(rows.mask(), longest.mask()[: rows.num_rows, : rows.num_rows])
            np.testing.assert_array_equal(rows.depths(), longest.depths()[: rows.num_rows])


# ---- folded tables


@FEW
@given(trees())
@example(Tree.none(2))
def test_folded_tables_hold_every_state_and_the_causal_one(tree: Tree) -> None:
    m = tree.num_prompt_tokens
    mask, depth = fold_tables(tree)

    assert (mask.shape, mask.dtype.type) == ((m + 2, MAX_ROWS, MAX_ROWS), np.bool_)
    assert (depth.shape, depth.dtype.type) == ((m + 2, MAX_ROWS), np.int64)
    np.testing.assert_array_equal(mask[m + 1], np.tril(np.ones((MAX_ROWS, MAX_ROWS), bool)))
    np.testing.assert_array_equal(depth[m + 1], np.arange(MAX_ROWS))
    absent = (Node((), m if tree.drafts else 0),)
    for state in range(m + 1):
        expected = labels(tree.states.get(state, absent))
        expected += branch_labels(tree, len(expected))
        num_rows = len(expected)
        np.testing.assert_array_equal(mask[state, :num_rows, :num_rows], naive_mask(expected))
        np.testing.assert_array_equal(depth[state, :num_rows], naive_depths(expected))
        np.testing.assert_array_equal(mask[state, num_rows:], np.eye(MAX_ROWS, dtype=bool)[num_rows:])
        assert not mask[state, :num_rows, num_rows:].any()


@FEW
@given(trees())
def test_tree_tables_round_trip(tree: Tree) -> None:
    content = tree_tables_bytes(tree)
    mask, depth = tree_tables_from_bytes(content, tree.num_prompt_tokens)

    np.testing.assert_array_equal(mask, fold_tables(tree)[0])
    np.testing.assert_array_equal(depth, fold_tables(tree)[1])
    assert mask.dtype == np.bool_
    assert depth.dtype == np.int64


def test_tree_tables_of_another_size_are_refused() -> None:
    content = tree_tables_bytes(Tree.none(1))

    for changed in (content[:-1], content + b"\0", b""):
        with pytest.raises(TreeError, match=rf"have {len(changed)} bytes; expected {len(content)}.*again"):
            tree_tables_from_bytes(changed, 1)
    with pytest.raises(TreeError, match="again"):
        tree_tables_from_bytes(content, 2)


@pytest.mark.parametrize("num_prompt_tokens", [1, 3])
def test_the_tree_that_never_drafts_has_one_row_in_every_state(num_prompt_tokens: int) -> None:
    tree = Tree.none(num_prompt_tokens)

    assert not tree.drafts
    assert tree.max_rank == -1
    assert {state: rows.num_rows for state, rows in tree.rows.items()} == dict.fromkeys(range(num_prompt_tokens + 1), 1)
    assert tree_from_json(json_from_tree(tree)) == tree
