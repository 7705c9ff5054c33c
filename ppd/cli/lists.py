"""`ppd targets` and `ppd models`."""

from ppd.cli.app import app, print_table


@app.command()
def targets() -> None:
    """List the devices that --gpu knows."""
    from ppd.targets import load_targets

    print_table(
        ("target", "device", "compute capability", "precision"),
        [(t.name, t.description, t.compute_capability or "-", t.precision) for t in load_targets().values()],
    )


@app.command()
def models() -> None:
    """List the models that --model knows by name."""
    from ppd.models.registry import load_registry

    print_table(
        ("model", "checkpoint", "parameters", "context", "prompt tokens", "note"),
        [
            (
                e.name,
                e.hub_id or "in this package",
                e.parameters,
                str(e.context),
                e.prompt_tokens or "untrained",
                e.note,
            )
            for e in load_registry().values()
        ],
    )
