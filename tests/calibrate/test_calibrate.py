"""Calibration of a bundle, end to end, and what export knows before it."""

import json
from pathlib import Path

import numpy as np
import pytest

from ppd.bundle import open_bundle
from ppd.calibrate.acceptance import wilson
from ppd.calibrate.calibrate import _remark, calibrate, choose_tree, embedded_prompts
from ppd.calibrate.latency import Latency
from ppd.errors import ArgumentError, ModelError
from ppd.planning.choose import known_acceptance


def test_calibration_is_kept_in_the_bundle_and_leaves_no_old_files(own_bundle: Path) -> None:
    prompts = embedded_prompts("tinypy")[:2]
    for _ in range(2):
        report = calibrate(own_bundle, prompts=prompts, minutes=0.01, threads=1)

    opened = open_bundle(own_bundle)
    info = opened.manifest.calibration
    assert info is not None
    assert info.num_prompts >= 1
    assert opened.manifest.draft is not None
    assert report.bench.identical
    assert opened.tree == report.search.tree
    assert np.all(report.acceptance.hits.sum(axis=1) <= report.acceptance.trials)
    assert np.all(report.latency.host_ms > 0)
    assert np.all(report.latency.milliseconds > report.latency.host_ms)
    named = {entry.path for entry in opened.manifest.files.values()}
    assert {p.name for p in own_bundle.glob("*-????????????????.*")} <= named
    assert json.loads(opened.path("acceptance.json").read_text("utf-8"))["trials"][0] > 0


def test_where_plain_decoding_is_fastest_a_tree_that_drafts_is_still_folded() -> None:
    assert choose_tree([[0.1], [0.05], [0.01]], np.arange(1.0, 9.0)).tree.drafts


def test_a_latency_curve_pools_what_falls_and_never_falls() -> None:
    sizes, lens = np.array([1, 2, 4]), np.array([32, 64])
    ms = np.array([[3.0, 1.0, 5.0], [5.0, 3.0, 5.0]])
    latency = Latency(sizes, lens, ms, np.zeros(3), np.zeros(3), 8, stable=True)

    assert latency.curve().tolist() == [3.0, 3.0, 4.0, 5.0]


def test_wilson_interval() -> None:
    assert wilson(5, 10) == pytest.approx((0.2366, 0.7634), abs=1e-4)
    assert wilson(0, 0) == (0, 1)


@pytest.mark.parametrize("minutes", [0, -1, float("nan"), float("inf")])
def test_a_time_that_is_none_is_refused(minutes: float, own_bundle: Path) -> None:
    with pytest.raises(ArgumentError, match="minutes"):
        calibrate(own_bundle, minutes=minutes)


def test_acceptance_is_known_for_trained_prompt_tokens_only(tmp_path: Path) -> None:
    assert known_acceptance("mobilellama", None) is None
    published = known_acceptance("mobilellama", tmp_path)
    assert published is not None
    assert published[0][0][0] == 0.34988
    (tmp_path / "accuracy.json").write_text('{"marginals": [[0.5]]}')
    assert known_acceptance("mobilellama", tmp_path) == ([[0.5]], "measured beside the prompt tokens")
    (tmp_path / "accuracy.json").write_text("{")
    with pytest.raises(ModelError, match=r"accuracy\.json holds no marginals"):
        known_acceptance("mobilellama", tmp_path)


@pytest.mark.parametrize(
    ("measured", "words"),
    [
        ((1.95, 1.25), []),
        ((1.6, 1.05), ["acceptance length 1.60"]),
        ((2.0, 1.0), ["1.30 times as long"]),
        ((1.84, 1.11), ["acceptance length 1.84", "1.08 times as long"]),  # neither by 10 %, their product is
    ],
)
def test_the_remark_names_the_part_that_differs(measured: tuple[float, float], words: list[str]) -> None:
    remark = _remark(2.0, measured[0], 1.3, measured[1])

    assert len([part for part in remark.split("; ") if part]) == len(words)
    assert all(word in remark for word in words)
