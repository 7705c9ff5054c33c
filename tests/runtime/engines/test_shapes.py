"""What is kept per step shape: the tree's shapes always, of others those used last."""

from pathlib import Path

from ppd.bundle import open_bundle
from ppd.runtime.engines.shapes import ShapeCache, shapes_of
from ppd.signature import BRANCH_LENGTHS, CHAIN_LENGTHS

TREE = [(1, 1), (9, 9)]


def test_the_one_unused_for_longest_goes_first_and_the_trees_stay() -> None:
    cache = ShapeCache[str](TREE, 2)
    shapes = [(1, 1), (9, 9), (20, 1), (30, 1), (20, 1), (40, 1), (1, 1)]
    gone = [cache.put(shape, f"{shape[0]}/{shape[1]}") for shape in shapes if cache.get(shape) is None]

    assert gone == [None, None, None, None, "30/1"]
    assert [cache.get(shape) for shape in [(1, 1), (9, 9), (20, 1), (30, 1), (40, 1)]] == [
        "1/1",
        "9/9",
        "20/1",
        None,
        "40/1",
    ]
    assert len(cache) == 4
    cache.clear()
    assert len(cache) == 0
    assert cache.get((1, 1)) is None


def test_shapes_of_a_bundle_are_those_of_decoding(tinypy_bundle: Path) -> None:
    bundle = open_bundle(tinypy_bundle, verify=False)
    alone = {rows.num_rows for rows in bundle.tree.rows.values()}
    branches = [4 * length - less for length in BRANCH_LENGTHS for less in (0, 3)]  # three prompt rows a guess
    tree_sizes = alone | {size + branch for size in alone for branch in branches}
    chains = {(length + 1, length + 1) for length in CHAIN_LENGTHS}
    assert shapes_of(bundle) == {(1, 1), *chains, *((size, size) for size in tree_sizes)}
