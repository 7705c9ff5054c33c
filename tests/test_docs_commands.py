"""Commands, links and pages of the documentation: they parse, lead somewhere, and the quick ones run."""

import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest
import typer

from ppd import cli
from scripts.docs_hooks import DocsError, commands, with_links, with_reference
from scripts.run_tutorials import PAGES, README, not_printed, steps
from tests.cli.helpers import Run

pytest_plugins = ("tests.cli.conftest",)
ROOT = Path(__file__).parents[1]
DOCUMENTS = [*(ROOT / "docs").rglob("*.md"), *(ROOT / f"{n}.md" for n in ("README", "ARCHITECTURE", "CONTRIBUTING"))]
QUICK = {"generate", "inspect", "check", "refold", "models", "targets"}


def identity(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


# ---- commands


def commands_in(text: str) -> list[list[str]]:
    """The `ppd` commands of a page's blocks, split into words; an … stands for what the reader adds."""
    found: list[list[str]] = []
    for block in re.findall(r"^```(?:bash)?\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            parts = (part for part in line.split(" | ") if re.match(r"ppd(-export)? ", part) and "…" not in part)
            found += [shlex.split(part, comments=True) for part in parts]
    return found


WRITTEN = [(identity(page), words) for page in DOCUMENTS for words in commands_in(page.read_text("utf-8"))]


def parse(words: list[str]) -> None:
    name, *arguments = ["export", *words[1:]] if words[0] == "ppd-export" else words[1:]
    group: Any = typer.main.get_command(cli.app)
    if not name.startswith("--"):
        group.commands[name].make_context(name, arguments)


@pytest.mark.parametrize(("page", "words"), WRITTEN, ids=[f"{page}-{' '.join(words)[:60]}" for page, words in WRITTEN])
def test_a_command_of_the_documentation_has_only_flags_that_exist(page: str, words: list[str]) -> None:
    parse(words)


@pytest.mark.parametrize(
    ("words", "kind"),
    [(["ppd", "check", "b", "--fast"], "NoSuchOption"), (["ppd", "inspect"], "MissingParameter")],
)
def test_a_flag_that_does_not_exist_is_found(words: list[str], kind: str) -> None:
    with pytest.raises(Exception) as error:  # noqa: PT011 - typer has its own copies of click's exceptions
        parse(words)
    assert error.type.__name__ == kind


MARK = re.compile(r"<!-- (?:run|prints|file: \S+|not run: \S.*) -->\n\n?$")
COMMAND = re.compile(r"(?:ppd|ppd-export|pip|python3?|sudo|scp|curl|accelerate|polygraphy) (?!benchmarks/|examples/)")
"""What `make` and the benchmarks run needs no mark."""


def unmarked_in(text: str) -> list[str]:
    """Commands in blocks of which nothing says whether they are run, and if not, why."""
    blocks = re.finditer(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    unmarked = (block[2] for block in blocks if not block[1] and not MARK.search(text[: block.start()]))
    return [line for lines in unmarked for line in lines.splitlines() if COMMAND.match(line)]


@pytest.mark.parametrize("page", [page for page in DOCUMENTS if page.name != "ARCHITECTURE.md"], ids=identity)
def test_every_command_is_run_or_says_why_not(page: Path) -> None:
    assert unmarked_in(page.read_text("utf-8")) == []


def test_a_command_without_a_mark_is_found() -> None:
    page = "a\n\n```\nppd check b\n```\n\n<!-- run -->\n```\nppd check c\n```\n\n```\nmake test\n```\n"
    assert unmarked_in(page) == ["ppd check b"]


def test_the_readmes_first_commands_are_run() -> None:
    assert [step.text.split()[0] for step in steps(README) if step.kind == "run"] == ["pip", "ppd-export", "ppd", "ppd"]


@pytest.mark.parametrize("page", PAGES, ids=identity)
def test_the_quick_commands_of_a_tutorial_run(
    page: Path, run: Run, tinypy_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done, printed, quick = steps(page), "", True
    assert done
    for text, kind, file in done:
        if kind == "file":
            Path(file).write_text(text, "utf-8")
        elif kind == "prints":
            assert not quick or not_printed(text, printed) == []
            printed = ""
        else:
            program, *words = shlex.split(text, comments=True)
            quick = words[0] in QUICK
            if program == "ppd-export":  # scripts/run_tutorials.py exports; here is what it would give
                shutil.copytree(tinypy_bundle, words[words.index("--out") + 1], dirs_exist_ok=True)
            elif quick:
                outcome = run(*words)
                assert outcome.code == 0, f"{text}: {outcome.err}"
                assert outcome.out
                printed += f"{outcome.out}\n{outcome.err}"


def test_what_a_page_says_that_is_printed_has_to_be() -> None:
    output = "tokens: 32 in 25 steps\n  root  ***\n"
    assert not_printed("tokens: … in … steps\n  root  ***\n", output) == []
    assert not_printed("tokens: 33 in … steps\nroot  ***\n", output) == ["tokens: 33 in … steps", "root  ***"]


# ---- the reference


def test_the_page_of_the_commands_describes_every_command() -> None:
    page = with_reference((ROOT / "docs/cli.md").read_text("utf-8"))
    for name, command in commands().items():
        section = page.split(f"## `ppd {name}`\n")[1].split("\n## ")[0]
        for parameter in command.params:
            assert parameter.name == "help" or (parameter.opts[0] in section or parameter.metavar in section)


def test_a_command_that_is_missing_or_unknown_ends_the_build() -> None:
    page = (ROOT / "docs/cli.md").read_text("utf-8")
    with pytest.raises(DocsError, match="no heading for the command refold"):
        with_reference(page.replace("## `ppd refold`", ""))
    with pytest.raises(DocsError, match="no command"):
        with_reference(f"{page}\n## `ppd dance`\n")


# ---- links


def anchors(text: str) -> set[str]:
    titles = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", DOCUMENTS, ids=identity)
def test_links_lead_somewhere(page: Path) -> None:
    for target, anchor in re.findall(r"\]\(([^)\s#:]*)(?:#([^)\s]*))?\)", page.read_text("utf-8")):
        path = (page.parent / target).resolve() if target else page
        assert path.exists(), f"{page.name} links to {target}"
        assert not anchor or anchor in anchors(path.read_text("utf-8")), f"{page.name} links to {target}#{anchor}"


@pytest.mark.parametrize(
    ("page", "link", "expected"),
    [
        ("trees.md", "[a](../ARCHITECTURE.md#words)", "[a](architecture.md#words)"),
        ("tutorials/x.md", "[a](../../ARCHITECTURE.md)", "[a](../architecture.md)"),
        ("tutorials/x.md", "[a](../trees.md)", "[a](../trees.md)"),
        ("ARCHITECTURE.md", "[a](docs/trees.md#x)", "[a](trees.md#x)"),
        ("gpu.md", "[h100](../benchmarks/results/h100.json)", "h100"),
        ("gpu.md", "[a](https://example.org)", "[a](https://example.org)"),
    ],
)
def test_links_to_the_root_lead_to_its_pages(page: str, link: str, expected: str) -> None:
    assert with_links(link, page) == expected


# ---- files


PATHS = re.compile(r"\b(?:tests|benchmarks|examples|scripts|ppd|docs)/[\w/.-]*\w\.(?:py|json|md|sh|txt|mjs|bin)\b")


@pytest.mark.parametrize("page", DOCUMENTS, ids=identity)
def test_files_that_a_page_names_exist(page: Path) -> None:
    named = set(PATHS.findall(page.read_text("utf-8")))
    assert sorted(name for name in named if "NAME" not in name and not (ROOT / name).exists()) == []
