"""`ppd generate`: what it prints where, its exit codes, and that bad input is one line."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from ppd.runtime.drafters.worth import DraftCosts
from tests.chats import chat_bundle
from tests.cli.helpers import PROMPT, Outcome, Run, fails, generate, misused
from tests.damage import change


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
        "reused_tokens",
        "steps",
        "accepted_per_step",
        "source_per_step",
        "by_source",
        "acceptance_length",
        "first_token_ms",
        "prefill_ms",
        "decode_ms",
        "tokens_per_second",
    }
    assert (len(answer["token_ids"]), answer["finish_reason"]) == (8, "length")
    assert sum(answer["stats"]["accepted_per_step"]) == 7
    assert answer["stats"]["steps"] == len(answer["stats"]["accepted_per_step"])
    assert answer["stats"]["acceptance_length"] == pytest.approx(7 / answer["stats"]["steps"])
    assert answer["stats"]["tokens_per_second"] == pytest.approx(7000 / answer["stats"]["decode_ms"])


def test_json_counts_the_steps_of_each_source_and_the_guesses_that_were_right(run: Run, tinypy_bundle: Path) -> None:
    stats = generate(run, tinypy_bundle, PROMPT, "--max-new-tokens", 8, "--draft", "always")["stats"]

    steps = stats["steps"]
    assert stats["source_per_step"] == ["ppd"] * steps
    assert stats["by_source"] == {"ppd": {"steps": steps, "right": 7 - steps}}


def test_drafting_and_plain_decoding_print_the_same(run: Run, tinypy_bundle: Path) -> None:
    plain = generate(run, tinypy_bundle, PROMPT, "--plain", "--max-new-tokens", 24)
    drafted = generate(run, tinypy_bundle, PROMPT, "--draft", "always", "--max-new-tokens", 24)

    assert (drafted["text"], drafted["token_ids"]) == (plain["text"], plain["token_ids"])
    assert (plain["stats"]["acceptance_length"], plain["stats"]["steps"]) == (1, 23)
    assert drafted["stats"]["acceptance_length"] > 1
    for flag in (["--plain"], ["--draft", "always"]):
        assert run("generate", tinypy_bundle, PROMPT, *flag, "--max-new-tokens", 24).out == plain["text"] + "\n"


def test_stats_go_to_standard_error(run: Run, tinypy_bundle: Path) -> None:
    outcome = run("generate", tinypy_bundle, PROMPT, "--max-new-tokens", 8, "--stats", "--plain")

    assert outcome.out == generate(run, tinypy_bundle, PROMPT, "--max-new-tokens", 8)["text"] + "\n"
    assert re.fullmatch(
        r"8 tokens in 7 steps after prefill, acceptance length 1\.00, [\d.]+ tokens/s, "
        r"first token [\d.]+ ms, decode [\d.]+ ms, finished: length\n",
        outcome.err,
    )


def test_stats_of_drafting_end_with_the_steps_of_each_source(run: Run, tinypy_bundle: Path) -> None:
    outcome = run("generate", tinypy_bundle, PROMPT, "--max-new-tokens", 24, "--stats", "--draft", "always")

    counts = re.fullmatch(r".*, finished: length; steps: (\d+) ppd \((\d+) right\)\n", outcome.err)
    assert counts is not None
    assert sum(map(int, counts.groups())) == 23


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


def test_generation_ends_at_a_stop_id(run: Run, tinypy_bundle: Path) -> None:
    ids = generate(run, tinypy_bundle, PROMPT, "--max-new-tokens", 24)["token_ids"]
    place = next(i for i in range(5, 24) if ids[i] not in ids[:i])

    stopped = generate(run, tinypy_bundle, PROMPT, "--max-new-tokens", 24, "--stop-ids", f"8191, {ids[place]}")

    assert (stopped["token_ids"], stopped["finish_reason"]) == (ids[: place + 1], "stop")
    assert stopped["text"] == generate(run, tinypy_bundle, PROMPT, "--max-new-tokens", place)["text"]


def test_variables_and_tools_reach_the_chat_template(run: Run, tinypy_bundle: Path, tmp_path: Path) -> None:
    template = "{{ messages[0]['content'] }}{{ tools[0]['name'] if tools }}{{ 'x' if enable_thinking is sameas false }}"
    folder = chat_bundle(tinypy_bundle, tmp_path / "b", template)
    (tmp_path / "tools.json").write_text('[{"name": "import"}]', "utf-8")
    flags = ("--tools", tmp_path / "tools.json", "--chat-template-kwargs", '{"enable_thinking": false}')

    given = generate(run, folder, "a", "--chat", *flags, "--max-new-tokens", 1)["stats"]["prompt_tokens"]
    bare = generate(run, folder, "a", "--chat", "--max-new-tokens", 1)["stats"]["prompt_tokens"]
    assert given > bare


def test_a_byte_order_mark_on_standard_input_goes(
    run: Run, tinypy_bundle: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "prompt").write_bytes(b"\xef\xbb\xbf" + PROMPT.encode())
    with (tmp_path / "prompt").open(encoding="utf-8") as file:
        monkeypatch.setattr(sys, "stdin", file)
        piped = generate(run, tinypy_bundle, "-", "--max-new-tokens", 1)

    told = generate(run, tinypy_bundle, PROMPT, "--max-new-tokens", 1)
    assert piped["stats"]["prompt_tokens"] == told["stats"]["prompt_tokens"]


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
    "an unknown source": (
        [PROMPT, "--draft", "ppd,foo"],
        ["--draft is 'ppd,foo'", "expected auto, always, or some of ppd, lookup"],
    ),
    "negative seed": ([PROMPT, "--seed", -1], ["seed is -1"]),
    "empty stop text": ([PROMPT, "--stop", ""], ["stop is ['']"]),
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
    "stop ids that are words": ([PROMPT, "--stop-ids", "end"], ["--stop-ids is 'end'", "whole numbers"]),
    "a stop id outside": ([PROMPT, "--stop-ids", "8192"], ["stop_ids has 8192", "0 to 8191"]),
    "variables that are no JSON": (
        [PROMPT, "--chat-template-kwargs", "x=1"],
        ["--chat-template-kwargs is 'x=1'", "JSON"],
    ),
    "variables that are no object": (
        [PROMPT, "--chat-template-kwargs", "[]"],
        ["chat_template_kwargs is []", "object"],
    ),
    "variables without messages": ([PROMPT, "--chat-template-kwargs", '{"a": 1}'], ["go with messages"]),
    "tools that are not there": ([PROMPT, "--tools", "none.json"], ["none.json", "check the path"]),
    "a template that is not there": ([PROMPT, "--chat"], ["no chat template"]),
    "a prompt that is not Unicode": (["def \udcff"], ["prompt"]),
}


@pytest.mark.parametrize(("arguments", "words"), BAD_VALUES.values(), ids=BAD_VALUES.keys())
def test_a_bad_value_is_one_line(run: Run, tinypy_bundle: Path, arguments: list[object], words: list[str]) -> None:
    fails(run("generate", tinypy_bundle, *arguments), *words)


def test_the_process_ends_with_code_1_and_one_line(tinypy_bundle: Path) -> None:
    code = "from ppd.cli import main; main()"
    command = [sys.executable, "-c", code, "generate", str(tinypy_bundle), PROMPT, "--temperature", "-1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)

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


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["BUNDLE"],
        ["BUNDLE", PROMPT, "--draft", "always", "--plain"],
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


def test_misuse_is_told_in_the_words_of_the_flags(run: Run, tinypy_bundle: Path) -> None:
    misused(run("generate", tinypy_bundle), "give a PROMPT, or - to read it", "or --ids")
    assert "--ids" not in run("generate", tinypy_bundle, "--chat").err
    misused(run("generate", tinypy_bundle, PROMPT, "--ids", "1"), "give a PROMPT or --ids, not both")
    for flag, value, expected in (("--temperature", "hot", "number"), ("--max-new-tokens", "1.5", "integer|number")):
        outcome = run("generate", tinypy_bundle, PROMPT, flag, value)
        misused(outcome, flag)
        assert re.search(expected, outcome.err)
        assert "Input should be" not in outcome.err


def test_an_empty_answer_of_a_model_that_chats_names_the_flag(run: Run, tinypy_bundle: Path, tmp_path: Path) -> None:
    first, *_ = generate(run, tinypy_bundle, PROMPT, "--max-new-tokens", 1)["token_ids"]
    folder = chat_bundle(tinypy_bundle, tmp_path / "b", "{{ messages[0]['content'] }}")
    change(folder, ("eos_ids",), [first])
    hint = "note: the model ended its answer at once; it has a chat template: ask with --chat\n"

    assert run("generate", folder, PROMPT) == Outcome(0, "\n", hint)
    for silent in ((PROMPT, "--chat"), ("import os",), (PROMPT, "--json")):
        assert run("generate", folder, *silent, "--max-new-tokens", 4).err == ""


@pytest.mark.parametrize("prompt", ["-5 + 3 =", "-5", "--- a/file", "--flag of a program"])
def test_a_prompt_that_looks_like_an_option_gets_a_hint(run: Run, tinypy_bundle: Path, prompt: str) -> None:
    misused(run("generate", tinypy_bundle, prompt), "stands behind --")

    assert run("generate", "--max-new-tokens", 1, "--", tinypy_bundle, prompt).code == 0


def test_a_terminal_that_cannot_show_a_character_gets_a_stand_in(tinypy_bundle: Path) -> None:
    command = [str(Path(sys.executable).parent / "ppd"), "inspect", str(tinypy_bundle)]
    output = subprocess.run(
        command, capture_output=True, text=True, check=False, env={**os.environ, "PYTHONIOENCODING": "ascii"}
    )
    assert output.returncode == 0, output.stderr
    assert "? 0" in output.stdout


def test_a_draft_model_changes_no_token(run: Run, tinypy_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ppd.runtime.model.draft_costs", lambda *_: DraftCosts(0.1, 0.0))
    plain = generate(run, tinypy_bundle, PROMPT, "--max-new-tokens", 24, "--plain")
    drafted = generate(
        run, tinypy_bundle, PROMPT, "--max-new-tokens", 24, "--drafter", tinypy_bundle, "--draft", "model"
    )

    assert drafted["token_ids"] == plain["token_ids"]
    assert drafted["stats"]["by_source"]["model"]["right"] > 12


def test_drafting_from_a_model_that_is_not_there_is_an_error(run: Run, tinypy_bundle: Path) -> None:
    fails(run("generate", tinypy_bundle, PROMPT, "--draft", "model"), "there is no draft model", "--drafter")


def test_log_probabilities_are_printed_in_json(run: Run, tinypy_bundle: Path) -> None:
    told = generate(run, tinypy_bundle, PROMPT, "--max-new-tokens", 4, "--logprobs", 2)["logprobs"]
    assert [len(each["top"]) for each in told] == [2] * 4
    misused(run("generate", tinypy_bundle, PROMPT, "--logprobs", 2), "--json")
