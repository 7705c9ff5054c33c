"""What scripts need of the command line: JSON, silence, exit codes, `python -m ppd`, completion."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import ppd
from ppd.bundle import open_bundle
from ppd.models.registry import load_registry
from ppd.targets import load_targets
from tests.cli.helpers import Outcome, Run, fails, misused


@pytest.fixture
def exported(tinypy_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A bundle that `ppd export` and `ppd calibrate` give at once."""
    from ppd.calibrate import calibrate as calibrating  # the module
    from ppd.export import exporter

    report = exporter.ExportReport(
        bundle=open_bundle(tinypy_bundle),
        weights_bytes=10,
        added_parameters=20,
        added_bytes=30,
        unquantised=[],
        notes=("a note",),
    )
    monkeypatch.setattr(exporter, "export", lambda *_, **__: report)
    monkeypatch.setattr(calibrating, "calibrate", lambda *_, **__: SimpleNamespace(bundle=report.bundle))
    return tinypy_bundle


def printed(outcome: Outcome) -> Any:
    assert (outcome.code, outcome.err) == (0, "")
    assert outcome.out.count("\n") == 1
    return json.loads(outcome.out)


# ---- JSON and silence


def test_lists_are_json_objects_by_name(run: Run) -> None:
    assert list(printed(run("models", "--json"))) == list(load_registry())
    targets = printed(run("targets", "--json"))
    assert list(targets) == list(load_targets())
    assert targets["rtx-4090"]["memory_gb"] == 24


def test_check_says_what_it_compared_in_json(run: Run, tinypy_bundle: Path) -> None:
    told = printed(run("check", tinypy_bundle, "--json", "--threads", 1))
    assert told["bundle"] == str(tinypy_bundle)
    assert 0 < told["max_difference"] <= told["tolerance"]


def test_a_quiet_check_is_its_exit_code(run: Run, tinypy_bundle: Path, tmp_path: Path) -> None:
    assert run("check", tinypy_bundle, "--quiet", "--threads", 1) == Outcome(0, "", "")
    fails(run("check", tmp_path / "nowhere", "--quiet"), "nowhere")


def test_export_prints_where_the_bundle_is_and_its_manifest(run: Run, exported: Path) -> None:
    command = ("export", "--model", "tinypy", "--gpu", "cpu")
    told = printed(run(*command, "--json"))
    assert (told["bundle"], told["notes"]) == (str(exported), ["a note"])
    assert told["manifest"]["model"]["name"] == "tinypy"
    assert run(*command, "--quiet") == Outcome(0, "", "")


def test_calibrate_prints_the_manifest(run: Run, exported: Path) -> None:
    assert printed(run("calibrate", exported, "--json")) == printed_manifest(run, exported)
    assert run("calibrate", exported, "--quiet") == Outcome(0, "", "")


def printed_manifest(run: Run, bundle: Path) -> Any:
    return json.loads(run("inspect", bundle, "--json").out)


# ---- exit codes, as docs/cli.md has them


def test_exit_codes(run: Run, tmp_path: Path) -> None:
    assert run("models").code == 0
    fails(run("inspect", tmp_path))  # 1: bad input, one line
    misused(run("inspect"))  # 2: misuse


# ---- python -m ppd, completion


def test_the_package_runs_as_a_module() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "ppd", "--version"], capture_output=True, text=True, timeout=300, check=True
    )
    assert (done.stdout, done.stderr) == (f"ppd-edge {ppd.__version__}\n", "")


def test_a_shell_completes_commands() -> None:
    script = shutil.which("ppd", path=Path(sys.executable).parent)
    assert script is not None
    asked = {"_PPD_COMPLETE": "complete_bash", "COMP_WORDS": "ppd ca", "COMP_CWORD": "1"}
    done = subprocess.run(
        [script], capture_output=True, text=True, timeout=300, check=False, env={**os.environ, **asked}
    )
    assert done.stdout.split() == ["calibrate"]
