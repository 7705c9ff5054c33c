"""`ppd train`: data given in both ways, what it prints, and bad input in one line."""

import re
from pathlib import Path

import pytest
import torch

from ppd.models.adapter import load_prompt_tokens
from tests.cli.helpers import Run, fails, misused
from tests.train.tiny_runs import save_chat_model, save_model, save_text, steps_in

FAST = ("--steps", 3, "--batch-size", 2, "--groups", 4, "--length", 32, "--rollouts", 16)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture
def texts(tmp_path: Path) -> list[Path]:
    return [save_text(tmp_path / f"{i}.txt", seed=i) for i in range(3)]


def test_data_may_be_named_at_once_or_one_by_one(run: Run, model: Path, texts: list[Path], tmp_path: Path) -> None:
    one_by_one = [word for text in texts for word in ("--data", text)]
    for name, data in (("a", ["--data", *texts]), ("b", one_by_one), ("c", ["--data", texts[0]])):
        outcome = run("train", "--model", model, *data, "--out", tmp_path / name, *FAST)
        assert (outcome.code, outcome.err) == (0, ""), outcome
        assert f"{tmp_path / name}: 3 steps, " in outcome.out
        assert outcome.out.count("held-out") == 2

    a, b, c = (load_prompt_tokens(tmp_path / name, 32) for name in "abc")
    assert torch.equal(a, b)
    assert not torch.equal(a, c)


def test_every_option_arrives(run: Run, model: Path, texts: list[Path], tmp_path: Path) -> None:
    others = ("--prompt-tokens", 2, "--loss", "kl-tv", "--init", "frequent", "--source", "rollouts", "--seed", 5)
    more = ("--recipe", "one-group", "--temperature", 0.8, "--learning-rate", 0.003)

    outcome = run("train", "--model", model, "--data", *texts, "--out", tmp_path / "out", *FAST, *others, *more)

    assert outcome.code == 0, outcome
    assert load_prompt_tokens(tmp_path / "out", 32).shape == (2, 32)
    card = (tmp_path / "out" / "README.md").read_text("utf-8")
    command = re.search(r"- command: `ppd (.*)`", card)
    assert command is not None
    flags = command[1].split()
    given = ["--seed", "5", "--recipe", "one-group", "--source", "rollouts", "--learning-rate", "0.003", "--out", "out"]
    given += ["--prompt-tokens", "2", "--temperature", "0.8", *map(str, FAST)]
    for flag, value in zip(given[::2], given[1::2], strict=True):
        assert flags[flags.index(flag) + 1] == value
    assert not {"--loss", "--init", "--tier", "--minutes"} & set(flags)
    for words in ("loss kl-tv", "init frequent", "tier tokens", "dtype auto"):
        assert words in card.split("- otherwise: ")[1].splitlines()[0]


def test_a_chat_model_asks_itself_and_says_so(run: Run, tmp_path: Path) -> None:
    model = save_chat_model(tmp_path / "chat")

    outcome = run("train", "--model", model, "--data", "self", "--out", tmp_path / "out", *FAST, "--dtype", "bfloat16")

    assert outcome.code == 0, outcome
    assert outcome.out.startswith("weights: bfloat16 on cpu\nmemory: 0.0 GB (")
    assert "\nquestions: 17 in " in outcome.out
    assert "\nrollouts: " in outcome.out
    assert "held-out rollouts: " in outcome.out


def test_minutes_end_a_run(run: Run, model: Path, texts: list[Path], tmp_path: Path) -> None:
    sizes = FAST[2:]

    outcome = run("train", "--model", model, "--data", *texts, "--out", tmp_path / "out", "--minutes", 0.01, *sizes)

    assert outcome.code == 0, outcome
    assert len(steps_in(tmp_path / "out")) > 1


def test_bad_input_is_one_line(run: Run, model: Path, texts: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    (tmp_path / "bad.jsonl").write_text('{"txt": "x"}\n', "utf-8")
    named = ("train", "--model", model, "--data", texts[0], "--out", out)

    fails(run(*named), "--minutes or --steps")
    fails(run(*named, "--steps", 3, "--minutes", 1), "--minutes or --steps")
    fails(run(*named, "--resume", *FAST), "no earlier run")
    fails(run("train", "--model", model, "--data", "self", "--out", out, *FAST), "no chat template")
    fails(run(*named, tmp_path / "bad.jsonl", *FAST), "line 1 has the keys ['txt']")
    fails(run(*named, tmp_path / "nowhere", *FAST), "nowhere does not exist")
    fails(run("train", "--model", tmp_path, "--data", texts[0], "--out", out, *FAST), "config.json")
    misused(run("train", "--model", model, "--out", out, *FAST), "--data")
    assert not out.exists()
