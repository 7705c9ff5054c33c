"""The command line: what its commands print where, their exit codes, and that bad input is one line."""

import importlib.metadata
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer

import ppd
from ppd import cli
from ppd.bundle import open_bundle
from ppd.manifest import MANIFEST_FILE
from ppd.models.registry import load_registry
from ppd.planning.hand_made import hand_made_tree
from ppd.precision import PRECISIONS
from ppd.targets import load_targets
from ppd.tree import Node, Tree, json_from_tree
from tests.cli.helpers import PROMPT, Outcome, Run, fails, misused

COMMANDS = ("export", "refold", "generate", "check", "inspect", "bench", "targets", "models", "doctor")


# ---- entry points, version, help


@pytest.mark.parametrize("arguments", [["--version"], ["--help"]])
@pytest.mark.parametrize("name", ["ppd", "ppd-export"])
def test_the_installed_commands_start(name: str, arguments: list[str]) -> None:
    script = shutil.which(name, path=Path(sys.executable).parent)
    assert script is not None, "the package's commands are not installed"
    done = subprocess.run([script, *arguments], capture_output=True, text=True, timeout=300, check=False)

    if name == "ppd-export" and arguments == ["--version"]:
        assert done.returncode == 2
        assert "No such option: --version" in done.stderr
    else:
        assert (done.returncode, done.stderr) == (0, "")
        assert ("--precision" in done.stdout) == (name == "ppd-export")


def test_version_is_that_of_the_package(run: Run) -> None:
    assert run("--version") == Outcome(0, f"ppd-edge {ppd.__version__}\n", "")
    assert importlib.metadata.version("ppd-edge") == ppd.__version__


def test_help_of_every_command_imports_nothing_heavy() -> None:
    code = """
import contextlib, io, json, sys, typer
from ppd import cli
heavy = ("torch", "transformers", "onnx", "onnxruntime", "onnxscript", "tokenizers", "huggingface_hub")
command = typer.main.get_command(cli.app)
seen = {}
for arguments in ([], *([name] for name in command.commands)):
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.suppress(SystemExit):
        command([*arguments, "--help"])
    imported = [name for name in heavy if name in sys.modules]
    seen[" ".join(arguments)] = [imported, "Usage:" in out.getvalue() and "--help" in out.getvalue()]
print(json.dumps(seen))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=True)
    seen = json.loads(done.stdout)

    assert {"", *COMMANDS} <= seen.keys()
    assert seen == {name: [[], True] for name in seen}


@pytest.mark.parametrize("name", COMMANDS)
def test_every_argument_and_option_has_a_help_text(name: str) -> None:
    command: Any = typer.main.get_command(cli.app)

    assert command.commands[name].help
    assert [parameter.name for parameter in command.commands[name].params if not parameter.help] == []


def test_export_is_the_same_command_under_both_names(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    one, other = run("export", "--help").out, run("--help", entry=cli.export_main).out

    assert one.split("Options:")[1] == other.split("Options:")[1]
    for option in ("model", "gpu", "prompt-tokens", "precision", "tree", "context", "out", "force"):
        assert f"--{option}" in one


def test_no_command_shows_the_commands_as_a_usage_error(run: Run) -> None:
    outcome = run()

    assert outcome.code == 2
    assert all(name in outcome.out + outcome.err for name in COMMANDS)


# ---- misuse


@pytest.mark.parametrize("command", [["generate", ..., PROMPT], ["check", ...], ["inspect", ...], ["bench", ...]])
def test_an_unknown_bundle_is_one_line(run: Run, tmp_path: Path, command: list[Any]) -> None:
    missing = tmp_path / "no bundle"

    fails(run(*(missing if word is ... else word for word in command)), "there is no folder", "no bundle", "ppd-export")
    assert list(tmp_path.iterdir()) == []


def test_a_message_of_several_lines_becomes_one(run: Run, tmp_path: Path) -> None:
    fails(run("inspect", tmp_path / "two\nlines"), "two lines")


@pytest.mark.parametrize("arguments", [["unknown"], ["check"], ["refold", "BUNDLE"], ["export", "--model", "tinypy"]])
def test_misuse_of_a_command_is_a_usage_error(run: Run, arguments: list[str]) -> None:
    misused(run(*arguments))


# ---- check, inspect, targets, models


def test_check_tells_what_was_compared(run: Run, tinypy_bundle: Path) -> None:
    outcome = run("check", tinypy_bundle, "--threads", 1)

    assert (outcome.code, outcome.err) == (0, "")
    assert f"{tinypy_bundle}: every file matches its hash\n" in outcome.out
    assert re.search(r"onnxruntime .*: \d+ rows agree with PyTorch, largest difference of a logit", outcome.out)


def test_check_names_a_damaged_file(run: Run, own_bundle: Path) -> None:
    (own_bundle / "tokenizer.json").unlink()
    (own_bundle / "tokenizer.json").write_text("{}", "utf-8")

    fails(run("check", own_bundle), "tokenizer.json", "damaged", "again")


def test_inspect_describes_the_bundle(run: Run, tinypy_bundle: Path) -> None:
    outcome = run("inspect", tinypy_bundle)

    assert (outcome.code, outcome.err) == (0, "")
    for words in ("tinypy", "trained (tinypy/prompt_tokens)", "provenance", "root  *", "└─", "tree.bin"):
        assert words in outcome.out


def test_inspect_json_is_the_manifest(run: Run, tinypy_bundle: Path) -> None:
    outcome = run("inspect", tinypy_bundle, "--json")

    assert (outcome.code, outcome.err) == (0, "")
    assert json.loads(outcome.out) == json.loads((tinypy_bundle / MANIFEST_FILE).read_bytes())


def test_targets_lists_every_preset(run: Run) -> None:
    outcome = run("targets")

    assert (outcome.code, outcome.err) == (0, "")
    targets, engines = outcome.out.split("\n\n")
    assert [line.split()[0] for line in targets.splitlines()] == ["target", *load_targets()]
    rows = [re.split(" {2,}", line) for line in engines.splitlines()]
    assert rows[0] == ["engine", *(f"{name} runs in" for name in PRECISIONS)]
    assert ["onnxruntime", "fp32", "fp32", "int8", PRECISIONS["int4"].computes_in["onnxruntime"]] in rows
    assert re.search(
        r"^rtx-4090 +NVIDIA GeForce RTX 4090 +8\.9 +24 +1,008 +165.2 +fp16 +10\.15\+ RTX$", outcome.out, re.MULTILINE
    )


def test_models_lists_every_known_model(run: Run) -> None:
    outcome = run("models")

    assert (outcome.code, outcome.err) == (0, "")
    assert [line.split()[0] for line in outcome.out.splitlines()] == ["model", *load_registry()]
    assert re.search(r"^tinypy +in this package", outcome.out, re.MULTILINE)


# ---- refold


def test_refold_folds_a_file_and_none(run: Run, own_bundle: Path, tmp_path: Path) -> None:
    tree = Tree(3, {3: (Node((), 3), Node((0,), 3), Node((0, 0), 3))})
    (tmp_path / "mine.json").write_text(json_from_tree(tree), "utf-8")

    outcome = run("refold", own_bundle, tmp_path / "mine.json")
    assert outcome == Outcome(0, f"{own_bundle}: folded mine.json (rows per state: state 3: 12)\n", "")
    assert json_from_tree(open_bundle(own_bundle).tree) == json_from_tree(tree)

    outcome = run("refold", own_bundle, "none")
    assert outcome == Outcome(0, f"{own_bundle}: folded none (rows per state: state 0: 1)\n", "")
    assert not open_bundle(own_bundle).tree.drafts
    fails(run("generate", own_bundle, PROMPT, "--draft", "always"), "ppd refold")
    fails(run("bench", own_bundle, "--draft", "always"), "ppd refold")


def test_refold_refuses_a_tree_that_does_not_fit(run: Run, own_bundle: Path, tmp_path: Path) -> None:
    before = (own_bundle / MANIFEST_FILE).read_bytes()
    (tmp_path / "other.json").write_text(json_from_tree(Tree(1, {1: (Node((), 1),)})), "utf-8")
    (tmp_path / "broken.json").write_text("{", "utf-8")

    fails(run("refold", own_bundle, tmp_path / "other.json"), "for 1 prompt tokens, the model has 3")
    fails(run("refold", own_bundle, tmp_path / "broken.json"), "broken.json is not JSON")
    fails(run("refold", own_bundle, tmp_path / "missing.json"), "missing.json")
    fails(run("refold", tmp_path / "nowhere", "none"), "ppd-export")
    assert (own_bundle / MANIFEST_FILE).read_bytes() == before


def test_refold_folds_the_hand_made_tree_back(run: Run, own_bundle: Path) -> None:
    assert run("refold", own_bundle, "none").code == 0
    assert not open_bundle(own_bundle).tree.drafts
    assert run("refold", own_bundle, "hand-made").code == 0
    assert json_from_tree(open_bundle(own_bundle).tree) == json_from_tree(hand_made_tree(3))
    assert open_bundle(own_bundle).manifest.tree.source == "hand-made"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_output_that_cannot_be_written_is_one_line() -> None:
    ppd_command = Path(sys.executable).parent / "ppd"
    with Path("/dev/full").open("w") as full:
        output = subprocess.run([ppd_command, "models"], stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert output.returncode == 1
    assert re.fullmatch(r"error: .*No space left.*\n", output.stderr), output.stderr


def test_a_name_that_is_too_long_is_one_line(run: Run, tmp_path: Path) -> None:
    fails(run("check", tmp_path / ("x" * 300)), "too long")
    fails(run("export", "--model", "tinypy", "--gpu", "cpu", "--out", tmp_path / ("x" * 300)), "too long")
