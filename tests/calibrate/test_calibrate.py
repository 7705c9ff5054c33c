"""Calibration of a bundle, end to end."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from ppd.board import Board
from ppd.bundle import open_bundle
from ppd.calibrate import calibrate as module
from ppd.calibrate.bench import BenchReport
from ppd.calibrate.calibrate import calibrate, calibration_stages, drafting_pays, remark
from ppd.calibrate.confirm import Confirmed
from ppd.calibrate.latency import SIZES, Latency
from ppd.calibrate.record import Measured, files_from_measured, measured_from_bundle, together_from_bundle
from ppd.decision import CALIBRATED, CalibrationInfo
from ppd.documents import embedded_prompts
from ppd.errors import ArgumentError, BundleError
from ppd.measures import Marginals
from ppd.runtime import load
from ppd.runtime.drafters.chances import NUM_KINDS
from tests.copies import calibrate_to
from tests.infos import RECORD

REPORT = BenchReport(
    questions=1,
    pairs=1,
    plain_tokens_per_second=1.0,
    ppd_tokens_per_second=1.0,
    speedup=1.0,
    speedup_min=1.0,
    speedup_max=1.0,
    speedup_low=1.0,
    speedup_high=1.0,
    plain_first_token_ms=1.0,
    ppd_first_token_ms=1.0,
    sources=["lookup", "ppd"],
    acceptance_length=1.5,
    identical_share=1.0,
    forks=0,
    excused_forks=0,
    categories={},
    mt_bench=None,
    left_out=0,
    turns=1,
    max_new_tokens=4,
    engine="made up",
    model="tinypy",
    board=Board(power_mode="", fastest_mode="", clocks={}),
    energy=[],
    not_read=[],
)


def record_of(folder: Path) -> CalibrationInfo:
    decision = open_bundle(folder).manifest.decision
    assert decision.basis == CALIBRATED
    assert isinstance(decision.record, CalibrationInfo)
    return decision.record


def test_calibration_is_kept_in_the_bundle_and_leaves_no_old_files(own_bundle: Path) -> None:
    stages: list[str] = []
    for _ in range(2):
        stages.clear()
        report = calibrate(
            own_bundle, prompts=embedded_prompts("python")[:2], minutes=0.01, threads=1, progress=stages.append
        )

    opened, info = open_bundle(own_bundle), record_of(own_bundle)
    assert report.bundle.manifest.files == opened.manifest.files
    assert 1 <= info.num_prompts <= 2
    assert opened.manifest.decision.draft == drafting_pays(report.bench)
    assert tuple(stages) == calibration_stages(own_bundle, "auto")
    assert report.bench.identical_share == 1
    assert opened.tree == report.search.tree
    assert np.all(report.measured.latency.host_ms > 0)
    assert np.all(report.measured.latency.milliseconds > report.measured.latency.host_ms)
    named = {entry.path for entry in opened.manifest.files.values()}
    assert {p.name for p in own_bundle.glob("*-????????????????.*")} <= named


def test_what_was_measured_can_be_read_back_and_gives_the_prediction(
    own_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes, nothing = np.array(SIZES), np.zeros(len(SIZES))
    cheap = Latency(sizes, np.array([32]), 1 + 0.05 * (sizes - 1.0)[None], 0.0, nothing, nothing, 8, stable=True)
    monkeypatch.setattr(module, "measure_latency", lambda *_, **__: cheap)
    report = calibrate(own_bundle, prompts=embedded_prompts("python")[:1], minutes=0.001, threads=1)

    measured, info = measured_from_bundle(report.bundle), record_of(own_bundle)
    assert measured.marginals == report.measured.marginals
    assert measured.latency.milliseconds.tolist() == report.measured.latency.milliseconds.tolist()
    assert measured.marginals.trials[0] > measured.marginals.trials[-1] > 0
    assert together_from_bundle(report.bundle) == report.together
    assert set(report.together.sources) == load(own_bundle, threads=1).sources()
    # However long the answers took to record, the one prompt has been recorded: drafting takes as many steps as played.
    assert info.predicted_acceptance_length == info.measured_acceptance_length
    assert report.together.predicted_acceptance_length > 1


@pytest.mark.parametrize(
    ("speedup", "low", "pays"),
    [
        (1.2, 1.1, True),
        (1.0, 0.95, True),
        (1.2, 0.94, False),  # too much doubt
        (0.99, 0.98, False),
        (0.99, 1.01, True),  # an interval above 1 needs no median
    ],
)
def test_drafting_pays_where_its_speed_up_is_above_1_with_little_doubt(speedup: float, low: float, pays: bool) -> None:
    assert drafting_pays(dataclasses.replace(REPORT, speedup=speedup, speedup_low=low)) is pays


@pytest.mark.parametrize(("speedup", "draft"), [(1.2, True), (0.7, False)])
def test_a_bundle_drafts_where_the_confirming_run_found_it_faster(
    own_bundle: Path, monkeypatch: pytest.MonkeyPatch, speedup: float, draft: bool
) -> None:
    monkeypatch.setattr(
        module,
        "confirm",
        lambda *_, **__: Confirmed(
            dataclasses.replace(REPORT, speedup=speedup, speedup_low=speedup),
            dataclasses.replace(REPORT, speedup=1.5),
            dataclasses.replace(REPORT, speedup=1.25),
        ),
    )

    bundle = calibrate(own_bundle, prompts=["import os"], minutes=0.0001, threads=1).bundle

    assert bundle.manifest.decision.draft is draft
    assert record_of(own_bundle).measured_speedup == speedup
    assert ("ppd" in load(own_bundle, threads=1).sources()) is draft
    together = together_from_bundle(bundle)  # of what it drafts from now
    assert together is not None
    assert set(together.sources) == load(own_bundle, threads=1).sources()
    assert together.measured_speedup == (1.5 if draft else 1.25)


MEASURED = Measured(
    marginals=Marginals(probabilities=[[0.5, 0.1]], source="some text", trials=[10]),
    chances=[0.5] * NUM_KINDS,
    latency=Latency(
        np.array([1, 2]), np.array([32]), np.ones((1, 2)), 0.0, np.zeros(2), np.zeros(2), rounds=8, stable=False
    ),
)


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"sizes": [1]}'])
@pytest.mark.parametrize("role", ["latency.json", "acceptance.json"])
def test_a_damaged_record_is_one_line(own_bundle: Path, role: str, text: str) -> None:
    tree, files = open_bundle(own_bundle).tree, files_from_measured(MEASURED, RECORD)
    assert measured_from_bundle(calibrate_to(own_bundle, tree, RECORD, files=files)).marginals == MEASURED.marginals

    damaged = calibrate_to(own_bundle, tree, RECORD, files=files | {role: text})
    with pytest.raises(BundleError, match="the record of its calibration is damaged") as caught:
        measured_from_bundle(damaged)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("minutes", [0, -1, float("nan"), float("inf")])
def test_a_time_that_is_none_is_refused(minutes: float, own_bundle: Path) -> None:
    with pytest.raises(ArgumentError, match="minutes"):
        calibrate(own_bundle, minutes=minutes)


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
    found = remark(2.0, measured[0], 1.3, measured[1])

    assert len([part for part in found.split("; ") if part]) == len(words)
    assert all(word in found for word in words)
