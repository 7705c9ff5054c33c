"""`ppd build`."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from ppd.cli.app import BundleArgument, app, extra

if TYPE_CHECKING:
    from ppd.build.engine import BuildProgress


@app.command()
def build(
    bundle: BundleArgument,
    engine: Annotated[
        str | None,
        typer.Option(
            metavar="tensorrt|tensorrt-rtx",
            help="The flavour; default: tensorrt-rtx with --gpu, else tensorrt where it is installed.",
        ),
    ] = None,
    gpu: Annotated[
        str | None,
        typer.Option(metavar="TARGET", help="Build ahead of time for this device; default: this machine's GPU."),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Build even if the engine is there.")] = False,
) -> None:
    """Build a TensorRT engine into a bundle, and check it where its GPU is at hand."""
    from ppd.cli.describe import describe_engine
    from ppd.targets import find_target

    target = find_target(gpu) if gpu is not None else None
    with extra("tensorrt"):
        from ppd.build.engine import build as run
        from ppd.build.engine import choose_flavour
    flavour = engine or choose_flavour(target)
    with _bar() as advance:
        info = run(bundle, flavour, target=target, force=force, progress=advance)
    print(f"{bundle}: {describe_engine(info)}")


@contextmanager
def _bar() -> "Iterator[BuildProgress]":
    """A bar that shows the share of the build and its phase on standard error, or nothing without a terminal."""
    console = Console(stderr=True)
    columns = (TextColumn("{task.description:<40}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("build", total=1.0)
        yield lambda phase, share: bar.update(task, description=phase[:40], completed=share)
