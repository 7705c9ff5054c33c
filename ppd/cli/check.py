"""`ppd check`."""

import json

from ppd.cli.app import BundleArgument, EngineOption, JsonOption, QuietOption, ThreadsOption, app


@app.command()
def check(
    bundle: BundleArgument,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
    engine: EngineOption = "auto",
    threads: ThreadsOption = None,
) -> None:
    """Verify a bundle's files, then the engine on this device against the recorded reference."""
    import dataclasses

    from ppd import runtime
    from ppd.cli.describe import describe_check

    info = runtime.check_bundle(bundle, engine=engine, threads=threads)
    if as_json:
        print(json.dumps({"bundle": str(bundle), **dataclasses.asdict(info)}))
    elif not quiet:
        print(f"{bundle}: every file matches its hash")
        print(describe_check(info))
