"""`ppd bench`."""

import json
from pathlib import Path
from typing import Annotated

import typer

from ppd.cli.app import BundleArgument, EngineOption, ExactOption, ThreadsOption, app, print_table, progress


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
    exact: ExactOption = False,
) -> None:
    """Time plain decoding against drafting on this device, in turns; print medians."""
    import dataclasses

    from ppd.calibrate.bench import bench as run
    from ppd.calibrate.bench import read_prompts
    from ppd.runtime.model import load

    model = load(bundle, engine=engine, threads=threads, exact=exact)
    lines = read_prompts(prompts) if prompts is not None else None
    with progress([f"turn {turn} of {turns}" for turn in range(1, turns + 1)]) as advance:
        report = run(
            model, prompts=lines, max_new_tokens=max_new_tokens, turns=turns, draft=draft or "auto", progress=advance
        )
    values = dataclasses.asdict(report)
    if as_json:
        print(json.dumps(values))
    else:
        shown = {name: f"{value:.3f}" if isinstance(value, float) else str(value) for name, value in values.items()}
        print_table(("figure", "value"), [(name.replace("_", " "), text) for name, text in shown.items()])
