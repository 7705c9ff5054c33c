"""The calibrated tree beside prompt tokens: what export takes over from it, and how it gets there."""

import dataclasses
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import ppd
from ppd.bundle import open_bundle
from ppd.decision import CALIBRATED_ELSEWHERE, Decision
from ppd.errors import ModelError
from ppd.planning.calibrated_tree import load_calibrated_tree
from ppd.planning.for_target import tree_for_target
from ppd.runtime import load
from ppd.targets import find_target
from tests.copies import calibrate_to
from tests.infos import RECORD
from tests.trees import CHAIN

SHIPPED = Path(ppd.__file__).parent / "models" / "tinypy" / "prompt_tokens"
SCRIPT = Path(__file__).parents[2] / "examples" / "tinypy" / "ship_tree.py"


@pytest.fixture
def prompt_tokens(tmp_path: Path) -> Path:
    return Path(shutil.copytree(SHIPPED, tmp_path / "prompt_tokens"))


def ship(*arguments: object) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, str(SCRIPT), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)


def calibrated(bundle: Path, *, draft: bool) -> Path:
    calibrate_to(bundle, CHAIN, RECORD, draft=draft)
    return bundle


def test_the_embedded_model_decodes_as_its_calibration_found_faster(tinypy_bundle: Path) -> None:
    shipped, manifest = load_calibrated_tree(SHIPPED / "tree-cpu.json"), open_bundle(tinypy_bundle).manifest

    assert manifest.decision == Decision(draft=shipped.draft, basis=CALIBRATED_ELSEWHERE, record=shipped.calibration)
    assert ("ppd" in load(tinypy_bundle, threads=1).sources()) is shipped.draft


@pytest.mark.parametrize("draft", [True, False])
def test_a_shipped_tree_brings_its_decision_and_its_figures(own_bundle: Path, prompt_tokens: Path, draft: bool) -> None:
    done = ship(calibrated(own_bundle, draft=draft), "--to", prompt_tokens)

    assert (done.returncode, done.stdout.strip()) == (0, str(prompt_tokens / "tree-cpu.json")), done
    manifest = open_bundle(own_bundle).manifest
    chosen = tree_for_target(find_target("cpu"), manifest.model, "fp32", 512, 3, prompt_tokens)
    assert chosen.tree == CHAIN
    assert chosen.decision == Decision(draft=draft, basis=CALIBRATED_ELSEWHERE, record=RECORD)
    other = tree_for_target(find_target("cpu"), manifest.model, "int8", 512, 3, prompt_tokens)
    assert other.decision.record != RECORD  # measured in another precision
    card = (prompt_tokens / "README.md").read_text("utf-8")
    assert card.count("`tree-cpu.json`") == 1
    assert card.startswith((SHIPPED / "README.md").read_text("utf-8").partition("\n\n`tree-cpu.json`")[0])
    for words in ("2001-02-03", "Elsewhere", "0.64 measured", "drafting is faster" if draft else "plain decoding is"):
        assert words in card.rpartition("`tree-cpu.json`")[2]


def test_a_bundle_that_was_not_calibrated_ships_nothing(own_bundle: Path, prompt_tokens: Path) -> None:
    done = ship(own_bundle, "--to", prompt_tokens)

    assert done.returncode == 1
    assert "run ppd calibrate" in done.stderr
    assert (prompt_tokens / "tree-cpu.json").read_bytes() == (SHIPPED / "tree-cpu.json").read_bytes()


def test_a_tree_is_not_shipped_with_other_prompt_tokens(own_bundle: Path, prompt_tokens: Path) -> None:
    tensor = prompt_tokens / "adapter_model.safetensors"
    tensor.write_bytes(tensor.read_bytes()[:-4] + b"\0\0\0\0")

    done = ship(calibrated(own_bundle, draft=True), "--to", prompt_tokens)

    assert done.returncode == 1
    assert "other prompt tokens" in done.stderr


@pytest.mark.parametrize(
    "change",
    [
        {"schema": 2},
        {"draft": None},
        {"tree": {}},
        {"calibration": {**dataclasses.asdict(RECORD), "engine": 3}},
        {"more": 1},
    ],
)
def test_a_damaged_file_is_one_line(prompt_tokens: Path, change: dict[str, object]) -> None:
    path = prompt_tokens / "tree-cpu.json"
    path.write_text(json.dumps(json.loads(path.read_text("utf-8")) | change), "utf-8")

    with pytest.raises(ModelError, match=r"tree-cpu\.json holds no calibrated tree \(.+\); write it again") as caught:
        load_calibrated_tree(path)
    assert "\n" not in str(caught.value)
