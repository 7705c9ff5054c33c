"""Run the commands of the quick start, the tutorials and the README as they stand there, in a folder of their own each.

    python scripts/run_tutorials.py [PAGE...]

A block below `<!-- run -->` is run, with the embedded model in place of a file of yours, and shorter measuring. The
lines of a block below `<!-- prints -->` have to be among what the block before it prints, an … standing for anything. A
block below `<!-- file: NAME -->` is written to that file. One below `<!-- not run: WHY -->` needs a device or hours, or
the tests that it names run it. The README's first commands install a model of 93 MB.
"""

import re
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

DOCS = Path(__file__).resolve().parents[1] / "docs"
PAGES = [DOCS / "quick-start.md", *sorted((DOCS / "tutorials").glob("*.md"))]
README = DOCS.parent / "README.md"
STAND_INS = {"my-model.gguf": "tinypy", "--minutes 2": "--minutes 0.05", "--questions 2": "--turns 1"}
"""What a page says → what is run."""
_BLOCK = re.compile(
    r"<!-- (run|prints|file: (?P<file>[\w.-]+)) -->\n\n?```\w*\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL
)


class Step(NamedTuple):
    """One thing that a page does.

    Attributes:
        text: A command, or a file's or an output's text.
        kind: "run", "prints" or "file".
        file: The file's name.
    """

    text: str
    kind: str = "run"
    file: str = ""


def steps(page: Path) -> list[Step]:
    """What a page does, in order."""
    found: list[Step] = []
    for block in _BLOCK.finditer(page.read_text("utf-8")):
        if block["file"]:
            found.append(Step(block["text"], "file", block["file"]))
        elif block[1] == "prints":
            found.append(Step(block["text"], "prints"))
        else:
            found += [Step(_with_stand_ins(line)) for line in block["text"].splitlines()]
    return found


def not_printed(expected: str, output: str) -> list[str]:
    """Lines of a page that are not among an output's, where an … stands for anything."""
    lines = [line.rstrip() for line in output.splitlines()]
    patterns = (
        (line, re.compile(".*".join(map(re.escape, line.rstrip().split("…"))))) for line in expected.splitlines()
    )
    return [line for line, pattern in patterns if not any(map(pattern.fullmatch, lines))]


def _with_stand_ins(command: str) -> str:
    for said, run in STAND_INS.items():
        command = command.replace(said, run)
    return command


def run_page(page: Path) -> None:
    """Run a page; exit at the first command that fails, or that prints something else than the page says."""
    with tempfile.TemporaryDirectory() as folder:
        printed, last = "", ""
        for text, kind, file in steps(page):
            if kind == "file":
                (Path(folder) / file).write_text(text, "utf-8")
            elif kind == "prints":
                if missing := not_printed(text, printed):
                    sys.exit(f"{page.name} says that this is printed:\n{missing[0]}\nand this was:\n{printed}")
            else:
                printed = (printed if last == "run" else "") + _run(page, text, folder)
            last = kind


def _run(page: Path, command: str, folder: str) -> str:
    """Run a command in a folder, and return what it printed."""
    begin = time.monotonic()
    program, *arguments = shlex.split(command, comments=True)
    beside = Path(sys.executable).parent / program
    done = subprocess.run([beside, *arguments], cwd=folder, capture_output=True, text=True, check=False)
    print(f"{page.name}: {command}  ({time.monotonic() - begin:.1f} s)", flush=True)
    if done.returncode:
        sys.exit(f"{done.stdout}{done.stderr}")
    return f"{done.stdout}\n{done.stderr}"


if __name__ == "__main__":
    for page in [Path(name) for name in sys.argv[1:]] or [*PAGES, README]:
        run_page(page)
