"""`ppd bench`: the table, JSON, the picture, Ctrl-C, and what is refused."""

import dataclasses
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from ppd.bundle import open_bundle
from ppd.cli.bench_table import describe_bench
from ppd.runtime.model import Model
from tests.calibrate.test_calibrate import REPORT
from tests.chats import chat_bundle
from tests.cli.helpers import Run, fails

QUICK = ("--turns", 1, "--max-new-tokens", 8, "--threads", 1)
SOME = [
    {"task_id": "HumanEval/0", "prompt": "def fibonacci(n):\n"},
    {"task_id": "HumanEval/1", "prompt": "import os\n"},
    {"prompt": "class Stack:\n"},
]


def written(folder: Path, records: Sequence[Mapping[str, object]] = SOME) -> Path:
    file = folder / "prompts.jsonl"
    file.write_text("".join(json.dumps(record) + "\n" for record in records), "utf-8")
    return file


def table(text: str) -> list[list[str]]:
    """The cells of a table in Markdown."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]


def test_the_table_is_markdown_with_a_row_for_each_category_and_for_all(
    run: Run, tinypy_bundle: Path, tmp_path: Path
) -> None:
    outcome = run("bench", tinypy_bundle, "--prompts", written(tmp_path), *QUICK)

    assert (outcome.code, outcome.err) == (0, "")
    titles, line, *rows = table(outcome.out)
    assert {len(cells) for cells in (titles, line, *rows)} == {11}
    assert all(re.fullmatch("-{4,}" if i == 0 else "-{3,}:", rule) for i, rule in enumerate(line))
    assert len({len(shown) for shown in outcome.out.splitlines() if shown.startswith("|")}) == 1, "columns align"
    assert [row[:3] for row in rows] == [["humaneval", "2", "2"], ["prompt", "1", "1"], ["all", "3", "3"]]
    assert re.fullmatch(r"\d+\.\d\d \(\d+\.\d\d to \d+\.\d\d\)", rows[0][3])
    assert re.fullmatch(r"\d+\.\d\d", rows[1][3])  # one pair has no interval
    assert rows[2][9:] == ["0 (0)", "100 %"]
    assert "tinypy, onnxruntime" in outcome.out


def test_on_a_narrow_terminal_the_columns_that_matter_most_are_shown_and_the_others_named() -> None:
    whole, narrow = describe_bench(REPORT), describe_bench(REPORT, width=80)

    assert describe_bench(REPORT, width=200) == whole
    assert max(map(len, (line for line in narrow.splitlines() if line.startswith("|")))) <= 80
    titles, (whole_titles, *_) = table(narrow)[0], table(whole)
    assert titles == ["category", "pairs", "speed-up", "τ", "plain, tokens/s", "drafting, tokens/s"]
    note = next(line for line in narrow.splitlines() if line.startswith("Not shown"))
    assert all(title in note for title in whole_titles if title not in titles)


def test_json_has_the_figures_of_all_and_of_each_category(run: Run, tinypy_bundle: Path, tmp_path: Path) -> None:
    file = tmp_path / "prompts.txt"
    file.write_text("def fibonacci(n):\n\nclass Stack:\n", "utf-8")
    outcome = run("bench", tinypy_bundle, "--json", "--prompts", file, *QUICK)
    figures = json.loads(outcome.out)

    assert (outcome.code, outcome.err) == (0, "")
    assert all(figures[name] > 0 for name in ("plain_tokens_per_second", "ppd_tokens_per_second", "speedup"))
    assert figures["acceptance_length"] >= 1
    assert figures["identical_share"] == 1
    assert (figures["questions"], figures["turns"], figures["max_new_tokens"]) == (2, 1, 8)
    assert figures["speedup_min"] <= figures["speedup_low"] <= figures["speedup"] <= figures["speedup_high"]
    assert figures["model"] == "tinypy"
    assert figures["categories"]["text"] == {name: figures[name] for name in figures["categories"]["text"]}


def test_the_built_in_set_is_one_row_of_five_questions(run: Run, tinypy_bundle: Path) -> None:
    outcome = run("bench", tinypy_bundle, "--turns", 1, "--max-new-tokens", 2, "--threads", 1)

    assert (outcome.code, outcome.err) == (0, "")
    assert [row[:3] for row in table(outcome.out)[2:]] == [["built-in", "5", "5"]]


def test_questions_of_a_conversation_are_chosen_by_category_and_number(
    run: Run, tinypy_bundle: Path, tmp_path: Path
) -> None:
    chats = chat_bundle(tinypy_bundle, tmp_path / "bundle")
    names = ("writing", "qa")
    file = written(
        tmp_path, [{"question_id": i, "category": names[i % 2], "turns": ["x = 1", "y = 2"]} for i in range(6)]
    )
    outcome = run("bench", chats, "--prompts", file, "--category", "qa", "--questions", 2, "--seed", 3, *QUICK)

    assert (outcome.code, outcome.err) == (0, "")
    assert [row[:3] for row in table(outcome.out)[2:]] == [["qa", "2", "4"]]


def test_the_picture_has_a_bar_for_each_row(run: Run, tinypy_bundle: Path, tmp_path: Path) -> None:
    picture = tmp_path / "bars.svg"
    outcome = run("bench", tinypy_bundle, "--prompts", written(tmp_path), "--plot", picture, *QUICK)

    assert outcome.code == 0, outcome
    drawn = picture.read_text("utf-8")
    assert all(f"<!-- {name} -->" in drawn for name in ("humaneval", "prompt", "all"))


def test_sources_and_what_is_left_out_are_said_below_the_table() -> None:
    report = dataclasses.replace(REPORT, left_out=3, categories={"a|b": REPORT})

    text = describe_bench(report)

    assert ["a\\|b", "1"] in [cells[:2] for cells in table(text)]
    assert "drafting from lookup, ppd." in text
    assert "context: 3 turns" in text


@pytest.mark.parametrize("answers", [0, 10 + 4 + 1])
def test_ctrl_c_prints_what_was_measured(
    run: Run, tinypy_bundle: Path, monkeypatch: pytest.MonkeyPatch, answers: int
) -> None:
    generate, calls = Model.generate, []

    def interrupted(model: Model, *arguments: Any, **options: Any) -> object:
        calls.append(1)
        if len(calls) > answers:  # ten warm up
            raise KeyboardInterrupt
        return generate(model, *arguments, **options)

    monkeypatch.setattr(Model, "generate", interrupted)
    outcome = run("bench", tinypy_bundle, *QUICK)

    assert outcome.code == 130
    assert [row[:3] for row in table(outcome.out)[2:]] == ([["built-in", "2", "2"]] if answers else [])


@pytest.mark.parametrize(
    ("flags", "sources"), [([], None), (["--draft", "always"], ["ppd"]), (["--draft", "lookup"], ["lookup"])]
)
def test_bench_compares_what_the_bundle_does_or_the_sources_asked_for(
    run: Run, own_bundle: Path, flags: list[str], sources: list[str] | None
) -> None:
    outcome = run("bench", own_bundle, *QUICK, "--json", *flags)

    assert outcome.code == 0, outcome
    report = json.loads(outcome.out)
    pays = open_bundle(own_bundle).manifest.decision.draft is not False
    assert report["sources"] == (sources or ["lookup", *["ppd"] * pays])
    assert report["identical_share"] == 1 or report["excused_forks"] == report["forks"]


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--turns", 0], ["turns 0", "expected"]),
        (["--turns", -1], ["turns -1", "expected"]),
        (["--max-new-tokens", 1], ["max_new_tokens is 1", "expected"]),
        (["--questions", 0], ["questions is 0", "expected"]),
        (["--category", "poetry"], ["'poetry'", "built-in"]),
        (["--prompts", "missing"], ["missing does not exist", "expected"]),
        (["--prompts", "bad.jsonl"], ["bad.jsonl, line 2", "expected"]),
        (["--plot", "bars.nope"], ["bars.nope", ".svg"]),
        (["--draft", "ppd,magic"], ["--draft is 'ppd,magic'", "expected", "lookup"]),
        (["--draft", "table"], ["no table of n-grams", "--prompt-tokens"]),
    ],
)
def test_a_bench_that_cannot_be_run_is_one_line(
    run: Run,
    tinypy_bundle: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    flags: list[object],
    words: list[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bad.jsonl").write_text('{"prompt": " "}\n{"turns": []}\n', "utf-8")

    fails(run("bench", tinypy_bundle, "--json", *flags), *words)


def test_questions_need_a_chat_template(run: Run, tinypy_bundle: Path, tmp_path: Path) -> None:
    file = written(tmp_path, [{"question": "How many?", "answer": "4"}])

    fails(run("bench", tinypy_bundle, "--prompts", file), "no chat template")
