"""The application that commands register with, and what they share: options, progress bars, tables."""

import json
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import typer
from typer.core import TyperCommand

import ppd
from ppd.cli.usage import PlainCommand
from ppd.documents import read_text
from ppd.errors import ArgumentError

_MAX_MESSAGE = 1000


_Command = TypeVar("_Command", bound=Callable[..., Any])


class _App(typer.Typer):
    def command(
        self, name: str | None = None, *, cls: type[TyperCommand] | None = None, **settings: Any
    ) -> Callable[[_Command], _Command]:
        """Register a command, which tells misuse in our words."""
        return super().command(name, cls=cls or PlainCommand, **settings)


app = _App(
    name="ppd",
    help="Parallel Prompt Decoding on the edge: export a model once, generate in fewer passes. Every token that is "
    "kept is the model's own choice.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

INTERRUPTED = 130
"""Exit code after Ctrl-C, when what was measured is printed."""
BundleArgument = Annotated[Path, typer.Argument(metavar="BUNDLE", help="A folder that ppd-export wrote.")]
ThreadsOption = Annotated[int | None, typer.Option(help="CPU threads; default: the engine's own choice.")]
ExactOption = Annotated[
    bool, typer.Option("--exact", help="Compute quantised products in fp32: slower, but near-ties do not flip.")
]
EngineOption = Annotated[str, typer.Option(help="Engine name, or auto.")]
MaxNewTokensOption = Annotated[int, typer.Option(metavar="N", help="Maximum number of new tokens.")]
TemperatureOption = Annotated[
    float, typer.Option(metavar="T", help="0 is greedy decoding; above 0, tokens are sampled.")
]
TopKOption = Annotated[int | None, typer.Option(metavar="K", help="Sample from the K most probable ids.")]
TopPOption = Annotated[
    float | None,
    typer.Option(metavar="P", help="Sample from the most probable ids that together reach probability P."),
]
SeedOption = Annotated[int, typer.Option(metavar="S", help="Sampling seed; the same seed gives the same tokens.")]
StopOption = Annotated[
    list[str] | None,
    typer.Option(
        metavar="TEXT",
        help="A text that ends the answer, special tokens included, taken as it is (\\n is two characters); may be "
        "repeated.",
    ),
]
StopIdsOption = Annotated[
    str | None, typer.Option(metavar='"1 2 3"', help="Token ids that end the answer, besides the EOS ids.")
]
ToolsOption = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="JSON list of tools for the chat template, as in OpenAI's interface."),
]
TemplateOption = Annotated[
    str | None,
    typer.Option(metavar="JSON", help="Variables of the chat template, such as '{\"enable_thinking\": false}'."),
]
AcceptanceOption = Annotated[
    Literal["exact", "typical"], typer.Option(help="typical accepts more tokens, but is lossy.")
]
DraftOption = Annotated[
    str | None,
    typer.Option(
        metavar="SOURCES",
        help="Draft from ppd (or medusa), lookup, table and model, or some of them: ppd,lookup. Default: auto, all of "
        "them. always: prompt tokens or heads at every step, whether that pays or not.",
    ),
]
PromptsOption = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="JSON lines of Spec-Bench, MT-Bench, HumanEval, GSM8K, Alpaca, ShareGPT or chat messages, a text file "
        "with one prompt per line, or a folder of files; may be gzipped. Default: a built-in set.",
    ),
]
CategoryOption = Annotated[
    list[str] | None,
    typer.Option(metavar="NAME", help="Only this category (mt-bench: its eight); may be repeated."),
]
QuestionsOption = Annotated[
    int | None, typer.Option(metavar="N", help="Draw N questions of each category; default: all.")
]
DrawOption = Annotated[int, typer.Option(metavar="S", help="Seed of that draw and of the intervals.")]
NewTokensOption = Annotated[int, typer.Option(metavar="N", help="New tokens per run.")]
DrafterOption = Annotated[
    Path | None,
    typer.Option(metavar="BUNDLE", help="A draft model with the same tokenizer, as a further source: model."),
]
PlainOption = Annotated[bool, typer.Option("--plain", help="Never draft.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")]
QuietOption = Annotated[bool, typer.Option("--quiet", help="Print errors and warnings only, and no progress.")]


@app.callback(invoke_without_command=True)
def _root(version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False) -> None:
    if version:
        print(f"ppd-edge {ppd.__version__}")
        raise typer.Exit


def draft_from(draft: str | None, plain: bool = False, flag: str = "--draft") -> Any:
    """The argument `draft` that the words behind `--draft`, or `/draft` of a chat, and `--plain` stand for."""
    if draft and plain:
        raise typer.BadParameter("give --draft or --plain, not both")
    if draft in (None, "auto"):
        return False if plain else "auto"
    if draft == "always":
        return True
    from ppd.runtime.options import SOURCES  # takes a while

    sources = tuple(draft.split(","))
    if not set(sources) <= set(SOURCES):
        raise ArgumentError(
            f"{flag} is {draft!r:.60}; expected auto, always, or some of {', '.join(SOURCES)}, as in {flag} ppd,lookup"
        )
    return sources


def ids_from(text: str | None, flag: str) -> list[int]:
    """Token ids as they are written after a flag."""
    try:
        return [int(word) for word in (text or "").replace(",", " ").split()]
    except ValueError as error:
        raise ArgumentError(f'{flag} is {text!r:.60}; expected whole numbers, such as {flag} "1 2 3"') from error


def for_template(tools: Path | None, variables: str | None) -> dict[str, Any]:
    """The arguments `tools` and `chat_template_kwargs` that their flags stand for; the library checks them."""
    given = {"tools": None if tools is None else read_text(tools), "chat_template_kwargs": variables}
    for name, text in given.items():
        try:
            given[name] = None if text is None else json.loads(text)
        except (ValueError, RecursionError) as error:
            flag = f"--{name.replace('_', '-')}"
            raise ArgumentError(f"{flag} is {text!r:.60}, which is not JSON ({error}); expected JSON") from error
    return given


@contextmanager
def bar(quiet: bool = False) -> Iterator[Callable[[str, float | None], None]]:
    """A bar that shows a text and a share, 0 to 1 (None: unknown), on standard error; nothing without a terminal."""
    from rich.console import Console  # takes a while, and generating needs no bar
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    console = Console(stderr=True)
    columns = (TextColumn("{task.description:<28}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=quiet or not console.is_terminal) as shown:
        task = shown.add_task("", total=None)

        def show(text: str, share: float | None) -> None:
            shown.update(task, description=text[:40], total=None if share is None else 1.0, completed=share or 0.0)

        yield show


@contextmanager
def progress(stages: Collection[str], quiet: bool = False) -> Iterator[Callable[[str], None]]:
    """A bar over stages; any other text that it is called with is shown as a detail of the current stage."""
    with bar(quiet) as show:
        done = -1

        def advance(stage: str) -> None:
            nonlocal done
            done += stage in stages
            show(stage, max(0, done) / len(stages))

        yield advance


def shown(text: str) -> str:
    """A line with text that came from a file: whatever a terminal would obey is an escape."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def one_line(message: str) -> str:
    """A message as one line of a length that can be read; what a terminal would obey is shown as an escape."""
    line = " ".join(message.split())
    half = _MAX_MESSAGE // 2
    return shown(line if len(line) <= _MAX_MESSAGE else f"{line[:half]} … {line[-half:]}")


def print_table(header: tuple[str, ...], rows: list[tuple[str, ...]]) -> None:
    """Print columns as wide as their widest cell."""
    widths = [max(len(row[i]) for row in (header, *rows)) for i in range(len(header))]
    for row in (header, *rows):
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
