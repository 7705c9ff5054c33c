"""`ppd check`, `ppd inspect` and `ppd bench`."""

import json
from pathlib import Path
from typing import Annotated

import typer

from ppd.cli.app import BundleArgument, EngineOption, ThreadsOption, app, print_table, progress


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
    bundle: BundleArgument,
    as_json: Annotated[bool, typer.Option("--json", help="Print the manifest as JSON.")] = False,
    plot: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Draw what calibration recorded, or the target's estimate.")
    ] = None,
) -> None:
    """Show what is in a bundle: model, tree, check, provenance."""
    import dataclasses

    from ppd.bundle import open_bundle
    from ppd.describe import describe_bundle

    opened = open_bundle(bundle)
    if plot is not None:
        from ppd.calibrate.plot import draw, picture_from_bundle, require_plot

        require_plot(plot)
        draw(plot, picture_from_bundle(opened))
    print(json.dumps(dataclasses.asdict(opened.manifest), indent=1) if as_json else describe_bundle(opened))


@app.command()
def bench(
    bundle: BundleArgument,
    prompts: Annotated[
        Path | None, typer.Option(metavar="FILE", help="One prompt per line; default: a built-in set.")
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(metavar="N", help="Tokens per prompt.")] = 64,
    turns: Annotated[int, typer.Option(metavar="N", help="Plain and PPD take turns this often, per prompt.")] = 5,
    draft: Annotated[
        bool, typer.Option("--draft", help="Draft even where calibration found plain decoding faster.")
    ] = False,
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
    with progress(range(turns)) as advance:
        report = run(
            model, prompts=lines, max_new_tokens=max_new_tokens, turns=turns, draft=draft or "auto", progress=advance
        )
    values = dataclasses.asdict(report)
    if as_json:
        print(json.dumps(values))
    else:
        shown = {name: f"{value:.3f}" if isinstance(value, float) else str(value) for name, value in values.items()}
        print_table(("figure", "value"), [(name.replace("_", " "), text) for name, text in shown.items()])
