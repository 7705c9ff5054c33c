"""The command line: one flag per argument of one library function. Only this module prints.

Subcommands import what they need when they run, so that `--help` needs neither torch nor an engine.
"""

import io
import json
import os
import sys
from collections.abc import Callable, Iterator, Sized
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

import ppd
from ppd.errors import ArgumentError, PPDError

if TYPE_CHECKING:
    from ppd.runtime import Stats

app = typer.Typer(
    name="ppd",
    help="Parallel Prompt Decoding on the edge: export a model once, generate in fewer passes, change no token.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

BundleArgument = Annotated[Path, typer.Argument(metavar="BUNDLE", help="A folder that ppd-export wrote.")]
ThreadsOption = Annotated[int | None, typer.Option(help="CPU threads; default: the engine's own choice.")]
EngineOption = Annotated[str, typer.Option(help="auto, or an engine's name.")]


@app.callback(invoke_without_command=True)
def _root(version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False) -> None:
    if version:
        print(f"ppd-edge {ppd.__version__}")
        raise typer.Exit


@app.command()
def export(
    model: Annotated[
        str, typer.Option(metavar="NAME|PATH|HUB_ID", help="A known name (ppd models), a folder, or a hub id.")
    ],
    gpu: Annotated[str, typer.Option(metavar="TARGET", help="The device the bundle is for (ppd targets).")],
    prompt_tokens: Annotated[
        str | None,
        typer.Option(
            metavar="PATH|HUB_ID", help="Trained prompt tokens; default: the published ones, if any. none: untrained."
        ),
    ] = None,
    precision: Annotated[str, typer.Option(help="auto, or fp32 (fp16, int8 and int4 are not there yet).")] = "auto",
    tree: Annotated[
        str, typer.Option(metavar="auto|PATH|none", help="The tree to fold; none: plain decoding only.")
    ] = "auto",
    context: Annotated[int | None, typer.Option(help="Tokens of prompt and answer; default: the model's own.")] = None,
    out: Annotated[Path | None, typer.Option(help="The bundle's folder; default: MODEL-TARGET.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing bundle.")] = False,
) -> None:
    """Export a model to a verified bundle."""
    from ppd.describe import describe_export

    with _extra("export"):
        from ppd.export.exporter import STAGES
        from ppd.export.exporter import export as run
    with _progress(STAGES) as advance:
        report = run(
            model,
            gpu,
            prompt_tokens=prompt_tokens,
            precision=precision,
            tree=tree,
            context=context,
            out=out,
            force=force,
            progress=advance,
        )
    print(describe_export(report.bundle, report.weights_bytes, report.added_parameters, report.added_bytes))


@app.command()
def refold(
    bundle: BundleArgument,
    tree: Annotated[
        str, typer.Argument(metavar="TREE", help="A tree file; auto: the hand-made one; none: never draft.")
    ],
) -> None:
    """Fold another tree into a bundle; the weights are not touched."""
    from ppd.bundle import open_bundle, refold_tree
    from ppd.export.hand_made_tree import hand_made_tree
    from ppd.tree import Tree, load_tree

    count = open_bundle(bundle, verify=False).manifest.prompt_tokens.count
    known = {"auto": ("hand-made", hand_made_tree), "none": ("none", Tree.none)}
    source, make = known.get(tree, (Path(tree).name, lambda _: load_tree(Path(tree))))
    folded = refold_tree(bundle, make(count), source=source)
    rows = ", ".join(f"state {state}: {n}" for state, n in folded.manifest.tree.num_rows.items())
    print(f"{bundle}: folded {folded.manifest.tree.source} (rows per state: {rows})")


@app.command()
def generate(
    bundle: BundleArgument,
    prompt: Annotated[
        str | None, typer.Argument(metavar="PROMPT", help="Text; left out with --ids. - reads standard input.")
    ] = None,
    ids: Annotated[str | None, typer.Option(metavar='"1 2 3"', help="Token ids instead of text.")] = None,
    chat: Annotated[
        bool, typer.Option("--chat", help="The prompt is a user's message, put into the chat template.")
    ] = False,
    max_new_tokens: Annotated[int, typer.Option(metavar="N", help="Most tokens to emit.")] = 64,
    temperature: Annotated[
        float, typer.Option(metavar="T", help="0 decodes greedily; above, tokens are sampled.")
    ] = 0.0,
    top_k: Annotated[int | None, typer.Option(metavar="K", help="Sample from the K most probable ids.")] = None,
    top_p: Annotated[
        float | None, typer.Option(metavar="P", help="Sample from the ids that reach probability P.")
    ] = None,
    seed: Annotated[int, typer.Option(metavar="S", help="The same seed gives the same tokens.")] = 0,
    stop: Annotated[
        list[str] | None, typer.Option(metavar="TEXT", help="A text that ends the answer; may be repeated.")
    ] = None,
    acceptance: Annotated[
        Literal["exact", "typical"], typer.Option(help="typical accepts more, and is lossy.")
    ] = "exact",
    draft: Annotated[bool, typer.Option("--draft", help="Always draft.")] = False,
    plain: Annotated[bool, typer.Option("--plain", help="Never draft.")] = False,
    stats: Annotated[bool, typer.Option("--stats", help="Print counts and times to standard error.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")] = False,
    engine: EngineOption = "auto",
    threads: ThreadsOption = None,
) -> None:
    """Generate from a bundle, printing text as it comes."""
    if draft and plain:
        raise typer.BadParameter("give --draft or --plain, not both")
    if (prompt is None) == (ids is None):
        raise typer.BadParameter("give a PROMPT or --ids, and not both")
    if chat and ids is not None:
        raise typer.BadParameter("--chat takes a PROMPT, not --ids")
    from ppd import runtime

    model = runtime.load(bundle, engine=engine, threads=threads)
    text = _read_stdin() if prompt == "-" else prompt
    given: Any = _parse_ids(ids) if ids is not None else [{"role": "user", "content": text}] if chat else text
    show_text = not as_json and model.has_tokenizer
    with model.stream(
        given,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        seed=seed,
        stop=stop or (),
        acceptance=acceptance,
        draft=True if draft else False if plain else "auto",
    ) as stream:
        for piece in stream:
            if show_text:
                print(piece.text, end="", flush=True)
            elif not as_json:
                print(*piece.token_ids, end=" ", flush=True)
    if as_json:
        print(json.dumps(runtime.json_from_result(stream.result)))
    else:
        print(flush=True)
    if stats:
        _print_stats(stream.result.stats, len(stream.result.token_ids), stream.result.finish_reason)


@app.command()
def check(bundle: BundleArgument, engine: EngineOption = "auto", threads: ThreadsOption = None) -> None:
    """Verify a bundle's files, then the engine on this device against the recorded reference."""
    from ppd import runtime
    from ppd.describe import describe_check

    info = runtime.check_bundle(bundle, engine=engine, threads=threads)
    print(f"{bundle}: every file matches its hash")
    print(describe_check(info))


@app.command()
def inspect(
    bundle: BundleArgument, as_json: Annotated[bool, typer.Option("--json", help="Print the manifest as JSON.")] = False
) -> None:
    """Show what is in a bundle: model, tree, check, provenance."""
    import dataclasses

    from ppd.bundle import open_bundle
    from ppd.describe import describe_bundle

    opened = open_bundle(bundle)
    print(json.dumps(dataclasses.asdict(opened.manifest), indent=1) if as_json else describe_bundle(opened))


@app.command()
def bench(
    bundle: BundleArgument,
    prompts: Annotated[
        Path | None, typer.Option(metavar="FILE", help="One prompt per line; default: a built-in set.")
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(metavar="N", help="Tokens per prompt.")] = 64,
    turns: Annotated[int, typer.Option(metavar="N", help="Plain and PPD take turns this often, per prompt.")] = 5,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    engine: EngineOption = "auto",
    threads: ThreadsOption = None,
) -> None:
    """Time plain decoding against drafting on this device, in turns; print medians."""
    import dataclasses

    from ppd.runtime.bench import bench as run
    from ppd.runtime.bench import read_prompts
    from ppd.runtime.model import load

    model = load(bundle, engine=engine, threads=threads)
    lines = read_prompts(prompts) if prompts is not None else None
    with _progress(range(turns)) as advance:
        report = run(model, prompts=lines, max_new_tokens=max_new_tokens, turns=turns, progress=advance)
    values = dataclasses.asdict(report)
    if as_json:
        print(json.dumps(values))
    else:
        shown = {name: f"{value:.3f}" if isinstance(value, float) else str(value) for name, value in values.items()}
        _print_table(("figure", "value"), [(name.replace("_", " "), text) for name, text in shown.items()])


@app.command()
def targets() -> None:
    """List the devices that --gpu knows."""
    from ppd.targets import load_targets

    _print_table(
        ("target", "device", "compute capability", "precision"),
        [(t.name, t.description, t.compute_capability or "-", t.precision) for t in load_targets().values()],
    )


@app.command()
def models() -> None:
    """List the models that --model knows by name."""
    from ppd.models.registry import load_registry

    _print_table(
        ("model", "checkpoint", "parameters", "context", "prompt tokens", "note"),
        [
            (
                e.name,
                e.hub_id or "in this package",
                e.parameters,
                str(e.context),
                e.prompt_tokens or "untrained",
                e.note,
            )
            for e in load_registry().values()
        ],
    )


def main() -> None:
    """Entry point of `ppd`."""
    _run(app)


def export_main() -> None:
    """Entry point of `ppd-export`, the same command as `ppd export`."""
    command = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
    command.command(name="ppd-export")(export)
    _run(command)


def _run(command: Callable[..., Any]) -> None:
    """Run a command; bad input becomes one line and exit code 1. Typer turns Ctrl-C into 130 and misuse into 2."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal that cannot show a character is no reason to stop
    try:
        try:
            command()
        finally:
            sys.stdout.flush()
    except PPDError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(1)
    except BrokenPipeError:  # the reader of our output went away
        _discard_output()
        sys.exit(1)
    except OSError as error:  # a path that no system call takes, or an output that cannot be written
        _discard_output()
        name = f"{error.filename!s:.80}: " if error.filename else ""
        print(f"error: {name}{error.strerror or error}; check the path and the free space", file=sys.stderr)
        sys.exit(1)


def _discard_output() -> None:
    """Send what is still buffered nowhere, or the interpreter would try to write it, and fail, once more at its end."""
    with suppress(OSError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


@contextmanager
def _extra(name: str) -> Iterator[None]:
    """Turn a missing package into a line that says which extra brings it."""
    try:
        yield
    except ModuleNotFoundError as error:
        if error.name is not None and error.name.split(".")[0] == "ppd":
            raise
        raise PPDError(f'{error.name} is not installed; run pip install "ppd-edge[{name}]"') from error


@contextmanager
def _progress(stages: Sized) -> Iterator[Callable[[str], None]]:
    """A progress bar over stages on standard error, or nothing where that is not a terminal."""
    console = Console(stderr=True)
    columns = (TextColumn("{task.description:<22}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=len(stages))
        started = False

        def advance(stage: str) -> None:
            nonlocal started
            bar.update(task, description=stage, advance=1 if started else 0)
            started = True

        yield advance


def _read_stdin() -> str:
    try:
        return sys.stdin.buffer.read().decode()
    except UnicodeDecodeError as error:
        raise ArgumentError(f"standard input is not UTF-8 text ({error}); convert it first") from error


def _parse_ids(text: str) -> list[int]:
    try:
        return [int(word) for word in text.replace(",", " ").split()]
    except ValueError as error:
        raise ArgumentError(f'--ids is {text!r:.60}; expected whole numbers, such as --ids "1 2 3"') from error


def _print_stats(stats: "Stats", num_tokens: int, finish_reason: str) -> None:
    length = "-" if stats.acceptance_length is None else f"{stats.acceptance_length:.2f}"
    speed = "-" if stats.tokens_per_second is None else f"{stats.tokens_per_second:.1f}"
    print(
        f"{num_tokens} tokens in {stats.steps} steps after prefill, acceptance length {length}, {speed} tokens/s, "
        f"prefill {stats.prefill_ms:.1f} ms, decode {stats.decode_ms:.1f} ms, finished: {finish_reason}",
        file=sys.stderr,
    )


def _print_table(header: tuple[str, ...], rows: list[tuple[str, ...]]) -> None:
    widths = [max(len(row[i]) for row in (header, *rows)) for i in range(len(header))]
    for row in (header, *rows):
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
