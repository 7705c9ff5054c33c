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
    with needs("tensorrt"):
        from ppd.build.engine import build as run
        from ppd.build.engine import flavour_to_build
    flavour = engine or flavour_to_build(target)
    with bar() as show:
        info = run(bundle, flavour, target=target, force=force, progress=show)
    print(f"{bundle}: {describe_engine(info)}")
