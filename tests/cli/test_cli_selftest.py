"""`ppd selftest`: on the CPU, and on a GPU that is not there."""

import json
from pathlib import Path

import pytest

from ppd.build import engine as building
from ppd.build.serialize import SerializedEngine
from ppd.bundle import open_bundle
from ppd.calibrate import selftest as testing
from tests.cli.helpers import Run
from tests.copies import link_bundle
from tests.fakes.driver import NAME
from tests.fakes.gpu import FakeGpu, install
from tests.fakes.tensorrt import VERSION


def test_a_bundle_passes_on_the_cpu_and_all_of_it_is_in_the_json(
    run: Run, tinypy_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(testing, "_NEW_TOKENS", 8)
    outcome = run("selftest", tinypy_bundle, "--threads", 1, "--json", tmp_path / "report.json")

    assert (outcome.code, outcome.err) == (0, "")
    report = json.loads((tmp_path / "report.json").read_text())
    (test,) = report["bundles"]
    assert test["same_tokens"] == test["prompts"] == 3
    assert test["check"]["max_difference"] <= test["check"]["tolerance"]
    assert test["tokens_per_second"].keys() == {"plain", "draft"}
    assert report["gpu"] is None
    assert "cuda-python" in report["no_gpu"]
    assert {"ppd-edge", "python", "numpy", "cuda-python", "tensorrt"} <= report["versions"].keys()
    assert "no GPU: cuda-python is not installed" in outcome.out
    assert "3 of 3" in outcome.out
    assert "passed" in outcome.out


def test_an_engine_is_built_checked_and_its_graphs_are_counted(
    run: Run, tinypy_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = link_bundle(tinypy_bundle, tmp_path / "own")
    install(monkeypatch, FakeGpu(open_bundle(folder, verify=False)))
    monkeypatch.setattr(
        building, "serialize_engine", lambda *_, **__: SerializedEngine(content=memoryview(b"x"), layers={})
    )
    monkeypatch.setattr(testing, "_NEW_TOKENS", 8)

    outcome = run("selftest", folder, "--engine", "tensorrt", "--json", tmp_path / "report.json")

    assert (outcome.code, outcome.err) == (0, ""), outcome.out
    report = json.loads((tmp_path / "report.json").read_text())
    (test,) = report["bundles"]
    assert test["built"]["checked"]
    assert test["graphs"] > 0
    assert test["build_seconds"] > 0
    assert report["gpu"]["name"] == NAME
    assert report["versions"]["tensorrt"] == VERSION


def test_what_fails_is_recorded_the_next_bundle_is_tried_and_the_code_is_1(
    run: Run, tinypy_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(testing, "_NEW_TOKENS", 4)

    def fail(*_: object, **__: object) -> None:
        raise TypeError("factory function returned nullptr")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(testing, "load", fail)
        broken = run("selftest", tinypy_bundle, "--threads", 1, "--json", tmp_path / "report.json")
    (test,) = json.loads((tmp_path / "report.json").read_text())["bundles"]
    assert broken.code == 1
    assert "TypeError: factory function returned nullptr" in broken.out
    assert "in fail" in test["traceback"]

    both = run("selftest", tmp_path / "nothing", tinypy_bundle, "--threads", 1)
    assert both.code == 1
    assert both.out.count("failed") == 1
    assert "3 of 3" in both.out


def test_a_report_that_cannot_be_written_is_one_line_before_anything_is_tested(
    run: Run, tinypy_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(testing, "selftest", None)
    outcome = run("selftest", tinypy_bundle, "--json", tmp_path / "no" / "report.json")

    assert outcome.code == 1
    assert outcome.err == f"error: {tmp_path / 'no'} is not a folder; make it, or choose another --json\n"
