"""`ppd check`."""

from ppd.cli.app import BundleArgument, EngineOption, ThreadsOption, app


@app.command()
def check(bundle: BundleArgument, engine: EngineOption = "auto", threads: ThreadsOption = None) -> None:
    """Verify a bundle's files, then the engine on this device against the recorded reference."""
    from ppd import runtime
    from ppd.cli.describe import describe_check

    info = runtime.check_bundle(bundle, engine=engine, threads=threads)
    print(f"{bundle}: every file matches its hash")
    print(describe_check(info))
