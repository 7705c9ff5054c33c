"""`ppd models`."""

from ppd.cli.app import app, print_table


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
