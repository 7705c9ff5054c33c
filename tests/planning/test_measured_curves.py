"""Curves that were measured elsewhere, and the tree that export chooses with one."""

import dataclasses
import json
from pathlib import Path

import pytest

from ppd.bundle import open_bundle
from ppd.cli.describe import describe_bundle
from ppd.decision import ESTIMATED, UNKNOWN, Decision, EstimateInfo
from ppd.errors import ModelError
from ppd.manifest import bytes_from_manifest, manifest_from_bytes
from ppd.measures import Marginals
from ppd.planning.chain import chain_from_tree
from ppd.planning.for_target import ChosenTree, known_acceptance, training_seconds, tree_for_target
from ppd.planning.hand_made import hand_made_tree
from ppd.planning.measured_curves import MeasuredOn, load_curves, nearest_curve
from ppd.precision import PRECISIONS
from ppd.targets import find_target, load_targets
from tests.infos import BILLION

CPU = find_target("cpu")


def acceptance(folder: Path, *marginals: list[float]) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "accuracy.json").write_text(json.dumps({"marginals": marginals, "source": "made up"}), "utf-8")
    return folder


def estimate_of(chosen: ChosenTree) -> EstimateInfo:
    assert isinstance(chosen.decision.record, EstimateInfo)
    return chosen.decision.record


def test_every_curve_is_whole_and_has_a_source() -> None:
    for on, curve in load_curves().items():
        assert on.target in load_targets()
        assert on.precision in PRECISIONS
        assert curve.sizes[0] == curve.values[0] == 1
        assert curve.sizes == sorted(set(curve.sizes))
        assert len(curve.sizes) == len(curve.values)
        assert min(curve.values) >= 1
        assert curve.source


def test_the_nearest_size_of_the_precision_is_taken() -> None:
    sizes = sorted(on.num_parameters for on in load_curves() if (on.target, on.precision) == ("cpu", "fp32"))
    small, large = (load_curves()[MeasuredOn("cpu", "fp32", size)] for size in (sizes[0], sizes[-1]))

    assert sizes[0] < 20_000_000 < 700_000_000 < sizes[-1]
    assert nearest_curve("cpu", "fp32", 20_000_000) is small
    assert nearest_curve("cpu", "fp32", 700_000_000) is large
    assert nearest_curve("cpu", "fp16", 1) is None
    assert nearest_curve("h100", "fp32", 1) is None


def test_a_curve_reaches_its_largest_size() -> None:
    curve = nearest_curve("cpu", "int8", 1_000_000_000)
    assert curve is not None

    assert len(curve.curve()) == 32
    assert curve.at([1, 4, 8, 32]) == pytest.approx([1, 1.33, 1.62, 3.5])


def test_where_drafting_pays_the_tree_and_its_speed_follow_from_acceptance_and_curve(tmp_path: Path) -> None:
    marginals = [[0.7, 0.1], [0.5, 0.1], [0.4, 0.1]]
    chosen = tree_for_target(CPU, BILLION, "int8", 2048, 3, acceptance(tmp_path, *marginals))
    tree, estimate = chosen.tree, estimate_of(chosen)

    assert (chosen.decision.draft, chosen.decision.basis) == (None, ESTIMATED)
    assert chosen.source == "estimated for cpu"
    chain = chain_from_tree(tree, marginals)
    assert estimate.acceptance_length == pytest.approx(chain.acceptance_length)
    rows = [rows.num_rows for _, rows in sorted(tree.rows.items())]
    assert estimate.speedup == pytest.approx(chain.acceptance_length / chain.mean(estimate.curve.at(rows)))
    assert estimate.speedup is not None
    assert estimate.speedup > 1
    assert estimate.marginals == Marginals(probabilities=marginals, source="made up")
    assert estimate.curve == nearest_curve("cpu", "int8", BILLION.num_parameters)
    assert estimate.roofline is None


def test_where_drafting_does_not_pay_a_tree_that_drafts_is_folded_all_the_same(tmp_path: Path) -> None:
    chosen = tree_for_target(CPU, BILLION, "int4", 2048, 3, acceptance(tmp_path, [0.1], [0.05], [0.01]))
    estimate = estimate_of(chosen)

    assert chosen.tree.drafts
    assert chosen.decision.draft is False
    assert estimate.speedup is not None
    assert estimate.speedup < 1


def test_the_hand_made_tree_stays_where_acceptance_or_curve_is_unknown(tmp_path: Path) -> None:
    known = acceptance(tmp_path / "known", [0.7], [0.5], [0.4])
    unknown = Decision(draft=None, basis=UNKNOWN, record=None)
    for precision, folder in (("fp32", None), ("fp16", known), ("fp32", acceptance(tmp_path / "two", [0.7], [0.5]))):
        expected = ChosenTree(tree=hand_made_tree(3), source="hand-made", decision=unknown)
        assert tree_for_target(CPU, BILLION, precision, 2048, 3, folder) == expected


def test_acceptance_is_known_for_trained_prompt_tokens_only(tmp_path: Path) -> None:
    assert known_acceptance("mobilellama", None) is None
    published = known_acceptance("mobilellama", tmp_path)
    assert published is not None
    assert published.probabilities[0][0] == 0.34988
    assert "published" in published.source
    (tmp_path / "accuracy.json").write_text('{"marginals": [[0.5]]}')
    known = Marginals(probabilities=[[0.5]], source="measured beside the prompt tokens")
    assert known_acceptance("mobilellama", tmp_path) == known


@pytest.mark.parametrize("text", ["{", "[]", '{"marginals": [[2.0]]}'])
def test_damaged_marginals_beside_prompt_tokens_are_one_line(tmp_path: Path, text: str) -> None:
    (tmp_path / "accuracy.json").write_text(text)

    with pytest.raises(ModelError, match=r"accuracy\.json holds no marginals \(.+\); measure it again"):
        known_acceptance("mobilellama", tmp_path)


def test_the_estimate_is_described_and_kept(tinypy_bundle: Path, tmp_path: Path) -> None:
    folder = acceptance(tmp_path, [0.1], [0.05], [0.01])
    decision = tree_for_target(CPU, BILLION, "fp32", 2048, 3, folder).decision
    bundle = open_bundle(tinypy_bundle)
    manifest = dataclasses.replace(bundle.manifest, decision=decision)
    assert manifest_from_bytes(bytes_from_manifest(manifest)).decision == decision

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


@pytest.mark.parametrize("content", [None, "{", "[1]", "{}", '{"training_seconds": "1 h"}', '{"training_seconds": []}'])
def test_the_time_of_a_training_is_unknown_where_nothing_says_it(content: str | None, tmp_path: Path) -> None:
    assert training_seconds(None) is None
    if content is not None:
        (tmp_path / "accuracy.json").write_text(content)
    assert training_seconds(tmp_path) is None
