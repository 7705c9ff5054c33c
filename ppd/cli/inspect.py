"""`ppd inspect`."""

import json
from pathlib import Path
from typing import Annotated

import typer

from ppd.cli.app import BundleArgument, app


@app.command()
def inspect(
    bundle: BundleArgument,
    as_json: Annotated[bool, typer.Option("--json", help="Print the manifest as JSON.")] = False,
    plot: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Plot what calibration recorded, or the target's estimate.")
    ] = None,
) -> None:
    """Show what is in a bundle: model, tree, check, provenance."""
    import dataclasses

    from ppd.bundle import open_bundle
    from ppd.cli.describe import describe_bundle

    opened = open_bundle(bundle)
    if plot is not None:
        from ppd.cli.plot import picture_from_bundle, require_plot
        from ppd.cli.plot import plot as draw

        require_plot(plot)
        draw(plot, picture_from_bundle(opened))
    print(json.dumps(dataclasses.asdict(opened.manifest), indent=1) if as_json else describe_bundle(opened))
