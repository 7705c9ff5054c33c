"""`ppd chat`: turns, commands, Ctrl-C; on a pipe and on a terminal."""

import _thread
import io
import os
import pty
import re
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from ppd import runtime
from ppd.cli import chat as module
from ppd.runtime.engines.onnxruntime.cpu import OnnxRuntimeEngine
from ppd.runtime.options import SOURCES
from tests.chats import CHATML, chat_bundle
from tests.cli.helpers import Outcome, Run, fails, misused

COMMAND = [sys.executable, "-c", "from ppd.cli import main; main()", "chat"]
STATS = (
    r"\d+ tokens in \d+ steps .*, ([\d]+) of (\d+) prompt tokens reused, first token .* finished: \w+(?:; steps: .*)?"
)


@pytest.fixture(scope="session")
def bundle(tinypy_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return chat_bundle(tinypy_bundle, tmp_path_factory.mktemp("chat") / "bundle")


@pytest.fixture
def chat(run: Run, bundle: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs `ppd chat` with this on standard input, which is no terminal."""

    def call(text: str | bytes, *flags: object) -> Outcome:
        content = text if isinstance(text, bytes) else text.encode()
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content), "utf-8"))
        return run("chat", bundle, "--threads", 1, "--max-new-tokens", 12, *flags)

    return call


def answers_of(bundle: Path, *questions: str, system: str | None = None, **options: Any) -> str:
    """What a conversation prints."""
    conversation = runtime.Conversation(runtime.load(bundle, threads=1), system)
    options = {"max_new_tokens": 12, **options}
    return "".join(conversation.ask(question, **options).text + "\n" for question in questions)


def numbers_of(stats: str) -> list[int]:
    """How many tokens of the prompt were reused, and how many it has."""
    found = re.fullmatch(STATS, stats)
    assert found
    return [int(number) for number in found.groups()]


def test_every_line_of_a_pipe_is_a_turn_and_nothing_else_is_printed(chat: Run, bundle: Path) -> None:
    outcome = chat("import os\n\ndef f(x):\nclass A:")
    assert outcome == Outcome(0, answers_of(bundle, "import os", "def f(x):", "class A:"), "")


def test_a_byte_order_mark_and_carriage_returns_are_removed(chat: Run, bundle: Path) -> None:
    assert chat(b"\xef\xbb\xbfimport os\r\nx = 1\r\n").out == answers_of(bundle, "import os", "x = 1")


def test_flags_are_those_of_generate(chat: Run, bundle: Path) -> None:
    flags = ("--temperature", 0.8, "--top-k", 50, "--seed", 4, "--system", "be brief", "--plain", "--stop", "(")
    expected = answers_of(bundle, "x", "y", system="be brief", temperature=0.8, top_k=50, seed=4, draft=False, stop="(")
    assert chat("x\ny\n", *flags).out == expected


def test_stats_tell_what_was_reused(chat: Run) -> None:
    outcome = chat("/stats\nimport os\nx = 1\n/stats\n")
    first, second = outcome.err.splitlines()
    assert first == "no answer was finished last"
    reused, read = numbers_of(second)
    assert 20 < reused < read


def test_restart_forgets_the_turns(chat: Run, bundle: Path) -> None:
    outcome = chat("import os\n/restart\nx = 1\n")
    assert outcome.out == answers_of(bundle, "import os") + answers_of(bundle, "x = 1")
    assert outcome.err == "a new conversation begins\n"


def test_the_system_prompt_can_be_set_and_left_to_the_template(chat: Run, bundle: Path) -> None:
    outcome = chat("/system be brief\nx = 1\n/restart\n/system\nx = 1\n")
    assert outcome.out == answers_of(bundle, "x = 1", system="be brief") + answers_of(bundle, "x = 1")
    assert outcome.err.splitlines()[0] == "the system prompt is set"


def test_drafting_changes_no_token_and_its_sources_can_be_chosen(chat: Run, bundle: Path) -> None:
    outcome = chat("/draft always\nimport os\n/stats\n/draft off\nx = 1\n/stats\n/draft lookup\n/draft maybe\n/draft\n")
    assert outcome.out == answers_of(bundle, "import os", "x = 1")
    on, drafted, off, plain, lookup, wrong, auto = outcome.err.splitlines()
    assert (on, off) == ("answers are drafted from ppd", "answers are decoded plainly")
    assert lookup == "answers are drafted from lookup"
    assert auto in (lookup, "answers are drafted from lookup, ppd")
    assert "in 11 steps" in plain
    assert "in 11 steps" not in drafted
    assert re.fullmatch(r"error: .*'maybe'.*; expected .*lookup.*", wrong)


def test_drafting_with_a_tree_that_cannot_is_one_line(
    chat: Run, bundle: Path, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ppd.tree.Tree.drafts", False)
    outcome = chat("/draft always\nx = 1\n")
    assert re.fullmatch(r"error: draft is True, and [^\n]+\n", outcome.err)
    assert outcome.out == answers_of(bundle, "x = 1")
    fails(chat("x = 1\n", "--draft", "always"), "no prompt rows")


def test_an_unknown_command_is_told_and_not_sent(chat: Run, bundle: Path) -> None:
    outcome = chat("/Restart\n/ x\nx = 1\n")
    assert outcome.out == answers_of(bundle, "x = 1")
    assert outcome.err == "no command is called /Restart; /help lists them\nno command is called /; /help lists them\n"


def test_help_names_every_command(chat: Run) -> None:
    outcome = chat("/help\n")
    assert outcome.out == ""
    for command in ("restart", "system TEXT", "draft SOURCES", "stats", "help", "exit"):
        assert f"/{command} " in outcome.err
    for source in SOURCES:
        assert re.search(rf"\b{source}\b", outcome.err)


def test_exit_leaves_without_reading_on(chat: Run) -> None:
    assert chat("/exit\nx = 1\n") == Outcome(0, "", "")


def test_a_full_context_is_one_line_and_the_conversation_goes_on(chat: Run, bundle: Path) -> None:
    outcome = chat("x = 1\n" + "y = 2; " * 200 + "\n/restart\nx = 1\n")
    assert outcome.code == 0
    assert outcome.out == 2 * answers_of(bundle, "x = 1")
    error, note = outcome.err.splitlines()
    assert re.fullmatch(r"error: the prompt has \d+ tokens; the context is 512, .* with /restart", error)
    assert note == "a new conversation begins"


def test_an_answer_that_fills_the_context_is_told(chat: Run) -> None:
    outcome = chat("x = 1; " * 90 + "\n", "--max-new-tokens", 500)
    assert outcome.err == "the context is full: begin a new conversation with /restart\n"


def test_a_line_that_is_not_utf_8_is_refused_with_its_turn_only(chat: Run, bundle: Path) -> None:
    outcome = chat(b"x \xff\nx = 1\n")
    assert (outcome.code, outcome.out) == (0, answers_of(bundle, "x = 1"))
    assert re.fullmatch(r"error: [^\n]*UTF-8[^\n]*\n", outcome.err)


def test_a_line_that_the_template_cannot_take_is_refused_with_its_turn_only(
    run: Run, tinypy_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    long = "{% if messages[-1].content == 'much' %}{{ 'x' * 20000000 }}{% endif %}"
    made = chat_bundle(tinypy_bundle, tmp_path / "bundle", long + CHATML)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"much\nx = 1\n"), "utf-8"))
    outcome = run("chat", made, "--threads", 1, "--max-new-tokens", 12)
    assert (outcome.code, outcome.out) == (0, answers_of(made, "x = 1"))
    assert re.fullmatch(r"error: the bundle's chat template cannot be used: [^\n]*\n", outcome.err)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--temperature", -1], ["temperature is -1"]),
        (["--stop", ""], ["stop is ['']"]),
        (["--engine", "abacus"], ["no engine is called 'abacus'"]),
    ],
)
def test_a_bad_value_is_one_line(chat: Run, flags: list[object], words: list[str]) -> None:
    fails(chat("x = 1\n", *flags), *words)


def test_a_bundle_without_a_template_is_one_line(run: Run, tinypy_bundle: Path) -> None:
    fails(run("chat", tinypy_bundle), "no chat template")


def test_misuse_is_a_usage_error(run: Run, bundle: Path) -> None:
    misused(run("chat"))
    misused(run("chat", bundle, "--draft", "always", "--plain"))


@contextmanager
def interrupted(monkeypatch: pytest.MonkeyPatch, *calls: int) -> Iterator[None]:
    """Ctrl-C comes in these runs of the engine, counted from 1."""
    run, count = OnnxRuntimeEngine.run, 0

    def wrapped(*args: Any) -> Any:
        nonlocal count
        count += 1
        answer = run(*args)
        if count in calls:
            signal.raise_signal(signal.SIGINT)
        return answer

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with monkeypatch.context() as own:
            own.setattr(OnnxRuntimeEngine, "run", wrapped)
            yield
    finally:
        signal.signal(signal.SIGINT, before)


def test_ctrl_c_stops_an_answer_whose_text_stays(chat: Run, bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with interrupted(monkeypatch, 5):
        outcome = chat("import os\nx = 1\n/stats\n", "--plain")

    conversation = runtime.Conversation(runtime.load(bundle, threads=1))
    stream = conversation.stream("import os", max_new_tokens=12, draft=False)
    begun = "".join(next(stream).text for _ in range(5))  # the prefill was the first of the five runs
    stream.close()
    assert outcome.out == f"{begun}\n{conversation.ask('x = 1', max_new_tokens=12).text}\n"
    assert numbers_of(outcome.err.strip())[0] > 20


def test_ctrl_c_while_a_prompt_is_read_takes_the_question_back(
    chat: Run, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with interrupted(monkeypatch, 1):
        outcome = chat("import os\nx = 1\n", "--plain")
    assert outcome == Outcome(0, "\n" + answers_of(bundle, "x = 1"), "")


def test_ctrl_c_in_a_process_stops_the_answer_and_not_the_program(bundle: Path, tmp_path: Path) -> None:
    """The engine waits in its fifth run until the signal was sent."""
    code = (
        "import pathlib, sys, time\n"
        "from ppd.runtime.engines.onnxruntime.cpu import OnnxRuntimeEngine as Engine\n"
        "run, calls, sent = Engine.run, [], pathlib.Path(sys.argv.pop())\n"
        "def wait(*args):\n"
        "    calls.append(0)\n"
        "    if len(calls) == 5:\n"
        "        print('waiting', file=sys.stderr, flush=True)\n"
        "        while not sent.exists(): time.sleep(0.01)\n"
        "    return run(*args)\n"
        "Engine.run = wait\n"
        "from ppd.cli import main\n"
        "main()\n"
    )
    flags = ["--max-new-tokens", "450", "--plain", "--threads", "1"]
    command = [sys.executable, "-c", code, "chat", str(bundle), *flags, str(tmp_path / "sent")]
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, text=True, **pipes) as process:
        assert process.stdin is not None
        assert process.stderr is not None
        with killed_on_failure(process):
            process.stdin.write("import os\n/stats\n/restart\n")
            process.stdin.flush()
            assert process.stderr.readline() == "waiting\n"
            process.send_signal(signal.SIGINT)
            (tmp_path / "sent").touch()
            assert process.stderr.readline() == "no answer was finished last\n"
            assert process.stderr.readline() == "a new conversation begins\n"  # now it reads the next line
            process.send_signal(signal.SIGINT)
            out, err = process.communicate(timeout=300)

    assert (process.returncode, err) == (0, "")
    assert 0 < len(out) < len(answers_of(bundle, "import os", max_new_tokens=450, draft=False))


def test_ctrl_c_that_comes_together_with_the_end_of_the_lines_leaves_quietly(
    chat: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Reading ends with the interrupt pending: no instruction between has looked for one.
    monkeypatch.setattr(module, "_lines", lambda: iter(_thread.interrupt_main, None))

    assert chat("") == Outcome(0, "", "")


@contextmanager
def killed_on_failure(process: subprocess.Popen[Any]) -> Iterator[None]:
    """Nobody waits for a process that does not do what was expected of it."""
    try:
        yield
    except BaseException:
        process.kill()
        raise


def read_until(terminal: int, text: str) -> str:
    """What a terminal shows, up to this text."""
    shown = ""
    while text not in shown:
        assert select.select([terminal], [], [], 60)[0], f"{shown!r} and then nothing"
        shown += os.read(terminal, 1024).decode()
    return shown


@pytest.mark.parametrize("end", ["Ctrl-D", "Ctrl-C", "/exit"])
def test_on_a_terminal_there_is_a_prompt_and_it_can_be_left(bundle: Path, end: str) -> None:
    terminal, other = pty.openpty()
    command = [*COMMAND, str(bundle), "--max-new-tokens", "4", "--threads", "1"]
    with subprocess.Popen(command, stdin=other, stdout=other, stderr=other, env={**os.environ, "TERM": "dumb"}) as chat:
        os.close(other)
        with killed_on_failure(chat):
            assert "/help" in read_until(terminal, "> ")
            os.write(terminal, b"import os\n")
            assert answers_of(bundle, "import os", max_new_tokens=4).split()[0] in read_until(terminal, "> ")
            if end == "Ctrl-C":
                chat.send_signal(signal.SIGINT)
            else:
                os.write(terminal, b"\x04" if end == "Ctrl-D" else b"/exit\n")
            assert chat.wait(60) == 0
    os.close(terminal)
