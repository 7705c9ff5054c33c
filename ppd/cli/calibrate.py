"""`ppd calibrate`."""

import json
from pathlib import Path
from typing import Annotated

import typer

from ppd.cli.app import (
    BundleArgument,
    EngineOption,
    JsonOption,
    PromptsOption,
    QuietOption,
    ThreadsOption,
    app,
    progress,
)


@app.command()
def calibrate(
    bundle: BundleArgument,
    prompts: PromptsOption = None,
    minutes: Annotated[
        float, typer.Option(metavar="N", help="Minutes to measure, about; confirming what was found comes on top.")
    ] = 2.0,
    plot: Annotated[Path | None, typer.Option(metavar="FILE", help="Plot the curves and the chosen tree.")] = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
    engine: EngineOption = "auto",
    threads: ThreadsOption = None,
) -> None:
    """Measure this device and the model, fold the fastest tree, and confirm it; plain decoding may be the answer."""
    import dataclasses

    from ppd.calibrate.calibrate import calibrate as run
    from ppd.calibrate.calibrate import calibration_stages
    from ppd.cli.describe import describe_calibration
    from ppd.cli.plot import picture_from_bundle, require_plot
    from ppd.cli.plot import plot as draw
    from ppd.questions import read_questions

    if plot is not None:
        require_plot(plot)
    asked = read_questions(prompts) if prompts is not None else None
    with progress(calibration_stages(bundle, engine), quiet) as advance:
        report = run(bundle, prompts=asked, minutes=minutes, engine=engine, threads=threads, progress=advance)
    if plot is not None:
        draw(plot, picture_from_bundle(report.bundle))
    if as_json:
        print(json.dumps(dataclasses.asdict(report.bundle.manifest)))
    elif not quiet:
        print(describe_calibration(report.bundle))
