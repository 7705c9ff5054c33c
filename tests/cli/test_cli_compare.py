"""`ppd compare`: tables, JSON, the picture, Ctrl-C, and what is refused."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from ppd.bundle import open_bundle
from ppd.changes import add_file, write_manifest
from ppd.runtime.model import Model
from ppd.tree import Tree
from tests.cli.helpers import Run, fails
from tests.copies import link_bundle, refolded_copy

QUICK = ("--turns", 1, "--max-new-tokens", 6, "--threads", 1)


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    file = tmp_path / "prompts.txt"
    file.write_text("def fibonacci(n):\nimport os\n", "utf-8")
    return file


def rows(text: str) -> list[list[str]]:
    """The cells of every table, without titles and lines."""
    lines = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in text.splitlines() if line[:1] == "|"]
    return [cells for cells in lines if cells[0] != "way" and set(cells[0]) != {"-"}]


def test_bundles_of_two_models_have_a_table_and_a_panel_each(
    run: Run, tinypy_bundle: Path, own_bundle: Path, tmp_path: Path, prompts: Path
) -> None:
    picture = tmp_path / "bars.svg"
    manifest = open_bundle(own_bundle).manifest
    renamed = dataclasses.replace(manifest, model=dataclasses.replace(manifest.model, name="other"))
    write_manifest(own_bundle, renamed)
    outcome = run("compare", tinypy_bundle, own_bundle, "--prompts", prompts, "--plot", picture, *QUICK)

    assert (outcome.code, outcome.err) == (0, "")
    titles = [line for line in outcome.out.splitlines() if line.startswith("#")]
    assert titles == ["### tinypy, fp32", "### other, fp32"]
    table = rows(outcome.out)
    names = [cells[0] for cells in table]
    assert names[:3] == ["plain", "ppd, at every step", "ppd"]
    assert names.count("plain") == 2
    assert {len(cells) for cells in table} == {8}
    assert table[0][2:] == ["1", "1.00", "0 (0)", "0", "0", "0"]
    assert int(table[1][5].replace(",", "")) > 1_000_000  # the tree tables
    assert table[1][6] == f"{3 * open_bundle(tinypy_bundle).manifest.model.hidden_size:,}"
    assert table[1][7] == "14.0 min"
    drawn = picture.read_text("utf-8")
    assert all(f"<!-- {text} -->" in drawn for text in ("plain", "lookup", "tinypy, fp32", "other, fp32"))


def test_a_draft_model_adds_two_ways(run: Run, tinypy_bundle: Path, prompts: Path) -> None:
    flags = ("--drafter", tinypy_bundle, "--prompts", prompts, "--json")
    outcome = run("compare", tinypy_bundle, *flags, *QUICK)

    assert (outcome.code, outcome.err) == (0, "")
    report = json.loads(outcome.out)
    assert report["drafter"] == "tinypy"
    assert [way["way"] for way in report["ways"]][-2:] == ["model", "lookup + model"]
    assert all(way["identical_share"] == 1 for way in report["ways"])
    assert report["ways"][-2]["trained_parameters"] == open_bundle(tinypy_bundle).manifest.model.num_parameters


def test_questions_are_chosen_as_for_a_bench(run: Run, tinypy_bundle: Path, tmp_path: Path) -> None:
    file = tmp_path / "prompts.jsonl"
    file.write_text("".join(json.dumps({"prompt": f"x = {i}", "category": "ab"[i % 2]}) + "\n" for i in range(6)))
    flags = ("--prompts", file, "--category", "b", "--questions", 2, "--seed", 1, "--json")
    outcome = run("compare", tinypy_bundle, *flags, *QUICK)

    assert outcome.code == 0, outcome
    assert {(way["questions"], way["pairs"]) for way in json.loads(outcome.out)["ways"]} == {(2, 2)}


@pytest.mark.parametrize("answers", [0, 4 * 2 + 4 + 1])
def test_ctrl_c_prints_what_was_measured(
    run: Run, tinypy_bundle: Path, prompts: Path, monkeypatch: pytest.MonkeyPatch, answers: int
) -> None:
    generate, calls = Model.generate, []

    def interrupted(model: Model, *arguments: Any, **options: Any) -> object:
        calls.append(1)
        if len(calls) > answers:  # eight warm up
            raise KeyboardInterrupt
        return generate(model, *arguments, **options)

    monkeypatch.setattr(Model, "generate", interrupted)
    outcome = run("compare", tinypy_bundle, "--prompts", prompts, *QUICK)

    assert outcome.code == 130
    assert len(rows(outcome.out)) == (4 if answers else 0)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["{bundle}"], ["is named twice", "once"]),
        (["{empty}"], ["empty", "manifest.json"]),
        (["{same}"], ["same drafts in no way", "leave it out"]),
        (["--drafter", "{other}"], ["tokenizer", "draft model"]),
        (["--drafter", "{empty}"], ["empty", "manifest.json"]),
        (["--turns", 0], ["turns 0", "expected"]),
        (["--prompts", "missing"], ["missing", "does not exist"]),
        (["--plot", "bars.nope"], ["bars.nope", ".svg"]),
    ],
)
def test_a_comparison_that_cannot_be_made_is_one_line(
    run: Run, tinypy_bundle: Path, tmp_path: Path, flags: list[object], words: list[str]
) -> None:
    empty, other = tmp_path / "empty", link_bundle(tinypy_bundle, tmp_path / "other")
    empty.mkdir()
    tokenizer = json.loads((other / "tokenizer.json").read_text("utf-8"))
    vocabulary = tokenizer["model"]["vocab"]
    vocabulary["Ġbeen_another"] = vocabulary.pop(next(word for word in vocabulary if len(word) > 3))
    tokenizer["model"]["merges"] = []
    add_file(open_bundle(other), "tokenizer.json", json.dumps(tokenizer).encode())
    same = refolded_copy(tinypy_bundle, tmp_path / "same", Tree.none(3))
    places = {"bundle": tinypy_bundle, "empty": empty, "other": other, "same": same}
    arguments = [flag.format(**places) if isinstance(flag, str) else flag for flag in flags]

    fails(run("compare", tinypy_bundle, "--json", *arguments), *words)
