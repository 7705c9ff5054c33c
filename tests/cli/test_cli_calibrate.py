"""`ppd calibrate`, and what `ppd inspect` makes of it."""

import dataclasses
import re
from pathlib import Path

import pytest

import ppd
from ppd.bundle import open_bundle
from ppd.decision import CalibrationInfo
from ppd.planning.for_target import tree_for_target
from ppd.targets import find_target
from tests.cli.helpers import Run, fails
from tests.damage import change


def contents(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_ino for path in folder.iterdir()}


def test_calibrate_measures_draws_and_keeps_its_result(run: Run, own_bundle: Path, tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('{"text": "def add(a, b):"}\n{"text": "import os"}\n', "utf-8")
    picture = tmp_path / "curves.svg"

    outcome = run("calibrate", own_bundle, "--minutes", 0.01, "--prompts", prompts, "--plot", picture, "--threads", 1)

    assert outcome.code == 0, outcome
    assert "<svg" in picture.read_text("utf-8")
    info = open_bundle(own_bundle).manifest.decision.record
    assert isinstance(info, CalibrationInfo)
    assert 1 <= info.num_prompts <= 2
    for word in ("drafts from", "calibration", "predicted", "together, step by step", "tree           calibrated"):
        assert word in outcome.out
    found, _, verdict = outcome.out.partition("\n\nverdict ")
    assert re.match(r" +(faster|slower|no difference)[a-z ]+: [\d.]+ times \([\d.]+ to [\d.]+\), .*lookup", verdict)
    assert verdict.endswith(f"ppd inspect {own_bundle} shows all that was measured\n")
    shown = run("inspect", own_bundle).out
    assert set(found.splitlines()) <= set(shown.splitlines())
    for word in ("host time in it", "beyond row 1"):
        assert word in shown
    again = tmp_path / "again.svg"
    assert run("inspect", own_bundle, "--plot", again).out == shown
    assert shapes(again) == shapes(picture)


def shapes(picture: Path) -> list[str]:
    """What is drawn in a picture; names of its parts are random."""
    return re.findall(r'<path d="([^"]+)"', picture.read_text("utf-8"))


def test_inspect_draws_the_estimate_of_a_target(run: Run, own_bundle: Path, tmp_path: Path) -> None:
    model = open_bundle(own_bundle).manifest.model
    folder = Path(ppd.__file__).parent / "models" / "tinypy" / "prompt_tokens"
    pictures = []
    for target, precision in (("jetson-orin", "fp16"), ("cpu", "int8")):
        decision = tree_for_target(find_target(target), model, precision, 512, 3, folder).decision
        change(own_bundle, ("decision",), dataclasses.asdict(decision))
        pictures.append(tmp_path / f"{target}.svg")
        assert run("inspect", own_bundle, "--plot", pictures[-1]).code == 0
    assert shapes(pictures[0]) != shapes(pictures[1])


def test_a_bundle_without_a_record_is_not_drawn(run: Run, own_bundle: Path, tmp_path: Path) -> None:
    picture = tmp_path / "curves.svg"

    fails(run("inspect", own_bundle, "--plot", picture), "neither calibrated nor estimated", "run ppd calibrate")
    fails(run("inspect", own_bundle, "--plot", tmp_path / "curves.nope"), "curves.nope", ".svg")
    assert not picture.exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--minutes", "0"], ["minutes is 0.0", "above 0"]),
        (["--plot", "curves.nope"], ["curves.nope", ".svg"]),
        (["--plot", "no folder/curves.svg"], ["no folder is not a folder", "make it"]),
        (["--prompts", "none.txt"], ["none.txt", "expected"]),
        (["--engine", "nonsense"], ["nonsense", "onnxruntime"]),
    ],
)
def test_misuse_is_one_line_and_leaves_the_bundle_alone(
    run: Run, own_bundle: Path, arguments: list[str], words: list[str]
) -> None:
    before = contents(own_bundle)

    fails(run("calibrate", own_bundle, *arguments), *words)
    assert contents(own_bundle) == before
