"""What the documentation's site adds to the pages of `docs/`: the reference of the commands, and pages of the root.

MkDocs calls the functions that begin with `on_`. The page `cli.md` has a heading for every command, such as
``## `ppd export` ``; what the command itself says of its arguments goes under it. A command without a heading, or a
heading without a command, ends the build.
"""

import os
import posixpath
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
FROM_ROOT = {"ARCHITECTURE.md": "architecture.md", "CHANGELOG.md": "changelog.md", "CONTRIBUTING.md": "contributing.md"}
"""Files of the repository's root → the pages that they become."""
_HEADING = re.compile(r"^## `ppd ([\w-]+)`$", re.MULTILINE)
_LINK = re.compile(r"\[([^\]]*)\]\(([^)\s#:]+)(#[^)\s]*)?\)")


class DocsError(Exception):
    """A page does not fit what it describes."""


# ---- the reference of the commands


def commands() -> dict[str, Any]:
    """Name → command of the command line, in alphabetical order."""
    import typer

    from ppd.cli import app

    group: Any = typer.main.get_command(app)
    return dict(sorted(group.commands.items()))


def with_reference(markdown: str) -> str:
    """The page of the commands, with what each says of itself under its heading."""
    known, named = commands(), _HEADING.findall(markdown)
    if missing := sorted(known.keys() - set(named)):
        raise DocsError(f"docs/cli.md has no heading for the command {missing[0]}; add: ## `ppd {missing[0]}`")
    if unknown := sorted(set(named) - known.keys()):
        raise DocsError(f"docs/cli.md describes ppd {unknown[0]}, which is no command; remove it")
    return _HEADING.sub(lambda found: f"{found[0]}\n\n{_describe(found[1], known[found[1]])}", markdown)


def _describe(name: str, command: Any) -> str:
    import typer

    context = typer.Context(command, info_name=f"ppd {name}")
    rows = ["| argument | meaning |", "|---|---|"]
    for parameter in command.params:
        record = parameter.get_help_record(context)
        if parameter.name == "help":
            continue
        written, meaning = record or (parameter.make_metavar(context), parameter.help or "")
        rows.append(f"| `{written}` | {_cell(meaning)} |")
    usage = " ".join([f"ppd {name}", *command.collect_usage_pieces(context)])
    text = re.sub(r"\s+", " ", command.help or "")
    return f"{_cell(text)}\n\n```\n{usage}\n```\n\n" + "\n".join(rows) + "\n"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;").strip()


# ---- links


def with_links(markdown: str, page: str) -> str:
    """A page whose links to files of the root lead to the pages that these become.

    A link to another file outside `docs/` becomes its text: the site does not have it.

    Args:
        page: Its path in `docs/`; of a page that comes from the root, the root file's name.
    """
    comes_from_root = page in FROM_ROOT
    folder = "" if comes_from_root else posixpath.join("docs", posixpath.dirname(page))
    here = posixpath.dirname(FROM_ROOT.get(page, page))

    def replaced(found: "re.Match[str]") -> str:
        text, target, anchor = found[1], found[2], found[3] or ""
        path = posixpath.normpath(posixpath.join(folder, target))
        if path in FROM_ROOT:
            path = posixpath.join("docs", FROM_ROOT[path])
        if not path.startswith("docs/"):
            return text
        return f"[{text}]({posixpath.relpath(path.removeprefix('docs/'), here or '.')}{anchor})"

    return _LINK.sub(replaced, markdown)


# ---- what MkDocs calls


def on_config(config: Any) -> Any:
    """Add the pages that the navigation does not name, so that a new page needs no line."""
    named = set(re.findall(r"[\w/-]+\.md", str(config.nav)))
    found = {path.relative_to(ROOT / "docs").as_posix() for path in (ROOT / "docs").rglob("*.md")}
    if more := sorted(found - named):
        config.nav.append({"More": more})
    return config


def on_files(files: Any, config: Any) -> Any:
    """Add the pages that come from the root."""
    from mkdocs.structure.files import File

    for name, page in FROM_ROOT.items():
        text = with_links((ROOT / name).read_text("utf-8"), name)
        files.append(File.generated(config, page, content=text))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Complete a page of `docs/`."""
    path = page.file.src_uri.replace(os.sep, "/")
    if path in FROM_ROOT.values():
        return markdown
    return with_links(with_reference(markdown) if path == "cli.md" else markdown, path)
