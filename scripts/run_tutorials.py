"""Run the commands of the quick start, the tutorials and the README as they stand there, in a folder of their own each.

    python scripts/run_tutorials.py [PAGE...]

A block below `<!-- run -->` is run, with the embedded model in place of a file of yours, and shorter measuring. A block
below `<!-- file: NAME -->` is written to that file. One below `<!-- not run: WHY -->` needs a device or hours, or the
tests that it names run it. The README's first commands install a model of 93 MB.
"""

import re
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path

DOCS = Path(__file__).resolve().parents[1] / "docs"
PAGES = [DOCS / "quick-start.md", *sorted((DOCS / "tutorials").glob("*.md"))]
README = DOCS.parent / "README.md"
STAND_INS = {"my-model.gguf": "tinypy", "--minutes 2": "--minutes 0.05", "--questions 2": "--turns 1"}
"""What a page says → what is run."""
_BLOCK = re.compile(r"<!-- (run|file: (?P<file>[\w.-]+)) -->\n\n?```\w*\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)


def steps(page: Path) -> list[tuple[str | None, str]]:
    """What a page does, in order: (file, its text), or (None, a command)."""
    found: list[tuple[str | None, str]] = []
    for block in _BLOCK.finditer(page.read_text("utf-8")):
        if block["file"]:
            found.append((block["file"], block["text"]))
        else:
            found += [(None, _with_stand_ins(line)) for line in block["text"].splitlines()]
    return found


def _with_stand_ins(command: str) -> str:
    for said, run in STAND_INS.items():
        command = command.replace(said, run)
    return command


def run_page(page: Path) -> None:
    """Run a page; exit at the first command that fails."""
    with tempfile.TemporaryDirectory() as folder:
        for file, text in steps(page):
            if file is not None:
                (Path(folder) / file).write_text(text, "utf-8")
                continue
            begin = time.monotonic()
            program, *arguments = shlex.split(text, comments=True)
            beside = Path(sys.executable).parent / program
            done = subprocess.run([beside, *arguments], cwd=folder, capture_output=True, text=True, check=False)
            print(f"{page.name}: {text}  ({time.monotonic() - begin:.1f} s)", flush=True)
            if done.returncode:
                sys.exit(f"{done.stdout}{done.stderr}")


if __name__ == "__main__":
    for page in [Path(name) for name in sys.argv[1:]] or [*PAGES, README]:
        run_page(page)
