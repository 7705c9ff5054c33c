"""`ppd calibrate`."""

from pathlib import Path
from typing import Annotated

import typer

from ppd.cli.app import BundleArgument, EngineOption, ThreadsOption, app, progress


@app.command()
def calibrate(
    bundle: BundleArgument,
    prompts: Annotated[
        Path | None, typer.Option(metavar="FILE", help="One prompt per line; default: an embedded set.")
    ] = None,
    minutes: Annotated[float, typer.Option(metavar="N", help="About how long to measure.")] = 2.0,
    engine: EngineOption = "auto",
    threads: ThreadsOption = None,
) -> None:
    """Measure this device and the model, fold the fastest tree, and confirm it; plain decoding may be the answer."""
    from ppd.calibrate.calibrate import STAGES
    from ppd.calibrate.calibrate import calibrate as run
    from ppd.describe import describe_bundle
    from ppd.runtime.bench import read_prompts

    lines = read_prompts(prompts) if prompts is not None else None
    with progress(STAGES) as advance:
        report = run(bundle, prompts=lines, minutes=minutes, engine=engine, threads=threads, progress=advance)
    print(describe_bundle(report.bundle))
