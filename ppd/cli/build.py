"""`ppd build`."""

from typing import Annotated

import typer

from ppd.cli.app import BundleArgument, app, bar
from ppd.extras import needs


@app.command()
def build(
    bundle: BundleArgument,
    engine: Annotated[
        str | None,
        typer.Option(
            metavar="tensorrt|tensorrt-rtx",
            help="TensorRT flavour; default: tensorrt-rtx with --gpu, else tensorrt if it is installed.",
        ),
    ] = None,
    gpu: Annotated[
        str | None,
        typer.Option(metavar="TARGET", help="Build ahead of time for this device; default: this machine's GPU."),
    ] = None,
    chunk: Annotated[
        int | None,
        typer.Option(metavar="N", help="Rows of a prompt that are read at once, 64 to 512: fewer take less memory."),
    ] = None,
    workspace: Annotated[
        int | None,
        typer.Option(metavar="MIB", help="Scratch memory for a kernel; default: what a board has left, elsewhere all."),
    ] = None,
    opt_level: Annotated[
        int | None, typer.Option(metavar="0-5", help="0 builds fastest, 5 longest; default: TensorRT's own, 3.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Build even if the bundle already holds the engine.")] = False,
) -> None:
    """Build a TensorRT engine into a bundle, and check it where its GPU is at hand."""
    from ppd.bundle import open_bundle
    from ppd.cli.describe import describe_engine, describe_fixed_cache
    from ppd.targets import find_target

    target = find_target(gpu) if gpu is not None else None
    with needs("tensorrt"):
        from ppd.build.engine import build as run
        from ppd.build.engine import flavour_to_build
    flavour = engine or flavour_to_build(target)
    with bar() as show:
        info = run(
            bundle,
            flavour,
            target=target,
            chunk=chunk,
            workspace=workspace,
            opt_level=opt_level,
            force=force,
            progress=show,
        )
    print(f"{bundle}: {describe_engine(info)}")
    if note := describe_fixed_cache(info, open_bundle(bundle, verify=False).manifest):
        print(note)
