"""`ppd calibrate`, and what `ppd bench` and `ppd inspect` make of it."""

import json
from pathlib import Path

import pytest

from ppd.bundle import open_bundle
from tests.cli.helpers import Run, fails


def contents(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_ino for path in folder.iterdir()}


def test_calibrate_measures_draws_and_keeps_its_result(run: Run, own_bundle: Path, tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('{"text": "def add(a, b):"}\n{"text": "import os"}\n', "utf-8")
    picture = tmp_path / "curves.svg"

    outcome = run("calibrate", own_bundle, "--minutes", 0.01, "--prompts", prompts, "--plot", picture, "--threads", 1)

    assert outcome.code == 0, outcome
    assert "<svg" in picture.read_text("utf-8")
    info = open_bundle(own_bundle).manifest.calibration
    assert info is not None
    assert 1 <= info.num_prompts <= 2
    for words in ("calibration", "predicted", "host time in it", "beyond row 1", "tree           calibrated"):
        assert words in outcome.out
    assert run("inspect", own_bundle).out == outcome.out


@pytest.mark.parametrize("draft", [True, False])
def test_bench_compares_what_the_bundle_does_or_drafting_in_any_case(run: Run, own_bundle: Path, draft: bool) -> None:
    outcome = run(
        "bench", own_bundle, "--turns", 1, "--max-new-tokens", 8, "--json", "--threads", 1, *["--draft"] * draft
    )

    assert outcome.code == 0, outcome
    report = json.loads(outcome.out)
    assert report["drafted"] == (draft or open_bundle(own_bundle).manifest.draft is not False)
    assert report["identical"] or report["excused_forks"] == report["forks"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--minutes", "0"], ["minutes is 0.0", "above 0"]),
        (["--plot", "curves.nope"], ["curves.nope", ".svg"]),
        (["--plot", "no folder/curves.svg"], ["no folder", "make it"]),
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
