"""Trees: their file format, and the rules that every tree keeps."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ppd.errors import TreeError
from ppd.signature import MAX_ROWS, MAX_TOP_IDS
from ppd.tree import Node, Tree, json_from_tree, load_tree, tree_from_json
from tests.strategies import MANY, trees


@MANY
@given(trees())
def test_json_round_trip(tree: Tree) -> None:
    back = tree_from_json(json_from_tree(tree))

    assert back.num_prompt_tokens == tree.num_prompt_tokens
    assert {s: set(nodes) for s, nodes in back.states.items()} == {s: set(nodes) for s, nodes in tree.states.items()}
    assert back.rows == tree.rows
    assert json_from_tree(back) == json_from_tree(tree)


def test_a_tree_file_reads_as_written() -> None:
    nodes = [{"path": [], "prompts": 2}, {"path": [0], "prompts": 1}, {"path": [0, 3], "prompts": 2}]
    data = {"schema": 1, "num_prompt_tokens": 2, "states": {"1": nodes[:2], "2": nodes}}

    tree = tree_from_json(json.dumps(data))

    assert tree == Tree(2, {1: (Node((), 2), Node((0,), 1)), 2: (Node((), 2), Node((0,), 1), Node((0, 3), 2))})
    assert json.loads(json_from_tree(tree)) == data
    assert tree.max_rank == 3
    assert tree.drafts


def document() -> dict[str, Any]:
    """A valid tree file with two prompt tokens and every state."""
    root = {"path": [], "prompts": 2}
    return {
        "schema": 1,
        "num_prompt_tokens": 2,
        "states": {
            "0": [dict(root)],
            "1": [dict(root), {"path": [1], "prompts": 1}],
            "2": [dict(root), {"path": [0], "prompts": 0}, {"path": [0, 0], "prompts": 1}],
        },
    }


def put(data: Any, place: tuple[str | int, ...], value: Any) -> Any:
    """A copy of a document with another value at a place."""
    data = copy.deepcopy(data)
    target = data
    for step in place[:-1]:
        target = target[step]
    target[place[-1]] = value
    return data


def with_node(state: str, path: list[Any], prompts: Any = 1) -> dict[str, Any]:
    data = document()
    data["states"][state].append({"path": path, "prompts": prompts})
    return data


def without(place: tuple[str | int, ...]) -> dict[str, Any]:
    data = document()
    target: Any = data
    for step in place[:-1]:
        target = target[step]
    del target[place[-1]]
    return data


def test_the_document_that_the_rules_are_tried_on_is_valid() -> None:
    assert tree_from_json(json.dumps(document())).num_prompt_tokens == 2


BROKEN = {
    "parent missing": (with_node("2", [1, 0]), r"state 2, path \[1, 0\] has no parent; expected path \[1\]"),
    "parent in another state only": (with_node("1", [0, 0]), r"state 1, path \[0, 0\]"),
    "deeper than the state": (with_node("1", [1, 0]), r"path \[1, 0\] has depth 2; state 1"),
    "candidate in state 0": (with_node("0", [0]), r"path \[0\] has depth 1; state 0"),
    "too many prompt rows": (with_node("2", [3], 3), r"path \[3\] has 3 prompt rows; expected 0 to 2"),
    "negative prompt rows": (with_node("2", [3], -1), r"path \[3\] has -1 prompt rows; expected 0 to 2"),
    "rank K": (with_node("2", [MAX_TOP_IDS]), r"path \[10\] uses a rank outside 0 to 9"),
    "negative rank": (with_node("2", [-1]), r"path \[-1\] uses a rank outside 0 to 9"),
    "path twice": (with_node("2", [0, 0], 2), r"state 2 has path \[0, 0\] twice"),
    "root twice": (with_node("2", [], 2), r"state 2 has path \[\] twice"),
    "no root": (put(document(), ("states", "0"), []), "state 0 has no root"),
    "root replaced": (without(("states", "2", 0)), "state 2 has no root"),
    "state m missing": (without(("states", "2")), "state 2 is not defined, and prefill leads to it"),
    "state led to missing": (without(("states", "1")), "state 1 is not defined, and state 2"),
    "no states": (put(document(), ("states",), {}), "state 2 is not defined"),
    "state above m": (put(document(), ("states", "3"), [{"path": [], "prompts": 2}]), "state 3 is defined; .*0 to 2"),
    "no prompt tokens": (put(document(), ("num_prompt_tokens",), 0), "num_prompt_tokens is 0; expected 1"),
    "negative prompt tokens": (put(document(), ("num_prompt_tokens",), -1), "num_prompt_tokens is -1; expected 1"),
    "far too many prompt tokens": (put(document(), ("num_prompt_tokens",), MAX_ROWS), "num_prompt_tokens is 512"),
    "more prompt tokens than states": (put(document(), ("num_prompt_tokens",), 3), "state 3 is not defined"),
    "a list": ([], "is not an object with num_prompt_tokens, schema, states"),
    "null": (None, "is not an object"),
    "a number": (1, "is not an object"),
    "states a list": (put(document(), ("states",), [[]]), "states is not an object"),
    "states null": (put(document(), ("states",), None), "states is not an object"),
    "state not a list": (put(document(), ("states", "1"), {}), "state '1' is not a number from 0 to 511 with a list"),
    "state not a number": (put(document(), ("states", "one"), []), "state 'one' is not a number"),
    "state negative": (put(document(), ("states", "-1"), []), "state '-1' is not a number"),
    "state padded": (put(document(), ("states", "01"), []), "state '01' is not a number"),
    "state in another script": (put(document(), ("states", "\u0661"), []), "is not a number"),
    "state of 5,000 digits": (put(document(), ("states", "1" * 5000), []), "is not a number|is defined"),
    "node a path": (put(document(), ("states", "1", 1), [1]), r"state 1, node \[1\] is not an object"),
    "path a number": (put(document(), ("states", "1", 1, "path"), 1), "path 1 is not a list of ranks"),
    "path text": (put(document(), ("states", "1", 1, "path"), "1"), "path '1' is not a list of ranks"),
    "rank text": (put(document(), ("states", "1", 1, "path"), ["1"]), "rank is '1'; expected a whole number"),
    "rank true": (put(document(), ("states", "1", 1, "path"), [True]), "rank is True; expected a whole number"),
    "rank 1.0": (put(document(), ("states", "1", 1, "path"), [1.0]), "rank is 1.0; expected a whole number"),
    "prompts true": (put(document(), ("states", "1", 1, "prompts"), True), "prompts is True; expected a whole"),
    "prompts 1.0": (put(document(), ("states", "1", 1, "prompts"), 1.0), "prompts is 1.0; expected a whole"),
    "prompts null": (put(document(), ("states", "1", 1, "prompts"), None), "prompts is None; expected a whole"),
    "prompt tokens true": (
        put(document(), ("num_prompt_tokens",), True),
        "num_prompt_tokens is True; expected a whole",
    ),
    "prompt tokens 2.0": (put(document(), ("num_prompt_tokens",), 2.0), "num_prompt_tokens is 2.0; expected a whole"),
    "prompt tokens text": (put(document(), ("num_prompt_tokens",), "2"), "num_prompt_tokens is '2'; expected a whole"),
    "schema 2": (put(document(), ("schema",), 2), "has schema 2; this version reads schema 1"),
    "schema 0": (put(document(), ("schema",), 0), "has schema 0; this version reads schema 1"),
    "schema true": (put(document(), ("schema",), True), "has schema True"),
    "schema 1.0": (put(document(), ("schema",), 1.0), "has schema 1.0"),
    "schema text": (put(document(), ("schema",), "1"), "has schema '1'"),
    "schema missing": (without(("schema",)), r"expected \['num_prompt_tokens', 'schema', 'states'\] \(see schema\)"),
    "states missing": (without(("states",)), r"\(see states\)"),
    "prompt tokens missing": (without(("num_prompt_tokens",)), r"\(see num_prompt_tokens\)"),
    "unknown key": (put(document(), ("comment",), ""), r"\(see comment\)"),
    "unknown key of a node": (put(document(), ("states", "1", 1, "acc"), 0.3), r"state 1, node .*\(see acc\)"),
    "path missing": (without(("states", "1", 1, "path")), r"state 1, node .*\(see path\)"),
    "prompts missing": (without(("states", "1", 1, "prompts")), r"state 1, node .*\(see prompts\)"),
}


@pytest.mark.parametrize(("data", "message"), BROKEN.values(), ids=BROKEN.keys())
def test_a_broken_rule_is_refused_with_its_place(data: Any, message: str) -> None:
    with pytest.raises(TreeError, match=message) as caught:
        tree_from_json(json.dumps(data), "mine.json")

    assert str(caught.value).startswith("mine.json")


@pytest.mark.parametrize("text", ["", "{", "tree", '{"schema": 1,}', "\ufeff{}", "[" * 100_000])
def test_what_is_not_json_is_refused(text: str) -> None:
    with pytest.raises(TreeError, match=r"mine\.json is not JSON"):
        tree_from_json(text, "mine.json")


def test_more_rows_than_the_tables_hold_name_the_limit() -> None:
    at_limit = Tree(MAX_ROWS - 1, {MAX_ROWS - 1: _root(MAX_ROWS - 1)})
    assert at_limit.rows[MAX_ROWS - 1].num_rows == MAX_ROWS

    with pytest.raises(TreeError, match="state 511 has 513 rows; a step has room for 512"):
        Tree(MAX_ROWS - 1, {0: _root(0), MAX_ROWS - 1: (Node((), MAX_ROWS - 1), Node((0,), 0))})


def _root(prompts: int) -> tuple[Node, ...]:
    return (Node((), prompts),)


ANY_JSON: tuple[Any, ...] = (
    None,
    True,
    False,
    0,
    1,
    2,
    -1,
    600,
    1.0,
    float("nan"),
    "",
    "1",
    [],
    [0],
    [[]],
    {},
    {"path": [], "prompts": 1},
)


def places(data: Any, here: tuple[str | int, ...] = ()) -> list[tuple[str | int, ...]]:
    """Every place inside a document."""
    items = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    return [place for key, value in items for place in ((*here, key), *places(value, (*here, key)))]


@pytest.mark.parametrize("place", places(document()), ids=str)
def test_any_value_anywhere_is_read_or_refused_never_a_crash(place: tuple[str | int, ...]) -> None:
    for value in ANY_JSON:
        try:
            tree = tree_from_json(json.dumps(put(document(), place, value)))
        except TreeError:
            continue
        assert tree_from_json(json_from_tree(tree)).rows == tree.rows  # what was read can be written and read again


@MANY
@given(trees(), st.data())
def test_a_node_without_its_parent_is_refused(tree: Tree, data: st.DataObject) -> None:
    state = data.draw(st.sampled_from(sorted(tree.states)))
    parents = {node.path[:-1] for node in tree.states[state] if node.path} - {()}
    if not parents:
        return
    gone = data.draw(st.sampled_from(sorted(parents)))
    nodes = tuple(node for node in tree.states[state] if node.path != gone)

    with pytest.raises(TreeError, match="no parent"):
        Tree(tree.num_prompt_tokens, {**tree.states, state: nodes})


@MANY
@given(trees())
def test_a_state_that_a_node_leads_to_is_required(tree: Tree) -> None:
    for state in tree.states:
        rest = {other: nodes for other, nodes in tree.states.items() if other != state}
        led_to = {tree.num_prompt_tokens} | {node.prompts for nodes in rest.values() for node in nodes}
        if state in led_to and rest != {0: _root(0)}:  # that one is the tree that never drafts
            with pytest.raises(TreeError, match=r"state \d is not defined"):
                Tree(tree.num_prompt_tokens, rest)
        else:
            assert Tree(tree.num_prompt_tokens, rest).states == rest


@pytest.mark.parametrize("content", [b"\xff", b"{}", None])
def test_a_tree_file_that_cannot_be_read_is_named(content: bytes | None, tmp_path: Path) -> None:
    path = tmp_path / "mine.json"
    if content is not None:
        path.write_bytes(content)

    with pytest.raises(TreeError, match=r"mine\.json.*expected"):
        load_tree(path)


def test_a_tree_file_is_loaded_from_disk(tmp_path: Path) -> None:
    (tmp_path / "mine.json").write_text(json.dumps(document()), "utf-8")

    assert load_tree(tmp_path / "mine.json") == tree_from_json(json.dumps(document()))


def test_a_tree_for_another_model_does_not_fit() -> None:
    tree = tree_from_json(json.dumps(document()))

    tree.require_fit(2, 2)
    with pytest.raises(TreeError, match="the tree is for 2 prompt tokens, the model has 3"):
        tree.require_fit(3, 10)
    with pytest.raises(TreeError, match="uses rank 1; the graph returns ranks 0 to 0"):
        tree.require_fit(2, 1)


def test_a_root_without_prompt_rows_needs_state_m_unless_nothing_drafts() -> None:
    with pytest.raises(TreeError, match="state 2 is not defined"):
        Tree(2, {0: _root(0), 1: _root(0)})
    assert Tree(2, {0: _root(0), 2: _root(0)}).drafts


BY_HEADS: dict[str, Any] = {
    "schema": 1,
    "num_guess_heads": 2,
    "states": {"2": [{"path": [], "prompts": 0}, {"path": [0], "prompts": 0}, {"path": [0, 1], "prompts": 0}]},
}


def test_a_tree_for_guess_heads_has_one_state_and_no_prompt_rows() -> None:
    tree = tree_from_json(json.dumps(BY_HEADS))

    assert json.loads(json_from_tree(tree)) == BY_HEADS
    assert tree.by_heads
    assert {tree.leads_to(node) for node in tree.states[2]} == {2}
    assert {state: rows.num_rows for state, rows in tree.rows.items()} == {0: 1, 1: 1, 2: 3}
    assert tree_from_json(json_from_tree(Tree.none(2, by_heads=True))) == Tree.none(2, by_heads=True)


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"states": {"2": [{"path": [], "prompts": 1}]}}, "prompt"),
        ({"states": {"1": [{"path": [], "prompts": 0}], **BY_HEADS["states"]}}, "with 2 guess heads every step is in"),
        ({"num_guess_heads": 0}, "num_guess_heads is 0"),
        ({"num_prompt_tokens": 2}, "has keys"),
    ],
)
def test_another_tree_for_guess_heads_is_refused(changed: dict[str, Any], words: str) -> None:
    with pytest.raises(TreeError, match=words):
        tree_from_json(json.dumps({**BY_HEADS, **changed}))
