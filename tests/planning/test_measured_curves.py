"""Curves that were measured elsewhere, and the tree that export chooses with one."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from ppd.bundle import open_bundle
from ppd.cli.describe import describe_bundle
from ppd.manifest import bytes_from_manifest, manifest_from_bytes
from ppd.planning.chain import chain_from_tree
from ppd.planning.choose import ChosenTree, choose_estimated_tree
from ppd.planning.hand_made import hand_made_tree
from ppd.planning.measured_curves import load_curves, nearest_curve
from ppd.targets import find_target, load_targets
from tests.planning.test_roofline import MODEL

CPU = find_target("cpu")


def acceptance(folder: Path, *marginals: list[float]) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "accuracy.json").write_text(json.dumps({"marginals": marginals, "source": "made up"}), "utf-8")
    return folder


def test_every_curve_is_whole_and_has_a_source() -> None:
    for curve in load_curves():
        assert curve.target in load_targets()
        assert curve.sizes[0] == curve.relative_latency[0] == 1
        assert curve.sizes == sorted(set(curve.sizes))
        assert len(curve.sizes) == len(curve.relative_latency)
        assert min(curve.relative_latency) >= 1
        assert curve.source


def test_the_nearest_size_of_the_precision_is_taken() -> None:
    small, large = (nearest_curve("cpu", "fp32", count) for count in (20_000_000, 700_000_000))

    assert small is not None
    assert large is not None
    assert small.num_parameters < 20_000_000 < 700_000_000 < large.num_parameters
    assert nearest_curve("cpu", "fp16", 1) is None
    assert nearest_curve("h100", "fp32", 1) is None


def test_between_sizes_a_curve_is_linear() -> None:
    curve = nearest_curve("cpu", "int8", 1_000_000_000)
    assert curve is not None

    values = curve.curve()
    assert len(values) == 32
    assert values[[0, 3, 7, 31]] == pytest.approx([1, 1.33, 1.62, 3.5])
    assert values[5] == pytest.approx((1.33 + 1.62) / 2)


def test_where_drafting_pays_the_tree_and_its_speed_follow_from_acceptance_and_curve(tmp_path: Path) -> None:
    folder = acceptance(tmp_path, [0.7, 0.1], [0.5, 0.1], [0.4, 0.1])
    chosen = choose_estimated_tree(CPU, MODEL, "int8", 2048, 3, folder)
    tree, estimate = chosen.tree, chosen.estimate

    assert chosen.draft is None
    assert chosen.source == "estimated for cpu"
    assert estimate is not None
    chain = chain_from_tree(tree, json.loads((folder / "accuracy.json").read_text("utf-8"))["marginals"])
    assert estimate.acceptance_length == pytest.approx(chain.acceptance_length)
    sizes, values = map(int, estimate.relative_latency), estimate.relative_latency.values()
    times = np.interp([rows.num_rows for _, rows in sorted(tree.rows.items())], list(sizes), list(values))
    assert estimate.speedup == pytest.approx(chain.acceptance_length / chain.mean(times))
    assert estimate.speedup > 1
    assert (estimate.acceptance_source, estimate.curve_source.split(",")[1]) == ("made up", " ONNX Runtime 1.32")


def test_where_drafting_does_not_pay_a_tree_that_drafts_is_folded_all_the_same(tmp_path: Path) -> None:
    chosen = choose_estimated_tree(CPU, MODEL, "int4", 2048, 3, acceptance(tmp_path, [0.1], [0.05], [0.01]))
    estimate = chosen.estimate

    assert chosen.tree.drafts
    assert chosen.draft is False
    assert estimate is not None
    assert estimate.speedup is not None
    assert estimate.speedup < 1


def test_the_hand_made_tree_stays_where_acceptance_or_curve_is_unknown(tmp_path: Path) -> None:
    known = acceptance(tmp_path / "known", [0.7], [0.5], [0.4])
    for precision, folder in (("fp32", None), ("fp16", known), ("fp32", acceptance(tmp_path / "two", [0.7], [0.5]))):
        expected = ChosenTree(tree=hand_made_tree(3), source="hand-made")
        assert choose_estimated_tree(CPU, MODEL, precision, 2048, 3, folder) == expected


def test_the_estimate_is_described_and_kept(tinypy_bundle: Path, tmp_path: Path) -> None:
    folder = acceptance(tmp_path, [0.1], [0.05], [0.01])
    estimate = choose_estimated_tree(CPU, MODEL, "fp32", 2048, 3, folder).estimate
    bundle = open_bundle(tinypy_bundle)
    manifest = dataclasses.replace(bundle.manifest, estimate=estimate, draft=False, tree_calibration=None)
    assert manifest_from_bytes(bytes_from_manifest(manifest)).estimate == estimate

    text = describe_bundle(dataclasses.replace(bundle, manifest=manifest))
    for words in (
        "plain decoding is estimated to be faster",
        "not measured here",
        "1.44 at 4",
        "performance.md",
        "made up",
    ):
        assert words in text
    assert "run ppd calibrate on the device" in text
