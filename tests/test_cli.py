"""The command line: what it prints where, its exit codes, and that bad input is one line."""

import importlib.metadata
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import typer

import ppd
from ppd import cli
from ppd.bundle import open_bundle
from ppd.errors import ExportError
from ppd.manifest import MANIFEST_FILE
from ppd.models.registry import load_registry
from ppd.targets import load_targets
from ppd.tree import Node, Tree, json_from_tree
from tests.copies import link_bundle

PROMPT = "def fibonacci(n):"
COMMANDS = ("export", "refold", "generate", "check", "inspect", "bench", "targets", "models")


@dataclass(frozen=True)
class Outcome:
    """What a command did."""

    code: int
    out: str
    err: str


Run = Callable[..., Outcome]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs `ppd` in this process, through its entry point."""

    def call(*arguments: object, entry: Callable[[], None] = cli.main) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["ppd", *map(str, arguments)])
        capsys.readouterr()
        code: Any = 0
        try:
            entry()
        except SystemExit as end:
            code = end.code or 0
        return Outcome(code, *capsys.readouterr())

    return call


def fails(outcome: Outcome, *words: str) -> None:
    """Exit code 1, one line on standard error that holds the words, nothing on standard output."""
    assert (outcome.code, outcome.out) == (1, ""), outcome
    assert re.fullmatch(r"error: [^\n]+\n", outcome.err), outcome
    for word in words:
        assert word in outcome.err


def misused(outcome: Outcome, *words: str) -> None:
    """Exit code 2, a usage message on standard error, nothing on standard output."""
    assert (outcome.code, outcome.out) == (2, ""), outcome
    assert "Usage:" in outcome.err
    for word in words:
        assert word in outcome.err


def generate(run: Run, bundle: Path, *arguments: object) -> dict[str, Any]:
    """`ppd generate --json`, read."""
    outcome = run("generate", bundle, *arguments, "--json", "--threads", 1)
    assert (outcome.code, outcome.err) == (0, "")
    answer: dict[str, Any] = json.loads(outcome.out)
    return answer


# ---- entry points, version, help


@pytest.mark.parametrize("arguments", [["--version"], ["--help"]])
@pytest.mark.parametrize("name", ["ppd", "ppd-export"])
def test_the_installed_commands_start(name: str, arguments: list[str]) -> None:
    script = shutil.which(name, path=Path(sys.executable).parent)
    assert script is not None, "the package's commands are not installed"
    done = subprocess.run([script, *arguments], capture_output=True, text=True, timeout=60, check=False)

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
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
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


# ---- generate


def test_generate_prints_the_text(run: Run, tinypy_bundle: Path) -> None:
    outcome = run("generate", tinypy_bundle, PROMPT, "--max-new-tokens", 8)

    assert (outcome.code, outcome.err) == (0, "")
    assert outcome.out == generate(run, tinypy_bundle, PROMPT, "--max-new-tokens", 8)["text"] + "\n"
    assert len(outcome.out) > 8


def test_generate_json_is_one_object_with_the_names_of_the_result(run: Run, tinypy_bundle: Path) -> None:
    outcome = run("generate", tinypy_bundle, PROMPT, "--max-new-tokens", 8, "--json")
    answer = json.loads(outcome.out)

    assert outcome.out.count("\n") == 1
    assert answer.keys() == {"text", "token_ids", "finish_reason", "stats"}
    assert answer["stats"].keys() == {
        "prompt_tokens",
        "steps",
        "accepted_per_step",
        "acceptance_length",
        "prefill_ms",
        "decode_ms",
        "tokens_per_second",
    }
    assert (len(answer["token_ids"]), answer["finish_reason"]) == (8, "length")
    assert sum(answer["stats"]["accepted_per_step"]) == 7
    assert answer["stats"]["steps"] == len(answer["stats"]["accepted_per_step"])
    assert answer["stats"]["acceptance_length"] == pytest.approx(7 / answer["stats"]["steps"])
    assert answer["stats"]["tokens_per_second"] == pytest.approx(7000 / answer["stats"]["decode_ms"])


def test_drafting_and_plain_decoding_print_the_same(run: Run, tinypy_bundle: Path) -> None:
    plain = generate(run, tinypy_bundle, PROMPT, "--plain", "--max-new-tokens", 24)
    drafted = generate(run, tinypy_bundle, PROMPT, "--draft", "--max-new-tokens", 24)

    assert (drafted["text"], drafted["token_ids"]) == (plain["text"], plain["token_ids"])
    assert (plain["stats"]["acceptance_length"], plain["stats"]["steps"]) == (1, 23)
    assert drafted["stats"]["acceptance_length"] > 1
    for flag in ("--plain", "--draft"):
        assert run("generate", tinypy_bundle, PROMPT, flag, "--max-new-tokens", 24).out == plain["text"] + "\n"


def test_stats_go_to_standard_error(run: Run, tinypy_bundle: Path) -> None:
    outcome = run("generate", tinypy_bundle, PROMPT, "--max-new-tokens", 8, "--stats", "--plain")

    assert outcome.out == generate(run, tinypy_bundle, PROMPT, "--max-new-tokens", 8)["text"] + "\n"
    assert re.fullmatch(
        r"8 tokens in 7 steps after prefill, acceptance length 1\.00, [\d.]+ tokens/s, "
        r"prefill [\d.]+ ms, decode [\d.]+ ms, finished: length\n",
        outcome.err,
    )


def test_stats_of_an_answer_without_steps_have_dashes(run: Run, tinypy_bundle: Path) -> None:
    outcome = run("generate", tinypy_bundle, PROMPT, "--max-new-tokens", 1, "--stats", "--json")

    assert json.loads(outcome.out)["stats"]["acceptance_length"] is None
    assert outcome.err.startswith("1 tokens in 0 steps after prefill, acceptance length -, - tokens/s")


@pytest.mark.parametrize("separator", [" ", ",", ", ", "\n"])
def test_ids_are_taken_instead_of_text(run: Run, tinypy_bundle: Path, separator: str) -> None:
    ids = separator.join(["1", "17", "200"])

    answer = generate(run, tinypy_bundle, "--ids", ids, "--max-new-tokens", 4)
    assert answer["stats"]["prompt_tokens"] == 3
    assert len(answer["token_ids"]) == 4


def test_a_prompt_is_read_from_standard_input(
    run: Run, tinypy_bundle: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "prompt").write_text(PROMPT, "utf-8")
    with (tmp_path / "prompt").open(encoding="utf-8") as file:
        monkeypatch.setattr(sys, "stdin", file)
        piped = generate(run, tinypy_bundle, "-", "--max-new-tokens", 6)

    assert piped["token_ids"] == generate(run, tinypy_bundle, PROMPT, "--max-new-tokens", 6)["token_ids"]


def test_generation_ends_at_a_stop_text(run: Run, tinypy_bundle: Path) -> None:
    whole = generate(run, tinypy_bundle, PROMPT, "--max-new-tokens", 24)["text"]
    stop = whole[len(whole) // 2 :][:3]
    expected = whole[: whole.index(stop)]

    stopped = generate(run, tinypy_bundle, PROMPT, "--max-new-tokens", 24, "--stop", "\0", "--stop", stop)
    assert (stopped["text"], stopped["finish_reason"]) == (expected, "stop")
    assert run("generate", tinypy_bundle, PROMPT, "--max-new-tokens", 24, "--stop", stop).out == expected + "\n"


def test_the_same_seed_gives_the_same_tokens_drafting_or_not(run: Run, tinypy_bundle: Path) -> None:
    flags = ("--max-new-tokens", 12, "--temperature", 0.8, "--top-k", 50, "--top-p", 0.95)
    first, other = (generate(run, tinypy_bundle, PROMPT, *flags, "--seed", seed)["token_ids"] for seed in (1, 2))

    assert generate(run, tinypy_bundle, PROMPT, *flags, "--seed", 1, "--plain")["token_ids"] == first
    assert other != first


LONG = " ".join(["17"] * 512)

BAD_VALUES: dict[str, tuple[list[object], list[str]]] = {
    "negative temperature": ([PROMPT, "--temperature", -1], ["temperature is -1.0", "expected 0 or"]),
    "temperature not a number": ([PROMPT, "--temperature", "nan"], ["temperature is nan"]),
    "no new tokens": ([PROMPT, "--max-new-tokens", 0], ["max_new_tokens is 0", "above 0"]),
    "top-k of 0": ([PROMPT, "--top-k", 0], ["top_k is 0"]),
    "top-p of 2": ([PROMPT, "--top-p", 2], ["top_p is 2.0"]),
    "negative seed": ([PROMPT, "--seed", -1], ["seed is -1"]),
    "empty stop text": ([PROMPT, "--stop", ""], ["stop is ('',)"]),
    "typical without temperature": ([PROMPT, "--acceptance", "typical"], ["a temperature above 0"]),
    "no threads": ([PROMPT, "--threads", 0], ["threads is 0"]),
    "unknown engine": ([PROMPT, "--engine", "abacus"], ["no engine is called 'abacus'", "onnxruntime"]),
    "no ids": (["--ids", ""], ["the prompt has no tokens"]),
    "ids that are words": (["--ids", "1 two 3"], ["--ids is '1 two 3'", "whole numbers"]),
    "ids that are fractions": (["--ids", "1.5"], ["--ids is '1.5'"]),
    "an id outside": (["--ids", "1 8192"], ["token id 8192", "0 to 8191"]),
    "a prompt token's id": (["--ids", "1 8193"], ["token id 8193"]),
    "a negative id": (["--ids", "-1"], ["token id -1"]),
    "too long a prompt": (["--ids", LONG], ["the prompt has 512 tokens; the context is 512"]),
    "a template that is not there": ([PROMPT, "--chat"], ["no chat template"]),
    "a prompt that is not Unicode": (["def \udcff"], ["prompt"]),
}


@pytest.mark.parametrize(("arguments", "words"), BAD_VALUES.values(), ids=BAD_VALUES.keys())
def test_a_bad_value_is_one_line(run: Run, tinypy_bundle: Path, arguments: list[object], words: list[str]) -> None:
    fails(run("generate", tinypy_bundle, *arguments), *words)


def test_the_process_ends_with_code_1_and_one_line(tinypy_bundle: Path) -> None:
    code = "from ppd.cli import main; main()"
    command = [sys.executable, "-c", code, "generate", str(tinypy_bundle), PROMPT, "--temperature", "-1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)

    fails(Outcome(done.returncode, done.stdout, done.stderr), "temperature is -1.0")


@pytest.mark.parametrize("errors", ["strict", "surrogateescape"])
def test_standard_input_that_is_not_utf_8_is_one_line(
    run: Run, tinypy_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, errors: str
) -> None:
    (tmp_path / "prompt").write_bytes(b"def \xff")
    with (tmp_path / "prompt").open(encoding="utf-8", errors=errors) as file:  # Python chooses by the locale
        monkeypatch.setattr(sys, "stdin", file)
        fails(run("generate", tinypy_bundle, "-"))


def test_a_reader_that_goes_away_gets_no_traceback(tinypy_bundle: Path) -> None:
    command = [sys.executable, "-c", "from ppd.cli import main; main()", "generate", str(tinypy_bundle), PROMPT]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""

    assert process.returncode not in (0, 2)


@pytest.mark.parametrize("command", [["generate", ..., PROMPT], ["check", ...], ["inspect", ...], ["bench", ...]])
def test_an_unknown_bundle_is_one_line(run: Run, tmp_path: Path, command: list[Any]) -> None:
    missing = tmp_path / "no bundle"

    fails(run(*(missing if word is ... else word for word in command)), "no bundle", MANIFEST_FILE, "ppd-export")
    assert list(tmp_path.iterdir()) == []


def test_a_message_of_several_lines_becomes_one(run: Run, tmp_path: Path) -> None:
    fails(run("inspect", tmp_path / "two\nlines"), "two lines")


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["BUNDLE"],
        ["BUNDLE", PROMPT, "--draft", "--plain"],
        ["BUNDLE", PROMPT, "--ids", "1"],
        ["BUNDLE", "--ids", "1", "--chat"],
        ["BUNDLE", PROMPT, "again"],
        ["BUNDLE", PROMPT, "--unknown"],
        ["BUNDLE", PROMPT, "--temperature", "hot"],
        ["BUNDLE", PROMPT, "--acceptance", "lenient"],
        ["BUNDLE", PROMPT, "--max-new-tokens", "1.5"],
    ],
    ids=" ".join,
)
def test_misuse_of_generate_is_a_usage_error(run: Run, tinypy_bundle: Path, arguments: list[str]) -> None:
    misused(run("generate", *(tinypy_bundle if word == "BUNDLE" else word for word in arguments)))


@pytest.mark.parametrize("arguments", [["unknown"], ["check"], ["refold", "BUNDLE"], ["export", "--model", "tinypy"]])
def test_misuse_of_a_command_is_a_usage_error(run: Run, arguments: list[str]) -> None:
    misused(run(*arguments))


# ---- check, inspect, bench, targets, models


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
    for words in ("tinypy", "untrained", "hand-made", "provenance", "root  *", "└─", "tree.bin"):
        assert words in outcome.out


def test_inspect_json_is_the_manifest(run: Run, tinypy_bundle: Path) -> None:
    outcome = run("inspect", tinypy_bundle, "--json")

    assert (outcome.code, outcome.err) == (0, "")
    assert json.loads(outcome.out) == json.loads((tinypy_bundle / MANIFEST_FILE).read_bytes())


def test_bench_json_has_the_figures(run: Run, tinypy_bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text(f"{PROMPT}\n\nclass Stack:\n", "utf-8")
    flags = ("--turns", 1, "--max-new-tokens", 8, "--threads", 1, "--prompts", tmp_path / "prompts.txt")
    outcome = run("bench", tinypy_bundle, "--json", *flags)
    figures = json.loads(outcome.out)

    assert (outcome.code, outcome.err) == (0, "")
    assert {"plain_tokens_per_second", "ppd_tokens_per_second", "speedup", "acceptance_length"} <= figures.keys()
    assert all(figures[name] > 0 for name in ("plain_tokens_per_second", "ppd_tokens_per_second", "speedup"))
    assert figures["acceptance_length"] >= 1
    assert figures["identical"] is True
    assert (figures["prompts"], figures["turns"], figures["max_new_tokens"]) == (2, 1, 8)
    assert figures["speedup_min"] <= figures["speedup"] <= figures["speedup_max"]
    assert figures["model"] == "tinypy"


def test_bench_prints_a_table(run: Run, tinypy_bundle: Path) -> None:
    outcome = run("bench", tinypy_bundle, "--turns", 1, "--max-new-tokens", 2, "--threads", 1)

    assert (outcome.code, outcome.err) == (0, "")
    assert re.search(r"^plain tokens per second +\d+\.\d{3}$", outcome.out, re.MULTILINE)
    assert re.search(r"^identical +True$", outcome.out, re.MULTILINE)


@pytest.mark.parametrize("flags", [["--turns", 0], ["--turns", -1], ["--max-new-tokens", 1], ["--prompts", "missing"]])
def test_a_bench_that_cannot_be_run_is_one_line(
    run: Run, tinypy_bundle: Path, flags: list[object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)

    fails(run("bench", tinypy_bundle, "--json", *flags), "expected")


def test_targets_lists_every_preset(run: Run) -> None:
    outcome = run("targets")

    assert (outcome.code, outcome.err) == (0, "")
    assert [line.split()[0] for line in outcome.out.splitlines()] == ["target", *load_targets()]
    assert re.search(r"^rtx-4090 +NVIDIA GeForce RTX 4090 +8\.9 +fp32$", outcome.out, re.MULTILINE)


def test_models_lists_every_known_model(run: Run) -> None:
    outcome = run("models")

    assert (outcome.code, outcome.err) == (0, "")
    assert [line.split()[0] for line in outcome.out.splitlines()] == ["model", *load_registry()]
    assert re.search(r"^tinypy +in this package", outcome.out, re.MULTILINE)


# ---- refold


@pytest.fixture
def own_bundle(tinypy_bundle: Path, tmp_path: Path) -> Path:
    """A bundle of its own, whose files are links."""
    return link_bundle(tinypy_bundle, tmp_path / "bundle")


def test_refold_folds_a_file_and_none(run: Run, own_bundle: Path, tmp_path: Path) -> None:
    tree = Tree(3, {3: (Node((), 3), Node((0,), 3), Node((0, 0), 3))})
    (tmp_path / "mine.json").write_text(json_from_tree(tree), "utf-8")

    outcome = run("refold", own_bundle, tmp_path / "mine.json")
    assert outcome == Outcome(0, f"{own_bundle}: folded mine.json (rows per state: state 3: 12)\n", "")
    assert json_from_tree(open_bundle(own_bundle).tree) == json_from_tree(tree)

    outcome = run("refold", own_bundle, "none")
    assert outcome == Outcome(0, f"{own_bundle}: folded none (rows per state: state 0: 1)\n", "")
    assert not open_bundle(own_bundle).tree.drafts
    fails(run("generate", own_bundle, PROMPT, "--draft"), "ppd refold")
    fails(run("bench", own_bundle), "ppd refold")


def test_refold_refuses_a_tree_that_does_not_fit(run: Run, own_bundle: Path, tmp_path: Path) -> None:
    before = (own_bundle / MANIFEST_FILE).read_bytes()
    (tmp_path / "other.json").write_text(json_from_tree(Tree(1, {1: (Node((), 1),)})), "utf-8")
    (tmp_path / "broken.json").write_text("{", "utf-8")

    fails(run("refold", own_bundle, tmp_path / "other.json"), "for 1 prompt tokens, the model has 3")
    fails(run("refold", own_bundle, tmp_path / "broken.json"), "broken.json is not JSON")
    fails(run("refold", own_bundle, tmp_path / "missing.json"), "missing.json")
    fails(run("refold", tmp_path / "nowhere", "none"), "ppd-export")
    assert (own_bundle / MANIFEST_FILE).read_bytes() == before


# ---- export


def export(run: Run, *arguments: object, entry: Callable[[], None] = cli.export_main) -> Outcome:
    """`ppd-export` of the embedded model for this CPU; later arguments override these."""
    return run("--model", "tinypy", "--gpu", "cpu", *arguments, entry=entry)


ROOT_ONLY = {"path": [], "prompts": 3}
BAD_EXPORTS: dict[str, tuple[list[str], list[str]]] = {
    "unknown model": (["--model", "tinypi"], ["tinypi", "tinypy"]),
    "unknown target": (["--gpu", "jetson-oren"], ["no target is called 'jetson-oren'", "nearest: jetson-orin"]),
    "unknown precision": (["--precision", "fp64"], ["precision 'fp64'", "fp32"]),
    "missing tree": (["--tree", "missing.json"], ["missing.json"]),
    "tree that is not JSON": (["--tree", "words.json"], ["words.json is not JSON"]),
    "tree with a broken rule": (["--tree", "orphan.json"], ["orphan.json", "path [0, 0] has no parent"]),
    "tree with unknown keys": (["--tree", "extra.json"], ["extra.json", "see comment"]),
    "context too small": (["--context", "1"], ["context is 1", "2 to 512"]),
    "context too large": (["--context", "513"], ["context is 513", "2 to 512"]),
    "missing prompt tokens": (["--prompt-tokens", "./missing"], ["missing"]),
    "output below a file": (["--out", "words.json/out"], ["--out"]),
    "output that is no bundle": (["--out", "thesis"], ["thesis exists and is not a bundle", "--out"]),
    "output that is no bundle, forced": (["--out", "thesis", "--force"], ["thesis exists and is not a bundle"]),
    "output that exists": (["--out", "old"], ["old exists; give --force to replace it"]),
    "default output that exists": ([], ["tinypy-cpu exists; give --force"]),
}


@pytest.fixture
def working_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with an old bundle, another folder, and tree files."""
    files = {
        "old/manifest.json": "old",
        "tinypy-cpu/manifest.json": "old",
        "thesis/chapter": "years of work",
        "words.json": "once upon a time",
        "orphan.json": _tree_file([ROOT_ONLY, {"path": [0, 0], "prompts": 3}]),
        "extra.json": _tree_file([ROOT_ONLY], comment="mine"),
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text, "utf-8")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def _tree_file(nodes: list[dict[str, Any]], **more: str) -> str:
    return json.dumps({"schema": 1, "num_prompt_tokens": 3, "states": {"3": nodes}, **more})


@pytest.mark.parametrize(("arguments", "words"), BAD_EXPORTS.values(), ids=BAD_EXPORTS.keys())
def test_an_export_that_cannot_be_done_is_one_line_and_changes_nothing(
    run: Run, working_dir: Path, arguments: list[str], words: list[str]
) -> None:
    before = {path: path.read_bytes() if path.is_file() else None for path in working_dir.rglob("*")}

    out = [] if "--out" in arguments or not arguments else ["--out", "new"]
    fails(export(run, *arguments, *out), *words)
    assert {path: path.read_bytes() if path.is_file() else None for path in working_dir.rglob("*")} == before


def test_ppd_export_is_also_a_subcommand(run: Run, working_dir: Path) -> None:
    fails(run("export", "--model", "tinypy", "--gpu", "cpux", "--out", "new"), "no target is called 'cpux'", "cpu")
    assert not (working_dir / "new").exists()


def test_an_output_that_may_not_be_written_is_refused_before_the_work(
    run: Run, working_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ppd.export import exporter

    monkeypatch.setattr(exporter, "load_decoder", lambda *_: pytest.fail("the weights are loaded"))

    fails(export(run, "--out", "old"), "old exists; give --force")
    fails(export(run, "--out", "thesis", "--force"), "thesis exists and is not a bundle")
    assert (working_dir / "thesis" / "chapter").exists()


@pytest.mark.parametrize("out", ["new", "old"])
def test_an_export_that_fails_half_way_leaves_everything_as_it_was(
    run: Run, working_dir: Path, monkeypatch: pytest.MonkeyPatch, out: str
) -> None:
    from ppd.export import exporter

    def fail(*_: object) -> None:
        assert len(list(working_dir.glob(f".{out}.*.tmp"))) == 1  # it works beside the output
        raise ExportError("the graph cannot be traced")

    before = sorted(working_dir.rglob("*"))
    monkeypatch.setattr(exporter, "trace", fail)

    fails(export(run, "--out", out, "--force"), "the graph cannot be traced")
    assert sorted(working_dir.rglob("*")) == before
    assert (working_dir / "old" / MANIFEST_FILE).read_text("utf-8") == "old"


def test_a_package_that_export_needs_and_is_not_there_is_named(working_dir: Path) -> None:
    code = "import sys; sys.modules['onnx'] = None; from ppd.cli import export_main; export_main()"
    command = [sys.executable, "-c", code, "--model", "tinypy", "--gpu", "cpu", "--out", "new"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, cwd=working_dir)

    fails(Outcome(done.returncode, done.stdout, done.stderr), "onnx is not installed", 'pip install "ppd-edge[export]"')
    assert not (working_dir / "new").exists()
