"""`ppd export`."""

import json
from pathlib import Path
from typing import Annotated

import typer

from ppd.cli.app import JsonOption, QuietOption, app, progress
from ppd.extras import needs


@app.command()
def export(
    model: Annotated[
        str,
        typer.Option(metavar="NAME|PATH|HUB_ID", help="A known name (ppd models), a folder, a GGUF file, or a hub id."),
    ],
    gpu: Annotated[
        str, typer.Option(metavar="TARGET", help="The device the bundle is for: cpu, or another of ppd targets.")
    ],
    prompt_tokens: Annotated[
        str | None,
        typer.Option(
            metavar="PATH|HUB_ID", help="Trained prompt tokens or heads, or none; default: the published ones, if any."
        ),
    ] = None,
    precision: Annotated[str, typer.Option(help="auto (the target's), fp32, fp16, int8 or int4.")] = "auto",
    tree: Annotated[
        str, typer.Option(metavar="auto|PATH|none", help="The tree to fold, or none for plain decoding only.")
    ] = "auto",
    context: Annotated[
        int | None,
        typer.Option(help="Tokens of prompt and answer; default: the model's own, on a Jetson at most 4096 or 2048."),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="The bundle's folder; default: MODEL-TARGET.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing bundle.")] = False,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Export a model to a verified bundle."""
    import dataclasses

    from ppd.cli.describe import describe_export

    with needs("export"):
        from ppd.export.exporter import STAGES
        from ppd.export.exporter import export as run
    with progress(STAGES, quiet) as advance:
        report = run(
            model,
            gpu,
            prompt_tokens=prompt_tokens,
            precision=precision,
            tree=tree,
            context=context,
            out=out,
            force=force,
            progress=advance,
        )
    if as_json:
        told = {field.name: getattr(report, field.name) for field in dataclasses.fields(report)}
        bundle = told.pop("bundle")
        print(json.dumps({"bundle": str(bundle.folder), "manifest": dataclasses.asdict(bundle.manifest), **told}))
        return
    if quiet:
        return
    print(
        describe_export(
            report.bundle,
            report.weights_bytes,
            report.added_parameters,
            report.added_bytes,
            report.unquantised,
            report.notes,
        )
    )
