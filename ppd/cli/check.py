"""`ppd check`."""

import json
from pathlib import Path
from typing import Annotated

import typer

from ppd.cli.app import BundleArgument, EngineOption, JsonOption, QuietOption, ThreadsOption, app
from ppd.extras import needs


@app.command()
def check(
    bundle: BundleArgument,
    engine: EngineOption = "auto",
    threads: ThreadsOption = None,
    dump: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Write single steps as graphs with inputs first, to compare backends with."),
    ] = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Verify a bundle's files, then the engine on this device against the recorded reference."""
    import dataclasses

    from ppd import runtime
    from ppd.bundle import open_bundle
    from ppd.cli.describe import describe_check

    if dump is not None:
        with needs("tensorrt-jetson"):
            from ppd.build.dump import dump_steps
        for path in dump_steps(open_bundle(bundle), dump):
            if not (as_json or quiet):
                print(f"{path}: a step, with its inputs in {path.stem}.npz")
    info = runtime.check_bundle(bundle, engine=engine, threads=threads)
    if as_json:
        print(json.dumps({"bundle": str(bundle), **dataclasses.asdict(info)}))
    elif not quiet:
        print(f"{bundle}: every file matches its hash")
        print(describe_check(info))
