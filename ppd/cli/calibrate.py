"""`ppd calibrate`."""

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ppd.cli.app import BundleArgument, EngineOption, ThreadsOption, app, extra, progress

if TYPE_CHECKING:
    from ppd.calibrate.calibrate import Rebuild


@app.command()
def calibrate(
    bundle: BundleArgument,
    prompts: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Text files, JSON lines or ShareGPT, or a folder; default: an embedded set."),
    ] = None,
    minutes: Annotated[float, typer.Option(metavar="N", help="About how long to measure.")] = 2.0,
    plot: Annotated[Path | None, typer.Option(metavar="FILE", help="Draw the curves and the chosen point.")] = None,
    engine: EngineOption = "auto",
    threads: ThreadsOption = None,
) -> None:
    """Measure this device and the model, fold the fastest tree, and confirm it; plain decoding may be the answer."""
    from ppd.bundle import open_bundle
    from ppd.calibrate.calibrate import BUILD_STAGE, STAGES
    from ppd.calibrate.calibrate import calibrate as run
    from ppd.cli.describe import describe_bundle
    from ppd.cli.plot import draw, picture_from_bundle, require_plot
    from ppd.documents import read_documents
    from ppd.runtime.engines.tensorrt.built import chosen_flavour

    if plot is not None:
        require_plot(plot)
    documents = read_documents([prompts]) if prompts is not None else None
    flavour = chosen_flavour(open_bundle(bundle, verify=False), engine)
    stages = STAGES if flavour is None else (*STAGES, BUILD_STAGE, BUILD_STAGE)
    with _engines(bundle, flavour) as rebuild, progress(stages) as advance:
        run(
            bundle,
            prompts=documents,
            minutes=minutes,
            engine=flavour or engine,
            threads=threads,
            rebuild=rebuild,
            progress=advance,
        )
    calibrated = open_bundle(bundle, verify=False)
    if plot is not None:
        draw(plot, picture_from_bundle(calibrated))
    print(describe_bundle(calibrated))


def _engines(bundle: Path, flavour: str | None) -> "AbstractContextManager[Rebuild | None]":
    """What builds the engines of a flavour, and removes those that are not to stay; nothing for other engines."""
    if flavour is None:
        return nullcontext()
    with extra("tensorrt"):
        from ppd.calibrate.engines import calibration_engines
    return calibration_engines(bundle, flavour)
